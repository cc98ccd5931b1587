"""What rows keep, packed: all parts one behind the other in one run of bytes, on the device or on the host.

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

# What bytes are moved as: the widest numbers that all parts can be cut into.
_UNITS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True, slots=True)
class Form:
    """How parts lie in a piece: the widest numbers first, so that each begins at a multiple of its own size."""

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
        """Which part is where."""
        return sorted(range(len(self.dtypes)), key=lambda at: -self.dtypes[at].itemsize)

    def views(self, pieces: Tensor) -> list[Tensor]:
        """The parts in pieces `[pieces, bytes]`, in the row's order, each `[pieces, ...]`."""
        sizes, found = self.sizes, dict[int, Tensor]()
        start = 0
        for at in self.order:
            part = pieces[:, start : start + sizes[at]]
            # Of one piece alone the next one's first number need not be at a multiple of its size.
            part = part.view(self.dtypes[at]) if len(pieces) > 1 else part[0].view(self.dtypes[at])[None]
            found[at] = part.unflatten(1, self.shapes[at])
            start += sizes[at]
        return [found[at] for at in range(len(sizes))]

    def kinds(self) -> Iterator[tuple[torch.dtype, int]]:
        """Runs of one kind of number in a piece: which, and how many bytes."""
        sizes = self.sizes
        for dtype, group in itertools.groupby(self.order, lambda at: self.dtypes[at]):
            yield dtype, sum(sizes[at] for at in group)


def form_of(parts: Sequence[Tensor], blocks: int = 1) -> Form:
    """Of each of so many pieces that parts are cut into, by their first dimension."""
    shapes = [tuple(part.shape) for part in parts]
    if blocks > 1:
        shapes = [(shape[0] // blocks, *shape[1:]) for shape in shapes]
    return Form(tuple(shapes), tuple(part.dtype for part in parts))


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Bytes on the host, which are there when `mark` is reached."""

    memory: Extent
    form: Form
    mark: CopyEvent


class Packed(OffloadedParts):
    """A row's parts on the host, in one piece or cut into several along its tokens.

    As a sequence it is the parts themselves, views of the host's memory where there is one piece; that waits for them.
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
            piece.mark.wait()
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
    """`[pieces]`; several kinds of numbers are there only in one piece."""
    found: list[Tensor] = []
    start = 0
    for dtype, size in form.kinds():
        numbers = staging if size == staging.shape[1] else staging[:, start : start + size].contiguous()
        found.append(numbers.view(-1).view(dtype).view(len(staging), -1).sum(1, dtype=torch.float32).isfinite())
        start += size
    return found[0] if len(found) == 1 else torch.stack(found).all(0)
