"""Long and short rotary factors (LongRoPE, Ding et al. 2024) chosen by row: stock chooses once for the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Far = Callable[[], Tensor | None]
"""`[B, T]`: which tokens of the running forward are of rows beyond the original context; None: none is."""


def original_context(model: PreTrainedModel) -> int | None:
    """The number of tokens above which a text's positions are all rotated by other factors; None for most models."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)


def choose_by_row(model: PreTrainedModel, limit: int, far: Far) -> None:
    """Has the model's rotary embedding answer both tables and take each token's from its own.

    Stock takes the long factors where any position of a batch is beyond `limit`, so that a neighbour would change a
    row's result.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            module.forward = _both(module, limit, far)  # type: ignore[method-assign]


def _both(rotary: nn.Module, limit: int, far: Far) -> Callable[..., tuple[Tensor, Tensor]]:
    stock = type(rotary).forward

    def forward(x: Tensor, position_ids: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        flags = far()
        # Stock looks at the highest position: one in front that is below the limit, or beyond it, decides for all.
        near = position_ids.clamp(max=limit - 1)
        short = stock(rotary, x, near, *args, **kwargs)
        if flags is None:
            return short
        column = torch.full_like(position_ids[:, :1], limit)
        long = stock(rotary, x, torch.cat([column, position_ids], dim=1), *args, **kwargs)
        cos, sin = (
            torch.where(flags[..., None], theirs[:, 1:], ours) for theirs, ours in zip(long, short, strict=True)
        )
        return cos, sin

    return forward
