"""Checkpoints in FP8: a number e4m3 for each weight, and scales for blocks, for outputs or for all of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.checkpoint import Stored
from baton.loader.packed_format import UNPACKED, PackedFormat, bytes_of, must_be
from baton.model.packed import Codes, PackedWeight

# Tensors of rounded activations, which are not rounded here.
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")
NOT_ROUNDED = "activations are not rounded to 8 bits, as the checkpoint asks for"


@dataclass(frozen=True, slots=True)
class Float8(PackedFormat):
    """`scale`: the tensor of a layer's scales. `block`: outputs and inputs that share one; None: the shape says it."""

    scale: str
    block: tuple[int, int] | None

    @property
    def parts(self) -> tuple[str, ...]:
        return ("weight", self.scale, *_OF_ACTIVATIONS)

    def marks(self, tensor: Stored) -> bool:
        return tensor.dtype == "F8_E4M3"

    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        return _Float8Weight(tensors, outputs, inputs, self)

    def left_to_stock(self, stored: Mapping[str, Stored]) -> bool:
        return any(".experts." in name for name in self.layers(stored))


class _Float8Weight(PackedWeight):
    float8 = True

    def __init__(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int, format: Float8) -> None:
        self.outputs, self.inputs, self.bits, self.group = outputs, inputs, 8, inputs
        must_be(tensors, weight=(outputs, inputs))
        scales, per = tensors[format.scale], 1
        if scales.numel() == 1:
            scales = scales.reshape(1, 1).expand(outputs, 1)
        elif format.block is not None:
            per, self.group = format.block[0], min(format.block[1], inputs)
            must_be(tensors, **{format.scale: (-(-outputs // per), -(-inputs // self.group))})
        else:
            scales = scales.unsqueeze(-1) if scales.dim() == 1 else scales
            if tuple(scales.shape) != (outputs, 1):
                raise LoadError(f"{format.scale} is {list(scales.shape)} for {outputs} outputs and {inputs} inputs")
        self.bytes = bytes_of(tensors)
        self._weight, self._scales, self._per = tensors["weight"], scales, per

    def piece(self, first: int, last: int) -> Codes:
        rows = torch.arange(first, last) // self._per
        return Codes(self._weight[first:last].view(torch.uint8), self._scales.float()[rows].contiguous())


def fp8(said: Mapping[str, Any]) -> PackedFormat:
    """The format that a quantization_config of the methods fp8 and fbgemm_fp8 describes. Raises LoadError."""
    if said.get("quant_method") == "fbgemm_fp8":
        return Float8("FP8 (fbgemm), a scale for each output", NOT_ROUNDED, "weight_scale", None)
    if said.get("fmt") not in (None, "e4m3"):
        raise LoadError(f"is FP8 in the form {str(said['fmt'])[:40]!r}: take one in e4m3, {UNPACKED}")
    block = block_said(said.get("weight_block_size", (128, 128)))
    named = f"blocks of {block[0]} x {block[1]}" if block else "a scale for each layer"
    return Float8(f"FP8, {named}", NOT_ROUNDED, "weight_scale_inv", block)


def block_said(block: Any) -> tuple[int, int] | None:
    """Outputs and inputs of a block, as a config names them; None if it names none. Raises LoadError."""
    if block is None:
        return None
    if isinstance(block, Sequence) and len(block) == 2 and all(isinstance(one, int) and one > 0 for one in block):
        return block[0], block[1]
    raise LoadError(f"has blocks of {str(block)[:40]!r}: two numbers are known")


def compressed_float8(said: Mapping[str, Any], weights: Sequence[Mapping[str, Any]]) -> PackedFormat:
    """The same of compressed-tensors, whose groups say `weights`. Raises LoadError."""
    kinds = {(one.get("type"), one.get("num_bits")) for one in weights}
    if kinds != {("float", 8)} or any(one.get("symmetric") is False for one in weights):
        odd = ", ".join(f"{one.get('type')} {one.get('num_bits')}" for one in weights)
        raise LoadError(f"is in compressed-tensors of {odd[:80]}: take one of floats in 8 bits, {UNPACKED}")
    blocks = {block_said(one["block_structure"]) for one in weights if one.get("block_structure")}
    strategies = {str(one.get("strategy")) for one in weights}
    if strategies & {"group", "tensor_group"} or len(blocks) > 1 or (blocks and strategies != {"block"}):
        how = ", ".join(sorted(strategies))
        raise LoadError(
            f"is in compressed-tensors of FP8 by {how[:80]}: take one by block, channel or tensor, {UNPACKED}"
        )
    block = next(iter(blocks), None)
    named = f"blocks of {block[0]} x {block[1]}" if block else "a scale for each output or layer"
    note = NOT_ROUNDED if any(one.get("input_activations") for one in _groups(said)) else ""
    return Float8(f"compressed-tensors, FP8, {named}", note, "weight_scale", block)


def _groups(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in (said.get("config_groups") or {}).values() if isinstance(one, Mapping)]
