"""AWQ checkpoints (gemm): codes packed along the outputs, eight in a word, in an order of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.packed_format import UNPACKED, PackedFormat, bytes_of, group_said, must_be, unpacked_words
from baton.model.packed import Codes, PackedWeight

_PER_WORD = 8
# Where in a word each of its eight outputs lies.
_PLACES = torch.tensor((0, 4, 1, 5, 2, 6, 3, 7))


@dataclass(frozen=True, slots=True)
class Awq(PackedFormat):
    """`group`: inputs that share a scale, or 0 for all."""

    group: int

    @property
    def parts(self) -> tuple[str, ...]:
        return ("qweight", "qzeros", "scales")

    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        return _AwqWeight(tensors, outputs, inputs, self.group or inputs)


class _AwqWeight(PackedWeight):
    bits = 4

    def __init__(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int, group: int) -> None:
        if outputs % _PER_WORD:
            raise LoadError(f"{outputs} outputs do not fill words of {_PER_WORD}")
        words, groups = outputs // _PER_WORD, -(-inputs // group)
        must_be(tensors, qweight=(inputs, words), qzeros=(groups, words), scales=(groups, outputs))
        self.outputs, self.inputs, self.group = outputs, inputs, group
        self.bytes = bytes_of(tensors)
        self._tensors = tensors

    def piece(self, first: int, last: int) -> Codes:
        codes, zeros = (_outputs(self._tensors[name], first, last) for name in ("qweight", "qzeros"))
        scales = self._tensors["scales"][:, first:last].t().float().contiguous()
        return Codes(codes, scales, zeros.float())


def _outputs(words: Tensor, first: int, last: int) -> Tensor:
    """Codes `[rows, words]` of outputs `first` to `last` - 1, as uint8 `[outputs, rows]`."""
    start = first // _PER_WORD
    codes = unpacked_words(words[:, start : -(-last // _PER_WORD)], 4)
    codes = codes.view(len(words), -1, _PER_WORD)[..., _PLACES].flatten(1)
    return codes[:, first - start * _PER_WORD : last - start * _PER_WORD].t().contiguous()


def awq(said: Mapping[str, Any]) -> PackedFormat:
    """The format that a quantization_config describes. Raises LoadError if it is not kept."""
    bits = said.get("bits", said.get("w_bit", 4))
    version = str(said.get("version") or "gemm").lower()
    if bits != 4 or version != "gemm":
        raise LoadError(f"is AWQ {version[:40]} in {bits!r} bits: take one of version gemm in 4 bits, {UNPACKED}")
    group, groups = group_said({"group_size": said.get("group_size", said.get("q_group_size", 128))})
    return Awq(f"AWQ, 4 bits, {groups}", "", group)
