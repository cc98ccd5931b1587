"""Checkpoints of compressed-tensors (llm-compressor): codes packed along the inputs, or in 8 bits as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.checkpoint import Stored
from baton.loader.float8 import compressed_float8
from baton.loader.packed_format import UNPACKED, PackedFormat, bytes_of, grouped, must_be, unpacked_words
from baton.model.packed import Codes, PackedWeight

_PACKED, _WHOLE = "pack-quantized", "int-quantized"
_FLOATS = ("float-quantized",)


@dataclass(frozen=True, slots=True)
class Compressed(PackedFormat):
    """`words`: whether codes are packed in words. `sizes`: of all groups of inputs that the config names."""

    words: bool
    sizes: frozenset[int]

    @property
    def parts(self) -> tuple[str, ...]:
        return ("weight_packed" if self.words else "weight", *_OTHERS)

    def marks(self, tensor: Stored) -> bool:
        return self.words or tensor.dtype == "I8"

    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        return _CompressedWeight(tensors, outputs, inputs, self)


_OTHERS = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")


class _CompressedWeight(PackedWeight):
    def __init__(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int, format: Compressed) -> None:
        self.outputs, self.inputs = outputs, inputs
        self.bits = self._bits(tensors, outputs, inputs) if format.words else 8
        if not format.words:
            must_be(tensors, weight=(outputs, inputs))
        scales = tensors["weight_scale"]
        scales = scales.expand(outputs, 1) if scales.numel() == 1 else scales
        if scales.dim() != 2:
            raise LoadError(f"weight_scale is {list(scales.shape)}, which is not known")
        groups = scales.shape[1]
        known = {inputs, *format.sizes}
        self.group = next((size for size in sorted(known) if -(-inputs // size) == groups), 0)
        if len(scales) != outputs or not self.group:
            raise LoadError(f"weight_scale is {list(scales.shape)} for {outputs} outputs and {inputs} inputs")
        index = tensors.get("weight_g_idx")
        # Filled with -1 where inputs lie in their order.
        if index is not None and bool((index >= 0).all()):
            must_be(tensors, weight_g_idx=(inputs,))
            self.order = grouped(index, self.group)
        self.bytes = bytes_of(tensors)
        self._tensors, self._scales, self._words = tensors, scales, format.words
        self._zeros = self._read_zeros(groups)

    @staticmethod
    def _bits(tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> int:
        width = tensors["weight_packed"].shape[-1]
        bits = next((bits for bits in (4, 8) if width == -(-inputs * bits // 32)), 0)
        must_be(tensors, weight_packed=(outputs, width))
        if not bits:
            raise LoadError(f"weight_packed has {width} words for {inputs} inputs, which is neither 4 nor 8 bits")
        return bits

    def _read_zeros(self, groups: int) -> Tensor | None:
        """Unsigned zeros `[outputs, groups]`, or None if all are in the middle."""
        zeros = self._tensors.get("weight_zero_point")
        if zeros is None:
            return None
        if zeros.dtype is torch.int32:  # packed along the outputs, unlike codes
            zeros = unpacked_words(zeros.t(), self.bits).t()[: self.outputs]
        else:
            zeros = (zeros.short() + (1 << (self.bits - 1))).to(torch.uint8).expand(self.outputs, -1)
        if zeros.shape != (self.outputs, groups):
            raise LoadError(f"weight_zero_point is {list(zeros.shape)} and should be {[self.outputs, groups]}")
        return zeros

    def piece(self, first: int, last: int) -> Codes:
        middle = 1 << (self.bits - 1)
        if self._words:
            codes = unpacked_words(self._tensors["weight_packed"][first:last], self.bits)[:, : self.inputs]
        else:
            # A signed byte with its first bit turned is the byte and 128.
            codes = self._tensors["weight"][first:last].contiguous().view(torch.uint8) ^ 128
        if self.order is not None:
            codes = codes[:, self.order]
        scales = self._scales[first:last].float()
        if self._zeros is None:
            return Codes(codes, scales, torch.full_like(scales, middle))
        return Codes(codes, scales, self._zeros[first:last].float())


def compressed(said: Mapping[str, Any]) -> PackedFormat | None:
    """The format that a quantization_config describes; None if it is of another kind.

    Raises LoadError if it is one of integers, or of floats in 8 bits, that is not kept.
    """
    groups = [one for one in (said.get("config_groups") or {}).values() if isinstance(one, Mapping)]
    formats = {str(one.get("format") or said.get("format")) for one in groups} or {str(said.get("format"))}
    if not formats & {_PACKED, _WHOLE, *_FLOATS}:
        return None
    if len(formats) > 1:
        raise LoadError(f"mixes the forms {', '.join(sorted(formats))} of compressed-tensors: take one in one form")
    weights = [one.get("weights") or {} for one in groups]
    if formats & {*_FLOATS}:
        return compressed_float8(said, weights)
    bits = sorted({one.get("num_bits") for one in weights} & {4, 8}, key=str)
    if not bits or any(one.get("num_bits") not in (4, 8) or one.get("type", "int") != "int" for one in weights):
        odd = ", ".join(f"{one.get('type')} {one.get('num_bits')}" for one in weights)
        raise LoadError(f"is in compressed-tensors of {odd[:80]}: take one in 4 or 8 bits, {UNPACKED}")
    if said.get("transform_config"):
        raise LoadError(f"turns its activations (transform_config): take one without, {UNPACKED}")
    sparse = (said.get("sparsity_config") or {}).get("format", "dense")
    if sparse != "dense":
        raise LoadError(f"is sparse as well ({str(sparse)[:40]}): take one that is not, {UNPACKED}")
    sizes = frozenset(int(one["group_size"]) for one in weights if (one.get("group_size") or 0) > 0)
    grouped_by = ", ".join(f"groups of {size}" for size in sorted(sizes)) or "a scale for each output"
    rounded = [one["input_activations"].get("num_bits") for one in groups if one.get("input_activations")]
    note = f"activations are not rounded to {rounded[0]} bits, as the checkpoint asks for" if rounded else ""
    name = f"compressed-tensors, {' and '.join(map(str, bits))} bits, {grouped_by}"
    return Compressed(name, note, formats == {_PACKED}, sizes)
