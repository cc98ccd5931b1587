"""Linear layers of GGUF files: rows of blocks, each with its scales and its codes.

The formats are those of ggml. A layer's blocks are kept as they are in the file; `kind` is ggml's number of their form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.loader.packed_format import PackedFormat, bytes_of, must_be
from baton.model.packed import Codes, PackedWeight

METHOD, FORM = "baton-packed", "gguf"


@dataclass(frozen=True, slots=True)
class Kind:
    """A form of blocks: `numbers` in `bytes`, in groups of `group`. `read`: blocks `[outputs, blocks, bytes]`.

    `table`: what each code means, if it does not mean itself.
    """

    name: str
    numbers: int
    bytes: int
    bits: int
    group: int
    read: Callable[[Tensor], Codes]
    table: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Gguf(PackedFormat):
    """The layers of a GGUF file, each in a form of its own."""

    joints: ClassVar[tuple[str, ...]] = (".", "_")

    @property
    def parts(self) -> tuple[str, ...]:
        return ("blocks", "kind")

    def weight(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int) -> PackedWeight:
        must_be(tensors, kind=(1,))
        kind = KINDS.get(int(tensors["kind"]))
        if kind is None:
            raise LoadError(f"blocks of the form {int(tensors['kind'])} are not known")
        return _BlockWeight(tensors, outputs, inputs, kind)


class _BlockWeight(PackedWeight):
    def __init__(self, tensors: Mapping[str, Tensor], outputs: int, inputs: int, kind: Kind) -> None:
        if inputs % kind.numbers:
            raise LoadError(f"{inputs} inputs do not fill blocks of {kind.numbers}")
        must_be(tensors, blocks=(outputs, inputs // kind.numbers * kind.bytes))
        self.outputs, self.inputs, self.bits, self.group = outputs, inputs, kind.bits, kind.group
        self.table = None if kind.table is None else torch.tensor(kind.table, dtype=torch.float32)
        self.bytes = bytes_of(tensors)
        self._blocks, self._kind = tensors["blocks"], kind

    def piece(self, first: int, last: int) -> Codes:
        return self._kind.read(self._blocks[first:last].view(last - first, -1, self._kind.bytes))


def gguf(said: Mapping[str, Any]) -> PackedFormat:
    """The format of a folder that `gguf_file` made. Raises LoadError for a folder of another version."""
    if said.get("form") != FORM:
        raise LoadError(f"is packed in the form {str(said.get('form'))[:40]!r}, which is not known")
    return Gguf(f"GGUF, {said.get('kinds', '')}", "")


def _half(two_bytes: Tensor) -> Tensor:
    """Float16 numbers `[..., 2]` of bytes, as float32 `[...]`."""
    return two_bytes.contiguous().view(torch.float16)[..., 0].float()


def _nibbles(data: Tensor) -> Tensor:
    """All low halves of `[..., bytes]`, then all high ones."""
    return torch.cat((data & 15, data >> 4), -1)


def _q8_0(blocks: Tensor) -> Codes:
    scales = _half(blocks[..., :2])
    # A signed byte with its first bit turned is the byte and 128.
    return Codes((blocks[..., 2:] ^ 128).flatten(1), scales, torch.full_like(scales, 128))


def _q4_0(blocks: Tensor) -> Codes:
    scales = _half(blocks[..., :2])
    return Codes(_nibbles(blocks[..., 2:]).flatten(1), scales, torch.full_like(scales, 8))


def _q4_1(blocks: Tensor) -> Codes:
    scales, least = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    return Codes(_nibbles(blocks[..., 4:]).flatten(1), scales, mins=-least)


def _fifth_bits(four_bytes: Tensor) -> Tensor:
    """The fifth bits of 32 codes `[..., 32]`, where they belong."""
    bits: Tensor = four_bytes[..., None] >> torch.arange(8, dtype=torch.uint8) & 1
    return bits.flatten(-2) << 4


def _q5_0(blocks: Tensor) -> Codes:
    scales = _half(blocks[..., :2])
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return Codes(codes.flatten(1), scales, torch.full_like(scales, 16))


def _q5_1(blocks: Tensor) -> Codes:
    scales, least = _half(blocks[..., :2]), _half(blocks[..., 2:4])
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return Codes(codes.flatten(1), scales, mins=-least)


def _pairs(data: Tensor) -> Tensor:
    """Codes of 2 bits of `[..., 64]`: of each 32 bytes first all lowest bits. `[..., 2, 4, 32]`."""
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8)[:, None]
    codes: Tensor = data.unflatten(-1, (2, 1, 32)) >> shifts & 3
    return codes


def _q2_k(blocks: Tensor) -> Codes:
    codes, both = _pairs(blocks[..., 16:80]).flatten(1), blocks[..., :16]
    scales = (_half(blocks[..., 80:82])[..., None] * (both & 15).float()).flatten(1)
    return Codes(codes, scales, mins=(_half(blocks[..., 82:84])[..., None] * (both >> 4).float()).flatten(1))


def _q3_k(blocks: Tensor) -> Codes:
    high = blocks[..., None, :32] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    codes = _pairs(blocks[..., 32:96]) | high.unflatten(-2, (2, 4)) << 2
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8)[:, None]
    upper = (blocks[..., None, 104:108] >> shifts & 3).flatten(-2)
    small = (_nibbles(blocks[..., 96:104]) | upper << 4).float() - 32
    scales = (_half(blocks[..., 108:110])[..., None] * small).flatten(1)
    return Codes(codes.flatten(1), scales, torch.full_like(scales, 4))


def _iq4_nl(blocks: Tensor) -> Codes:
    return Codes(_nibbles(blocks[..., 2:]).flatten(1), _half(blocks[..., :2]))


def _iq4_xs(blocks: Tensor) -> Codes:
    low = torch.stack((blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4), -1).flatten(-2)
    high = (blocks[..., 2:4, None] >> torch.tensor((0, 2, 4, 6), dtype=torch.uint8) & 3).flatten(-2)
    scales = (_half(blocks[..., :2])[..., None] * ((low | high << 4).float() - 32)).flatten(1)
    return Codes(_nibbles(blocks[..., 8:].unflatten(-1, (8, 16))).flatten(1), scales)


def _mxfp4(blocks: Tensor) -> Codes:
    return Codes(_nibbles(blocks[..., 1:]).flatten(1), half_powers(blocks[..., 0]))


def half_powers(exponents: Tensor) -> Tensor:
    """Scales in 8 bits of exponent (E8M0), halved, because the table E2M1_TWICE has twice what a code means."""
    return torch.ldexp(torch.ones(exponents.shape), exponents.int() - 128)


def _scales_and_mins(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Of eight groups of a block, each 6 bits times a float16: `[outputs, blocks * 8]`."""
    low, mins, high = blocks[..., 4:16].split(4, -1)
    scales = torch.cat((low & 63, (high & 15) | (low >> 6 << 4)), -1)
    least = torch.cat((mins & 63, (high >> 4) | (mins >> 6 << 4)), -1)
    return (
        (_half(blocks[..., 0:2])[..., None] * scales.float()).flatten(1),
        (_half(blocks[..., 2:4])[..., None] * least.float()).flatten(1),
    )


def _q4_k(blocks: Tensor) -> Codes:
    scales, mins = _scales_and_mins(blocks)
    return Codes(_nibbles(blocks[..., 16:].unflatten(-1, (4, 32))).flatten(1), scales, mins=mins)


def _q5_k(blocks: Tensor) -> Codes:
    scales, mins = _scales_and_mins(blocks)
    low = _nibbles(blocks[..., 48:].unflatten(-1, (4, 32))).unflatten(-1, (2, 32)).flatten(-3, -2)
    groups = torch.arange(8, dtype=torch.uint8)[:, None]
    high = blocks[..., 16:48][..., None, :] >> groups & 1
    return Codes((low | high << 4).flatten(1), scales, mins=mins)


def _q6_k(blocks: Tensor) -> Codes:
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).unflatten(-1, (4, 32))
    shifts = torch.tensor((0, 2, 4, 6), dtype=torch.uint8)[:, None]
    high = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts & 3
    small = blocks[..., 192:208].contiguous().view(torch.int8).float()
    scales = (_half(blocks[..., 208:210])[..., None] * small).flatten(1)
    return Codes((low | high << 4).flatten(1), scales, torch.full_like(scales, 32))


_FOUR_BITS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)

# By ggml's numbers.
KINDS: Mapping[int, Kind] = {
    2: Kind("Q4_0", 32, 18, 4, 32, _q4_0),
    3: Kind("Q4_1", 32, 20, 4, 32, _q4_1),
    6: Kind("Q5_0", 32, 22, 8, 32, _q5_0),
    7: Kind("Q5_1", 32, 24, 8, 32, _q5_1),
    8: Kind("Q8_0", 32, 34, 8, 32, _q8_0),
    10: Kind("Q2_K", 256, 84, 8, 16, _q2_k),
    11: Kind("Q3_K", 256, 110, 8, 16, _q3_k),
    12: Kind("Q4_K", 256, 144, 4, 32, _q4_k),
    13: Kind("Q5_K", 256, 176, 8, 32, _q5_k),
    14: Kind("Q6_K", 256, 210, 8, 16, _q6_k),
    20: Kind("IQ4_NL", 32, 18, 4, 32, _iq4_nl, _FOUR_BITS),
    23: Kind("IQ4_XS", 256, 136, 4, 32, _iq4_xs, _FOUR_BITS),
    39: Kind("MXFP4", 32, 17, 4, 32, _mxfp4, E2M1_TWICE),
}
