"""A weight that the native library packed, by itself."""

from __future__ import annotations

import numpy as np

from baton.native.library import BFLOAT16, FLOAT16, FLOAT32, GROUP, INT4, INT8, PANEL, library
from baton.native.structs import Weight

Array = np.ndarray


class Packed:
    """A weight [outputs, inputs] packed in two pieces, in memory that held rubbish.

    `group` (64 in int8), `planes`, `power`: of int4; a power that suits numbers near 1, if none is given.
    """

    def __init__(
        self, kernels: int, kind: int, weight: Array, group: int = 32, planes: int = 1, power: float = 2.0**-10
    ) -> None:
        assert library is not None
        self.kernels, self.weight = kernels, weight
        outputs, inputs = weight.shape
        group = GROUP if kind == INT8 else group
        self.data = aligned(library.baton_weight_bytes(kernels, kind, outputs, inputs))
        self.scales = aligned(library.baton_scale_bytes(kernels, kind, group, outputs, inputs))
        addresses = self.data.ctypes.data, self.scales.ctypes.data
        self.struct = Weight(kind, outputs, inputs, *addresses, group, planes, power)
        self.struct.wide, self.struct.zero = int(kind == INT8), 8 if kind == INT4 else 0
        taken = {"float32": FLOAT32, "float16": FLOAT16}.get(weight.dtype.name, BFLOAT16)
        for first, end in ((0, outputs // 3), (outputs // 3, outputs)):
            piece = np.ascontiguousarray(weight[first:end])
            library.baton_pack(kernels, self.struct, first, end - first, piece.ctypes.data, taken)

    def unpacked(self) -> Array:
        assert library is not None
        unpacked = np.empty(self.weight.shape, np.float32)
        library.baton_unpack(self.kernels, self.struct, 0, len(unpacked), unpacked.ctypes.data)
        return unpacked

    def product(self, x: Array, bias: Array | None = None) -> Array:
        assert library is not None
        x, outputs = np.ascontiguousarray(x), len(self.weight)
        y = np.full(len(x) * outputs + PANEL, -7, np.float32)
        address = None if bias is None else bias.ctypes.data
        assert library.baton_product(self.kernels, self.struct, x.ctypes.data, len(x), address, y.ctypes.data) == 0
        assert (y[len(x) * outputs :] == -7).all(), "written beyond the last output"
        return y[: len(x) * outputs].reshape(len(x), outputs)


def aligned(count: int) -> Array:
    whole = np.full(count + 64, 0xFF, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + count]
