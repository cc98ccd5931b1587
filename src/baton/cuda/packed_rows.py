"""What rows keep, packed: all parts one after the other in one run of bytes, on the device or on the host.

A piece is a row's parts, or those of a run of its tokens. Gathering and scattering are one operation of torch each,
however many layers and pieces there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.cuda.pinned_memory import Extent
from baton.kv.port import CopyEvent, OffloadedParts

# The units in which bytes are moved: the widest into which all parts can be cut.
_UNITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True, slots=True)
class Form:
    """How parts are arranged in a piece: the widest numbers first, so that each begins at a multiple of its size."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each part."""
        return [math.prod(shape) * dtype.itemsize for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]

    @property
    def bytes(self) -> int:
        return sum(self.sizes)

    @property
    def order(self) -> list[int]:
        """The parts in the order of the piece."""
        return sorted(range(len(self.dtypes)), key=lambda at: -self.dtypes[at].itemsize)

    def views(self, pieces: Tensor) -> list[Tensor]:
        """The parts in pieces `[pieces, bytes]`, in the row's order, each `[pieces, ...]`."""
        sizes, views = self.sizes, dict[int, Tensor]()
        start = 0
        for at in self.order:
            part = pieces[:, start : start + sizes[at]]
            # In a single piece the next part need not begin at a multiple of its number's size.
            part = part.view(self.dtypes[at]) if len(pieces) > 1 else part[0].view(self.dtypes[at])[None]
            views[at] = part.unflatten(1, self.shapes[at])
            start += sizes[at]
        return [views[at] for at in range(len(sizes))]

    def kinds(self) -> Iterator[tuple[torch.dtype, int]]:
        """Runs of one number format in a piece: which, and how many bytes."""
        sizes = self.sizes
        for dtype, group in itertools.groupby(self.order, lambda at: self.dtypes[at]):
            yield dtype, sum(sizes[at] for at in group)


def form_of(parts: Sequence[Tensor], blocks: int = 1) -> Form:
    """The form of each of so many pieces into which parts are cut along their first dimension."""
    shapes = [tuple(part.shape) for part in parts]
    if blocks > 1:
        shapes = [(shape[0] // blocks, *shape[1:]) for shape in shapes]
    return Form(tuple(shapes), tuple(part.dtype for part in parts))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Bytes on the host, which are valid when `event` is reached."""

    memory: Extent
    form: Form
    event: CopyEvent


class Packed(OffloadedParts):
    """A row's parts on the host, in one piece or in several along its tokens.

    As a sequence it is the parts themselves, views of the host's memory if there is one piece; reading waits for them.
    """

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)

    @property
    def bytes(self) -> int:
        return sum(piece.memory.size for piece in self.pieces)

    def __len__(self) -> int:
        return len(self.pieces[0].form.shapes)

    def __getitem__(self, at: Any) -> Any:
        for piece in self.pieces:
            piece.event.wait()
        cut = [[part[0] for part in piece.form.views(piece.memory.bytes[None])] for piece in self.pieces]
        return (cut[0] if len(cut) == 1 else [torch.cat(some) for some in zip(*cut, strict=True)])[at]


def _unit(parts: Sequence[Tensor]) -> torch.dtype:
    sizes = [part.nbytes // len(part) for part in parts]
    starts = [part.storage_offset() * part.element_size() for part in parts]
    return _UNITS[math.gcd(8, *sizes, *starts)]


def gather(form: Form, parts: Sequence[Tensor], staging: Tensor) -> None:
    if not all(part.is_contiguous() for part in parts):
        # Rows that are laid out token by token: as many copies as there are parts.
        torch._foreach_copy_(form.views(staging), _by_piece(parts, staging))
        return
    unit = _unit(parts)
    ordered = [parts[at].view(len(staging), -1).view(unit) for at in form.order]
    torch.cat(ordered, dim=1, out=staging.view(unit))


def scatter(form: Form, staging: Tensor, parts: Sequence[Tensor]) -> None:
    if not all(part.is_contiguous() for part in parts):
        torch._foreach_copy_(_by_piece(parts, staging), form.views(staging))
        return
    unit = _unit(parts)
    ordered = [parts[at].view(len(staging), -1).view(unit) for at in form.order]
    torch.split_with_sizes_copy(staging.view(unit), [part.shape[1] for part in ordered], dim=1, out=ordered)


def _by_piece(parts: Sequence[Tensor], staging: Tensor) -> list[Tensor]:
    return [part.unflatten(0, (len(staging), -1)) for part in parts]


def finite(form: Form, staging: Tensor) -> Tensor:
    """`[pieces]`; only a single piece has several number formats."""
    by_format: list[Tensor] = []
    start = 0
    for dtype, size in form.kinds():
        numbers = staging if size == staging.shape[1] else staging[:, start : start + size].contiguous()
        by_format.append(numbers.view(-1).view(dtype).view(len(staging), -1).sum(1, dtype=torch.float32).isfinite())
        start += size
    return by_format[0] if len(by_format) == 1 else torch.stack(by_format).all(0)
