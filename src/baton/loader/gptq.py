"""GPTQ checkpoints: codes packed along the inputs, zeros along the outputs, a group for each input.

The format is that of AutoGPTQ and GPTQModel. Its first version has zeros less one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.packed_format import UNPACKED, PackedFormat, bytes_of, group_said, grouped, must_be, unpacked_words
from baton.model.packed import Codes, PackedWeight


@dataclass(frozen=True, slots=True)
class Gptq(PackedFormat):
    """`group`: inputs that share a scale, or 0 for all. `zero_less_one`: whether zeros are stored less one."""

    bits: int
    group: int
    zero_less_one: bool

    @property
    def parts(self) -> tuple[str, ...]:
        return ("qweight", "qzeros", "scales", "g_idx")

    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        return _GptqWeight(tensors, outputs, inputs, self)


class _GptqWeight(PackedWeight):
    def __init__(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int, format: Gptq) -> None:
        per_word = 32 // format.bits
        if inputs % per_word or outputs % per_word:
            raise LoadError(f"{outputs} outputs and {inputs} inputs do not fill words of {per_word}")
        self.outputs, self.inputs, self.bits = outputs, inputs, format.bits
        self.group = format.group or inputs
        groups = -(-inputs // self.group)
        must_be(tensors, qweight=(inputs // per_word, outputs), scales=(groups, outputs))
        must_be(tensors, qzeros=(groups, outputs // per_word))
        if "g_idx" in tensors:
            must_be(tensors, g_idx=(inputs,))
            self.order = grouped(tensors["g_idx"], self.group)
        self.bytes = bytes_of(tensors)
        self._tensors, self._format = tensors, format

    def piece(self, first: int, last: int) -> Codes:
        tensors, bits = self._tensors, self.bits
        # Turned only once it lies dense, for which torch is twice as fast.
        codes = unpacked_words(tensors["qweight"][:, first:last].contiguous().t(), bits)
        if self.order is not None:
            codes = codes[:, self.order]
        per_word = 32 // bits
        start = first // per_word
        zeros = unpacked_words(tensors["qzeros"][:, start : -(-last // per_word)], bits)
        zeros = zeros[:, first - start * per_word : last - start * per_word]
        if self._format.zero_less_one:
            zeros = (zeros + 1) & (2**bits - 1)
        return Codes(codes, tensors["scales"][:, first:last].t().float().contiguous(), zeros.t().float().contiguous())


def gptq(said: Mapping[str, Any]) -> PackedFormat:
    """The format that a quantization_config describes. Raises LoadError if it is not kept."""
    bits = said.get("bits")
    if bits not in (4, 8):
        raise LoadError(f"is GPTQ in {bits!r} bits: take one in 4 or 8 bits, {UNPACKED}")
    version = said.get("checkpoint_format") or "gptq"
    if version not in ("gptq", "gptq_v2"):
        raise LoadError(f"is GPTQ in the form {str(version)[:40]!r}: take one in the form gptq, {UNPACKED}")
    group, groups = group_said(said)
    ordered = ", inputs in another order" if said.get("desc_act") else ""
    return Gptq(f"GPTQ, {bits} bits, {groups}{ordered}", "", int(bits), group, zero_less_one=version == "gptq")
