"""How the native library keeps a weight that its checkpoint has as codes: without changing a number."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from ctypes import CDLL
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from baton.core.errors import LoadError
from baton.model.packed import Codes, PackedWeight
from baton.native import library as native
from baton.native import structs
from baton.native.packing import aligned

_PIECE_NUMBERS = 1 << 20
_HALF_EXPONENT = 15  # 2^15 is below the greatest float16
_MOST_IN_TABLE = 24  # see source/check.h
_MOST_DIGITS = 8
_FORM = "_native_form"


def bytes_of_codes(library: CDLL, kernels: Any, weight: PackedWeight) -> int:
    """Bytes of this weight when packed, rounded up to whole cache lines.

    Reads the whole weight, the first time. Raises LoadError if there are no products with such a weight.
    """
    return sum(aligned(size) for size in _sizes(library, kernels, weight, form_of(weight)).values())


def pack_codes(library: CDLL, kernels: Any, weight: PackedWeight, planes: int, address: int) -> structs.Weight:
    """Packs the weight into `bytes_of_codes` bytes at this address, a cache line's; piece by piece.

    The native library unpacks to the numbers of `PackedWeight.unpacked`. `planes`: bytes of an activation in products
    with 4-bit codes, 1 or 2; with 8-bit codes an activation has 2. Raises LoadError as `bytes_of_codes`.
    """
    form = form_of(weight)
    places: dict[str, int | None] = {}
    at = address
    for name, size in _sizes(library, kernels, weight, form).items():
        places[name] = at if size else None
        at += aligned(size)
    for name, numbers in (("table", form.table), ("order", weight.order)):
        to = places[name]
        if numbers is not None and to is not None:
            kept = (numbers.int() if name == "order" else numbers).contiguous()
            ctypes.memmove(to, kept.data_ptr(), kept.nbytes)
    for first, piece in _pieces(weight):
        _pack_piece(form, weight.inputs, places, first, piece)
    sizes = weight.outputs, weight.inputs
    packed = structs.Weight(form.kind, *sizes, places["data"], places["scales"], form.group, planes)
    packed.power, packed.wide, packed.zero = form.power, form.wide, form.zero
    packed.zeros, packed.mins = places["zeros"], places["mins"]
    packed.table, packed.order = places["table"], places["order"]
    return packed


def reads(weight: PackedWeight, planes: int) -> tuple[Any, ...]:
    """What products with this weight read of rows. Rows that were made ready for an equal one serve this one too."""
    form = form_of(weight)
    order = None if weight.order is None else tuple(weight.order.tolist())
    kept = {native.INT4: planes, native.FLOAT8: 0}.get(form.kind, math.gcd(form.group, native.GROUP))
    return form.kind, weight.inputs, kept, order


@dataclass(frozen=True, slots=True)
class Form:
    """How a weight's codes are kept: fields of `Weight` in source/kernels.h, and how codes and scales get there.

    `added`: to each code and zero. `table`: in 8 bits it is what is kept in place of a code. `shrink`: scales are
    multiplied with this power of two, because the table's entries were divided by it.
    """

    kind: int
    group: int
    wide: bool
    power: float
    zero: int
    zeros: bool
    mins: bool
    added: int
    table: Tensor | None
    shrink: float


def form_of(weight: PackedWeight) -> Form:
    """Returns how this weight is kept. Raises LoadError if there are no products with such a weight."""
    # The weight itself remembers it: to find out, all of it must be read.
    known = vars(weight)
    if _FORM not in known:
        known[_FORM] = _chosen(weight)
    form: Form = known[_FORM]
    return form


def _chosen(weight: PackedWeight) -> Form:
    group = weight.group if weight.group < weight.inputs else _up(weight.inputs, native.GROUP)
    if weight.float8:
        return _of_float8(weight, group)
    if group % native.UNIT:
        raise _refused(f"groups of {group} inputs; multiples of {native.UNIT} are there, or all inputs")
    if weight.order is not None and not torch.equal(weight.order.sort().values, torch.arange(weight.inputs)):
        raise _refused("an order that does not have each input once")
    seen = _Survey(weight)
    table, shrink = _whole(weight.table)
    if table is not None and seen.zeros is not None:
        raise _refused("both a table and zeros")
    least, most = seen.codes if table is None else (int(table.min()), int(table.max()))
    low, high = seen.zeros or (0, 0)
    if weight.bits == 4 and group % native.CHUNK == 0 and (table is None or most - least <= _MOST_IN_TABLE):
        kind, added = native.INT4, 0 if table is None else -least
    elif low == high and least - low >= -128 and most - low <= 127:
        kind, added = native.INT8, -low
    else:
        kind, added = native.INT8, -128 if max(most, high) > 127 else 0
    if not -128 <= low + added <= high + added <= 127:
        raise _refused(f"zeros from {low} to {high}")
    if not -128 <= least + added <= most + added <= 127:
        raise _refused(f"a table from {least} to {most}")
    wide, power = seen.scales_as(shrink)
    zeros = low != high
    kept = None if table is None else (table + added).to(torch.uint8 if kind == native.INT4 else torch.int8)
    return Form(kind, group, wide, power, 0 if zeros else low + added, zeros, seen.mins, added, kept, shrink)


def _of_float8(weight: PackedWeight, group: int) -> Form:
    if group % native.UNIT or weight.order is not None:
        raise _refused(f"float8 numbers in groups of {group} inputs, or in another order than the model's")
    for first, piece in _pieces(weight):
        if bool((piece.codes & 127 == 127).any()):
            raise LoadError(f"packed weights are NaN in the outputs from {first} on: take another checkpoint")
    return Form(native.FLOAT8, group, True, 1.0, 0, False, False, 0, None, 1.0)


class _Survey:
    """What there is in a weight. `codes`: the least and the greatest; `zeros`: likewise, None if it has none."""

    def __init__(self, weight: PackedWeight) -> None:
        least, most, zeros = [], [], []
        self.mins = False
        self._scales: list[Tensor] = []
        for _, piece in _pieces(weight):
            least.append(int(piece.codes.min()))
            most.append(int(piece.codes.max()))
            self._scales.append(piece.scales)
            if piece.zeros is not None:
                if not torch.equal(piece.zeros, piece.zeros.round()):
                    raise _refused("zeros that are not whole")
                zeros += [int(piece.zeros.min()), int(piece.zeros.max())]
            if piece.mins is not None:
                self.mins = True
                self._scales.append(piece.mins)
        self.codes = min(least), max(most)
        if self.codes[1] >= 1 << weight.bits:
            raise _refused(f"a code of {self.codes[1]} in {weight.bits} bits")
        self.zeros = (min(zeros), max(zeros)) if zeros else None

    def scales_as(self, shrink: float) -> tuple[bool, float]:
        """Whether scales and mins must be float32, and else the power of two by which they are float16."""
        # Piece by piece: a large layer has tens of millions.
        top = max(float(some.abs().max()) for some in self._scales) * shrink
        if top == 0 or not math.isfinite(top):
            return top != 0, 1.0
        if not all(torch.equal(some * shrink / shrink, some) for some in self._scales):
            least = min(float(some.abs().min()) for some in self._scales)
            raise _refused(f"scales as small as {least * shrink:g} with its table")
        power = 2.0 ** max(math.frexp(top)[1] - _HALF_EXPONENT, -126)
        exact = all(torch.equal((some * shrink / power).half().float() * power, some * shrink) for some in self._scales)
        return (False, power) if exact else (True, 1.0)


def _whole(table: Tensor | None) -> tuple[Tensor | None, float]:
    """A table's entries as integers, times a power of two that is returned too."""
    if table is None:
        return None, 1.0
    for digits in range(_MOST_DIGITS):
        whole = table * 2.0**digits
        if torch.equal(whole, whole.round()) and float(whole.abs().max()) <= 128:
            return whole.int(), 2.0**-digits
    raise _refused("a table of numbers that are not small integers times a power of two")


def _pieces(weight: PackedWeight) -> Iterator[tuple[int, Codes]]:
    """The weight in pieces of whole panels but for the last, each with its first output."""
    step = max(1, _PIECE_NUMBERS // weight.inputs // native.PANEL) * native.PANEL
    for first in range(0, weight.outputs, step):
        yield first, weight.piece(first, min(first + step, weight.outputs))


def _sizes(library: CDLL, kernels: Any, weight: PackedWeight, form: Form) -> dict[str, int]:
    """Bytes of each part of a packed weight, in their order in memory."""
    of_groups = _up(weight.outputs, native.PANEL) * -(-weight.inputs // form.group)
    scale = 4 if form.wide else 2
    return {
        "data": library.baton_weight_bytes(kernels, form.kind, weight.outputs, weight.inputs),
        "scales": scale * of_groups,
        "zeros": of_groups if form.zeros else 0,
        "mins": scale * of_groups if form.mins else 0,
        "table": 16 if form.kind == native.INT4 and form.table is not None else 0,
        "order": 0 if weight.order is None else 4 * weight.inputs,
    }


def _pack_piece(form: Form, inputs: int, places: dict[str, int | None], first: int, piece: Codes) -> None:
    """Writes some panels; the layout is in source/kernels.h."""
    panels, panel = -(-len(piece.codes) // native.PANEL), first // native.PANEL
    if form.kind == native.INT4:
        steps = _up(inputs, native.CHUNK) // 8
        fours = _panels(piece.codes, 8 * steps).view(torch.int32).view(panels, native.PANEL, steps, 2)
        data = fours[..., 1] << 4  # of four bytes at once: a code leaves room for it
        data |= fours[..., 0]
    elif form.kind == native.FLOAT8:
        data = _panels(piece.codes, _up(inputs, native.UNIT))
    else:
        codes = form.table[piece.codes.int()] if form.table is not None else (piece.codes.short() + form.added).char()
        data = _panels(codes, _up(inputs, native.GROUP)).view(torch.int16)
    _put(places["data"], panel, data)
    groups = -(-inputs // form.group)
    if form.zeros and piece.zeros is not None:
        _put(places["zeros"], panel, _panels((piece.zeros + form.added).char(), groups))
    for name, scales, factor in (("scales", piece.scales, form.shrink), ("mins", piece.mins, 1.0)):
        if scales is not None:
            scales = scales * (factor / form.power)
            _put(places[name], panel, _panels(scales if form.wide else scales.half(), groups))


def _panels(numbers: Tensor, width: int) -> Tensor:
    """`[outputs, columns]` as `[panels, PANEL, width]`, with zeros where there is nothing."""
    outputs, columns = numbers.shape
    if outputs % native.PANEL or columns != width:
        numbers = pad(numbers, (0, width - columns, 0, -outputs % native.PANEL))
    return numbers.contiguous().view(-1, native.PANEL, width)


def _put(address: int | None, panel: int, numbers: Tensor) -> None:
    """Writes `[panels, PANEL, columns]` from this panel on, outputs side by side."""
    assert address is not None
    count, size = numbers.numel(), numbers.element_size()
    at = address + panel * native.PANEL * numbers.shape[2] * size
    to = torch.frombuffer((ctypes.c_char * (count * size)).from_address(at), dtype=numbers.dtype)
    # One by one, for which torch is several times as fast.
    for one, panel_of in zip(to.view(-1, numbers.shape[2], native.PANEL), numbers, strict=True):
        one.copy_(panel_of.t())


def _up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


def _refused(what: str) -> LoadError:
    return LoadError(f"native kernels have no products with packed weights with {what}")
