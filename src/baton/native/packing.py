"""How the native library keeps the weight of a product, `[outputs, inputs]`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL, byref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.native import library as native
from baton.native import structs

KINDS = {torch.float32: native.FLOAT32, torch.bfloat16: native.BFLOAT16, torch.float16: native.FLOAT16}
"""The library's number for the number format of weights, keys and values."""

_PIECE_BYTES = 1 << 20
_LINE = 64
_HALF_EXPONENT = 15  # 2^15 is below the greatest float16


@dataclass(frozen=True, slots=True)
class Packing:
    """How weights are packed. `kind`: the packed format's number; None keeps each weight's own number format.

    `exact`: whether a packed weight unpacks to the same numbers. `group`: of int8 and int4, `planes`: of int4, see
    source/kernels.h. `head`: how the output layer is kept, and an embedding that is tied to it; None: as all others.
    """

    kind: int | None = None
    exact: bool = True
    group: int = 0
    planes: int = 0
    head: Packing | None = None

    @property
    def bits(self) -> float | None:
        """Bits of a weight with its share of a scale; None if its number format decides."""
        scales = {native.INT8: 8 + 32 / native.GROUP, native.INT4: 4 + 16 / max(self.group, 1)}
        return None if self.kind is None else scales.get(self.kind)

    def of(self, *, head: bool) -> Packing:
        """How a product's weight is kept. `head`: whether it is the output layer's."""
        return self.head if head and self.head is not None else self

    def bytes_of(self, library: CDLL, kernels: Any, weight: Tensor) -> int:
        """Bytes of this weight when packed, rounded up to whole cache lines."""
        return aligned(sum(self._sizes(library, kernels, weight)))

    def pack(
        self,
        library: CDLL,
        kernels: Any,
        weight: Tensor,
        address: int,
        packed_piece: Callable[[Tensor], None] | None = None,
    ) -> structs.Weight:
        """Packs the weight into `bytes_of` bytes at this address.

        `packed_piece`: called with each piece of the weight that is not needed any more. Raises LoadError for a number
        format it cannot read.
        """
        outputs, inputs = weight.shape
        packed = self.placed(library, kernels, weight, address, None)
        # In pieces, so that a weight with another layout in memory is never copied whole, and threads share the work.
        step = max(native.PANEL, _PIECE_BYTES // max(1, inputs * weight.element_size()) // native.PANEL * native.PANEL)

        def pack(first: int) -> None:
            piece = weight[first : first + step].detach().contiguous()
            library.baton_pack(kernels, byref(packed), first, len(piece), piece.data_ptr(), kind_of(piece.dtype))
            if packed_piece is not None:
                packed_piece(weight[first : first + step].detach())

        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for _ in threads.map(pack, range(0, outputs, step)):
                pass
        return packed

    def placed(self, library: CDLL, kernels: Any, weight: Tensor, address: int, power: float | None) -> structs.Weight:
        """Describes a weight of this shape that lies packed there. `power`: of 4-bit scales; None: by its numbers."""
        data, scales = self._sizes(library, kernels, weight)
        outputs, inputs = weight.shape
        packed = structs.Weight(self._kind(weight), outputs, inputs, address, address + data if scales else None)
        packed.group = self.group
        if packed.kind == native.INT4:
            packed.planes, packed.zero = self.planes, 8
            packed.power = power_of(weight) if power is None else power
        if packed.kind == native.INT8:
            packed.wide = 1
        return packed

    def rounded(self, weight: Tensor) -> Tensor:
        """The numbers `[outputs, inputs]` that products read in place of a weight's. Raises LoadError as `pack`."""
        library, kernels = native.library, native.best()
        if library is None or kernels is None:
            raise LoadError(native.describe())
        room = torch.empty(self.bytes_of(library, kernels, weight) + _LINE, dtype=torch.uint8)
        packed = self.pack(library, kernels, weight, aligned(room.data_ptr()))
        rounded = torch.empty(weight.shape)
        library.baton_unpack(kernels, byref(packed), 0, len(weight), rounded.data_ptr())
        return rounded.to(weight.dtype)

    def _kind(self, weight: Tensor) -> int:
        return KINDS.get(weight.dtype, native.FLOAT32) if self.kind is None else self.kind

    def _sizes(self, library: CDLL, kernels: Any, weight: Tensor) -> tuple[int, int]:
        """Bytes of the packed numbers, and of their scales."""
        kind, (outputs, inputs) = self._kind(weight), weight.shape
        return (
            library.baton_weight_bytes(kernels, kind, outputs, inputs),
            library.baton_scale_bytes(kernels, kind, self.group, outputs, inputs),
        )


AS_SAVED = Packing()
INT8 = Packing(native.INT8, exact=False, group=native.GROUP)
INT4 = Packing(native.INT4, exact=False, group=32, planes=1, head=INT8)
INT4_EXACT = replace(INT4, planes=2)


def power_of(weight: Tensor) -> float:
    """The power of two by which the scales of a weight's 4-bit groups fit float16, the greatest of them near its top.

    So a scale keeps all of float16's digits if it is a 2^28th of the greatest or more.
    """
    low, high = weight.detach().aminmax()
    top = max(-float(low), float(high)) / 8
    if not 0 < top < math.inf:
        return 1.0
    return 2.0 ** max(math.frexp(top)[1] - _HALF_EXPONENT, -126)


def kind_of(dtype: torch.dtype) -> int:
    """Raises LoadError for a number format that kernels do not compute with."""
    if dtype not in KINDS:
        raise LoadError(f"native kernels do not compute with weights in {dtype}")
    return KINDS[dtype]


def aligned(size: int) -> int:
    """Rounds up to whole cache lines."""
    return -(-size // _LINE) * _LINE
