"""A linear layer whose weight stays as its checkpoint packs it: unpacked piece by piece in torch, or read natively."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from baton.model.packed import PackedWeight

# Numbers of a weight that are unpacked at a time, in float32: 4 MiB.
_PIECE_NUMBERS = 1 << 20

_skipped: list[bool] = []
_LAYERS: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count()

# One operation, so that a recorded step has the layer whole and not how torch unpacks it.
LIBRARY = torch.library.Library("baton", "FRAGMENT")
LIBRARY.define("packed(Tensor x, Tensor? bias, int layer) -> Tensor")


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
        self._numbers: Tensor | None = None
        self.layer_id = numbered(self)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(name) for name in self.names}

    @property
    def weight_read(self) -> PackedWeight:
        """What the tensors mean. Raises RuntimeError before they are loaded."""
        if self.packed is None:
            raise RuntimeError("a packed layer was used before its tensors were loaded")
        return self.packed

    @property
    def weights(self) -> list[PackedWeight]:
        """What products read, one for each expert where a layer has experts."""
        return [self.weight_read]

    def read(self, weight: Callable[[Mapping[str, Tensor], int, int], PackedWeight]) -> None:
        """Gives the tensors their meaning. `weight`: reads those of a layer."""
        self.packed = weight(self.tensors, self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.baton.packed(x, self.bias, self.layer_id)
        return result

    def multiplied(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The product in torch, with one piece of the weight unpacked at a time."""
        if x.is_meta or self.packed is None:
            return x.new_empty((*x.shape[:-1], self.out_features))
        if not computed():
            return x.new_zeros((*x.shape[:-1], self.out_features))
        numbers = x.reshape(-1, self.in_features).float()
        product = numbers.new_empty(len(numbers), self.out_features)
        for first, last in self._pieces():
            weight = self.packed.unpacked(first, last) if self._numbers is None else self._numbers[first:last]
            product[:, first:last] = numbers @ weight.t()
        if bias is not None:
            product += bias.float()
        return product.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _pieces(self) -> Iterator[tuple[int, int]]:
        step = max(1, _PIECE_NUMBERS // self.in_features)
        for first in range(0, self.out_features, step):
            yield first, min(first + step, self.out_features)

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """For so long, the weight is there in float32, and torch unpacks nothing."""
        packed = self.weight_read
        self._numbers = torch.empty(self.out_features, self.in_features)
        try:
            for first, last in self._pieces():
                self._numbers[first:last] = packed.unpacked(first, last)
            yield
        finally:
            self._numbers = None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _packed(x: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    product: Tensor = packed_layer(layer).multiplied(x, bias)
    return product


LIBRARY.impl("packed", _packed, "CompositeExplicitAutograd")
PACKED = torch.ops.baton.packed.default


def computed() -> bool:
    """Whether packed layers compute; see `not_computed`."""
    return not _skipped


def numbered(layer: Any) -> int:
    """A number for a packed layer, by which a recorded operation names it."""
    number = next(_numbers)
    _LAYERS[number] = layer
    return number


@contextmanager
def not_computed() -> Iterator[None]:
    """For so long, packed layers give zeros: for a run of which only the operations are wanted."""
    _skipped.append(True)
    try:
        yield
    finally:
        _skipped.pop()


def packed_layer(number: int) -> Any:
    """The layer, or the experts of one, that a recorded operation names."""
    return _LAYERS[number]
