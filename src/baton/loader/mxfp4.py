"""Checkpoints of gpt-oss: experts in MXFP4, 32 numbers of 4 bits (E2M1) with an exponent in 8 bits (E8M0)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.gguf_blocks import E2M1_TWICE, half_powers
from baton.loader.packed_format import PackedFormat, bytes_of, must_be, unpacked_words
from baton.model.packed import Codes, PackedWeight

_GROUP = 32


@dataclass(frozen=True, slots=True)
class Mxfp4(PackedFormat):
    """`blocks` `[experts, outputs, groups, 16]` and `scales` `[experts, outputs, groups]`, both bytes."""

    packs: ClassVar[str] = "experts"
    joints: ClassVar[tuple[str, ...]] = ("_",)

    @property
    def parts(self) -> tuple[str, ...]:
        return ("blocks", "scales")

    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        return _Mxfp4Weight(tensors, outputs, inputs)


class _Mxfp4Weight(PackedWeight):
    bits, group = 4, _GROUP
    table = torch.tensor(E2M1_TWICE, dtype=torch.float32)

    def __init__(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> None:
        if inputs % _GROUP:
            raise LoadError(f"{inputs} inputs do not fill blocks of {_GROUP}")
        groups = inputs // _GROUP
        must_be(tensors, blocks=(outputs, groups, _GROUP // 2), scales=(outputs, groups))
        if any(tensor.dtype is not torch.uint8 for tensor in tensors.values()):
            raise LoadError("its blocks or scales are not bytes")
        self.outputs, self.inputs = outputs, inputs
        self.bytes = bytes_of(tensors)
        self._blocks, self._scales = tensors["blocks"], tensors["scales"]

    def piece(self, first: int, last: int) -> Codes:
        codes = unpacked_words(self._blocks[first:last].flatten(1), self.bits)
        return Codes(codes, half_powers(self._scales[first:last]))


def mxfp4(said: Mapping[str, Any]) -> PackedFormat | None:
    """The format that a quantization_config describes; None if experts are to be unpacked (`dequantize`)."""
    return None if said.get("dequantize") else Mxfp4("MXFP4, 4 bits, groups of 32", "")
