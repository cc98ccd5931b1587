"""How the native library keeps the weight of a product, `[outputs, inputs]`."""

from __future__ import annotations

from ctypes import CDLL, byref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.native import library as native

KINDS = {torch.float32: native.FLOAT32, torch.bfloat16: native.BFLOAT16}
"""The library's number for the number format of weights, keys and values."""

_PIECE_BYTES = 4 << 20
_LINE = 64


@dataclass(frozen=True, slots=True)
class Packing:
    """How weights are packed. `kind`: the packed format's number; None keeps each weight's own number format.

    `exact`: whether a packed weight unpacks to the same numbers.
    """

    kind: int | None = None
    exact: bool = True

    def bytes_of(self, library: CDLL, kernels: Any, weight: Tensor) -> int:
        """Bytes of this weight when packed, rounded up to whole cache lines."""
        data, scales = self._sizes(library, kernels, weight)
        return aligned(data + 4 * scales)

    def pack(self, library: CDLL, kernels: Any, weight: Tensor, address: int) -> native.Weight:
        """Packs the weight into `bytes_of` bytes at this address.

        Raises LoadError for a number format it cannot read.
        """
        data, scales = self._sizes(library, kernels, weight)
        outputs, inputs = weight.shape
        packed = native.Weight(self._kind(weight), outputs, inputs, address, address + data if scales else None)
        # In pieces, so that a weight with another layout in memory is never copied whole.
        step = max(native.PANEL, _PIECE_BYTES // max(1, inputs * weight.element_size()) // native.PANEL * native.PANEL)
        for first in range(0, outputs, step):
            piece = weight[first : first + step].detach().contiguous()
            library.baton_pack(kernels, byref(packed), first, len(piece), piece.data_ptr(), kind_of(piece.dtype))
        return packed

    def _kind(self, weight: Tensor) -> int:
        return KINDS.get(weight.dtype, native.FLOAT32) if self.kind is None else self.kind

    def _sizes(self, library: CDLL, kernels: Any, weight: Tensor) -> tuple[int, int]:
        """Bytes of the packed numbers, and the number of scales."""
        kind, (outputs, inputs) = self._kind(weight), weight.shape
        return (
            library.baton_weight_bytes(kernels, kind, outputs, inputs),
            library.baton_scale_count(kernels, kind, outputs, inputs),
        )


AS_SAVED = Packing()
INT8 = Packing(native.INT8, exact=False)


def kind_of(dtype: torch.dtype) -> int:
    """Raises LoadError for a number format that kernels do not compute with."""
    if dtype not in KINDS:
        raise LoadError(f"native kernels do not compute with weights in {dtype}")
    return KINDS[dtype]


def aligned(size: int) -> int:
    """Rounds up to whole cache lines."""
    return -(-size // _LINE) * _LINE
