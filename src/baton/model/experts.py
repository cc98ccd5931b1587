"""A layer's experts as transformers' interface describes them: two products, and what lies between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Any], Tensor]
"""Of x `[tokens, slots or 1, inputs]`, chosen experts `[tokens, slots]` and a weight: `[tokens, slots, outputs]`."""


def mixed(module: Any, x: Tensor, index: Tensor, weights: Tensor, product: Product) -> Tensor:
    """As transformers' own functions of experts: x `[tokens, hidden]`, `index` and `weights` `[tokens, slots]`.

    What a token's slots hold differs only in numbers, so that nothing here depends on what was chosen.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        y = product(x, index, getattr(module, name))
        return y + nn.functional.embedding(index, getattr(module, f"{name}_bias")) if module.has_bias else y

    y = linear(x[:, None], "gate_up_proj" if module.has_gate else "up_proj")
    y = linear(module._apply_gate(y) if module.has_gate else module.act_fn(y), "down_proj")
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)
    return (y * weights[..., None]).sum(dim=1).to(x.dtype)
