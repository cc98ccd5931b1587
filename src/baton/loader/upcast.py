"""A model in float32 for a while, whole or with its first layers alone: to ask what does not depend on rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from baton.model.packed_layers import packed_layers
from baton.model.packed_linear import PackedLinear

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

MOST_LIFTED_BYTES = 2 << 30
MOST_UNPACKED_BYTES = 64 << 20
MOST_TOKENS = 1024
"""Of a vocabulary, the tokens of which texts are made here. The numbers of others, which in a small model are half of
all and in a packed one most, are then never made float32."""


@contextmanager
def kept_to(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Reduces the model to its first `layers` for a while."""
    place = _place_of_layers(model)
    if place is not None:
        parent, name, every = place
        setattr(parent, name, nn.ModuleList(list(every)[:layers]))
    try:
        yield
    finally:
        if place is not None:
            setattr(parent, name, every)


@contextmanager
def lifted(model: PreTrainedModel, layers: int) -> Iterator[None]:
    """Reduces the model to its first `layers`, in float32, for a while; only for models that `can_be_lifted`.

    Its vocabulary is reduced, too, to its first MOST_TOKENS. Packed layers are unpacked once, if that takes no more
    than they will take when they are packed for native steps, or little.
    """
    packed = sum(one.bytes for layer in packed_layers(model) for one in layer.weights)
    with kept_to(model, layers), ExitStack() as unpacked:
        linear = [module for module in model.modules() if isinstance(module, PackedLinear)]
        if 4 * sum(one.in_features * one.out_features for one in linear) <= max(packed, MOST_UNPACKED_BYTES):
            for one in linear:
                unpacked.enter_context(one.unpacked())
        kept = [(tensor, tensor.data) for tensor in _numbers(model) if tensor.dtype in _FLOATS[1:]]
        by_token = _by_token(model)
        embedding: Any = model.get_input_embeddings()
        # Beyond the reduced vocabulary, torch refuses to look anything up.
        padding, has_padding = getattr(embedding, "padding_idx", None), hasattr(embedding, "padding_idx")
        try:
            for tensor, data in kept:
                tensor.data = (data[:MOST_TOKENS] if id(tensor) in by_token else data).float()
            if has_padding and padding is not None and padding >= len(embedding.weight):
                embedding.padding_idx = None
            yield
        finally:
            for tensor, data in kept:
                tensor.data = data
            if has_padding:
                embedding.padding_idx = padding


def tokens_of(model: PreTrainedModel) -> int:
    """Texts of checks are made of tokens below this."""
    return min(int(model.config.get_text_config().vocab_size), MOST_TOKENS)


def _by_token(model: PreTrainedModel) -> set[int]:
    """The parameters that have a row for each token."""
    ends = [one for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one is not None]
    plain = [one for one in ends if isinstance(one, (nn.Embedding, nn.Linear))]
    return {id(p) for one in plain for p in one.parameters(recurse=False) if len(p) > MOST_TOKENS}


def can_be_lifted(model: PreTrainedModel, layers: int) -> bool:
    """Whether all numbers are plain or packed, and so many layers take no more in float32 than the whole model as is.

    Up to MOST_LIFTED_BYTES they may take more; loading never needs twice a large model's memory.
    """
    if any(p.dtype not in _FLOATS for p in model.parameters()):
        return False
    if any(
        tensor.is_floating_point() and tensor.itemsize > 1 and tensor.dtype not in (*_FLOATS, torch.float64)
        for tensor in model.buffers()
    ):
        return False
    place = _place_of_layers(model)
    left_out = list(place[2])[layers:] if place is not None else []
    gone = {id(p) for layer in left_out for p in layer.parameters()}
    by_token = _by_token(model)
    size = sum(
        4 * p.numel() * (MOST_TOKENS / len(p) if id(p) in by_token else 1)
        for p in model.parameters()
        if p.dtype != torch.float32 and id(p) not in gone
    )
    return size <= max(MOST_LIFTED_BYTES, sum(p.nbytes for p in model.parameters()))


def layers_of_all_kinds(model: PreTrainedModel) -> tuple[int, int]:
    """How many of its first layers include one of each kind, at least two; and how many layers there are."""
    place = _place_of_layers(model)
    if place is None:
        count = int(model.config.get_text_config().num_hidden_layers)
        return count, count
    types = getattr(model.config.get_text_config(), "layer_types", None) or []
    kinds = [(_kind(layer), *types[at : at + 1]) for at, layer in enumerate(place[2])]
    needed = max(kinds.index(kind) for kind in set(kinds)) + 1
    return min(max(2, needed), len(kinds)), len(kinds)


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """The same for two layers that are computed alike: their modules, and the plain attributes of these."""
    parts: list[object] = []
    for name, module in layer.named_modules():
        plain = [
            (key, value)
            for key, value in sorted(vars(module).items())
            if isinstance(value, (bool, int, float, str)) and not key.endswith(("idx", "_id"))
        ]
        parts.append((name, type(module), tuple(plain)))
    return tuple(parts)


def _place_of_layers(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList] | None:
    count = model.config.get_text_config().num_hidden_layers
    for parent in model.modules():
        for name, module in parent.named_children():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return parent, name, module
    return None


def _numbers(model: PreTrainedModel) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]
