"""A linear layer whose weight stays as its checkpoint packs it: unpacked piece by piece in torch, or read natively."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from baton.model.packed import PackedWeight

# Numbers of a weight that are unpacked at a time, in float32: 4 MiB.
_PIECE_NUMBERS = 1 << 20

_skipped: list[bool] = []
_LAYERS: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()
_numbers = itertools.count()

# One operation, so that a recorded step has the layer whole and not how torch unpacks it.
_LIBRARY = torch.library.Library("baton", "FRAGMENT")
_LIBRARY.define("packed(Tensor x, Tensor? bias, int layer) -> Tensor")


class PackedLinear(nn.Module):
    """`[..., inputs]` -> `[..., outputs]`, computed in float32.

    `tensors`: the layer's, under the names that they have in the checkpoint; each is a buffer. `packed`: what they
    mean, once they are loaded.
    """

    def __init__(self, inputs: int, outputs: int, tensors: Mapping[str, Tensor], bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.names = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        self.packed: PackedWeight | None = None
        self.layer_id = next(_numbers)
        _LAYERS[self.layer_id] = self

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(name) for name in self.names}

    @property
    def weight_read(self) -> PackedWeight:
        """What the tensors mean. Raises RuntimeError before they are loaded."""
        if self.packed is None:
            raise RuntimeError("a packed layer was used before its tensors were loaded")
        return self.packed

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.baton.packed(x, self.bias, self.layer_id)
        return result

    def multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product in torch, with one piece of the weight unpacked at a time."""
        if x.is_meta or self.packed is None:
            return x.new_empty((*x.shape[:-1], self.out_features))
        if _skipped:
            return x.new_zeros((*x.shape[:-1], self.out_features))
        numbers = x.reshape(-1, self.in_features).float()
        product = numbers.new_empty(len(numbers), self.out_features)
        step = max(1, _PIECE_NUMBERS // self.in_features)
        for first in range(0, self.out_features, step):
            last = min(first + step, self.out_features)
            product[:, first:last] = numbers @ self.packed.unpacked(first, last).t()
        if bias is not None:
            product += bias.float()
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _packed(x: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return packed_layer(layer).multiplied(x, bias)


_LIBRARY.impl("packed", _packed, "CompositeExplicitAutograd")
PACKED = torch.ops.baton.packed.default


@contextmanager
def not_computed() -> Iterator[None]:
    """For so long, packed layers give zeros: for a run of which only the operations are wanted."""
    _skipped.append(True)
    try:
        yield
    finally:
        _skipped.pop()


def packed_layer(number: int) -> PackedLinear:
    """The layer that a recorded operation names."""
    return _LAYERS[number]


def packed_layers(model: nn.Module) -> list[PackedLinear]:
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


def count_weights(model: nn.Module) -> int:
    """How many numbers a model's weights have, packed ones unpacked."""
    packed = sum(layer.in_features * layer.out_features for layer in packed_layers(model))
    return packed + sum(parameter.numel() for parameter in model.parameters())
