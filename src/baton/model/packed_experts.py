"""A layer's experts whose weights stay as their checkpoint packs them.

In torch they are unpacked expert by expert; natively they are read as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from baton.model.experts import mixed
from baton.model.packed import PackedWeight
from baton.model.packed_linear import LIBRARY, computed, numbered, packed_layer

ATTRIBUTE = "packed_experts"

LIBRARY.define("packed_expert(Tensor x, Tensor index, int layer) -> Tensor")


class PackedExperts:
    """Stands in the place of a parameter `[experts, outputs, inputs]` of a module with experts, called `name` there.

    `names`: by each part, the module's buffer that has it, `[experts, ...]`, as the checkpoint has it. `packed`: what
    they mean, expert by expert, once they are loaded.
    """

    # For transformers, which draws numbers for what was not loaded.
    _is_hf_initialized = True

    def __init__(
        self, module: nn.Module, name: str, experts: int, outputs: int, inputs: int, names: Mapping[str, str]
    ) -> None:
        self.module, self.name = module, name
        self.experts, self.out_features, self.in_features = experts, outputs, inputs
        self.names = dict(names)
        self.packed: list[PackedWeight] | None = None
        self.layer_id = numbered(self)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {part: self.module.get_buffer(name) for part, name in self.names.items()}

    @property
    def weights(self) -> list[PackedWeight]:
        """What the tensors mean. Raises RuntimeError before they are loaded."""
        if self.packed is None:
            raise RuntimeError("packed experts were used before their tensors were loaded")
        return self.packed

    def read(self, weight: Callable[[Mapping[str, Tensor], int, int], PackedWeight]) -> None:
        """Gives the tensors their meaning. `weight`: reads those of one expert."""
        tensors = self.tensors
        self.packed = [
            weight({part: tensor[at] for part, tensor in tensors.items()}, self.out_features, self.in_features)
            for at in range(self.experts)
        ]

    def multiplied(self, x: Tensor, index: Tensor) -> Tensor:
        """x `[tokens, slots or 1, inputs]`, index `[tokens, slots]` -> `[tokens, slots, outputs]`, in torch."""
        product = x.new_zeros(*index.shape, self.out_features)
        if x.is_meta or self.packed is None or not computed():
            return product
        rows = x.expand(*index.shape, -1).flatten(0, 1).float()
        chosen, made = index.flatten(), product.flatten(0, 1)
        for expert in chosen.unique().tolist():
            at = (chosen == expert).nonzero().squeeze(1)
            numbers = self.packed[expert].unpacked(0, self.out_features)
            made[at] = (rows[at] @ numbers.t()).to(x.dtype)
        return product


def _packed_expert(x: Tensor, index: Tensor, layer: int) -> Tensor:
    experts = packed_layer(layer)
    assert isinstance(experts, PackedExperts)
    return experts.multiplied(x, index)


LIBRARY.impl("packed_expert", _packed_expert, "CompositeExplicitAutograd")
PACKED_EXPERT = torch.ops.baton.packed_expert.default


def put_experts(module: Any, name: str, tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> PackedExperts:
    """Puts packed weights in the place of a parameter of experts behind transformers' interface.

    `tensors`: empty ones by part, `names`: what the checkpoint calls each within the module. The module's forward
    computes with packed weights from then on.
    """
    count, outputs, inputs = getattr(module, name).shape
    if module.is_transposed:
        outputs, inputs = inputs, outputs
    delattr(module, name)
    for part, tensor in tensors.items():
        module.register_buffer(names[part], tensor)
    experts = PackedExperts(module, name, count, outputs, inputs, names)
    setattr(module, name, experts)
    module.__dict__.setdefault(ATTRIBUTE, []).append(experts)
    module.forward = MethodType(_forward, module)
    return experts


def _forward(module: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    return mixed(module, x, index, weights, _product)


def _product(x: Tensor, index: Tensor, weight: Any) -> Tensor:
    if not isinstance(weight, PackedExperts):
        raise RuntimeError("of experts' weights, some are packed and some are not")
    product: Tensor = torch.ops.baton.packed_expert(x, index, weight.layer_id)
    return product
