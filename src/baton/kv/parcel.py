"""What rows keep, packed: gathered on the device into one run of bytes, and copied to the host and back beside steps.

A piece is a row's parts, or those of a run of its tokens, one behind the other. Gathering and scattering are one
operation of torch each, however many layers and pieces there are.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.kv.lane import Lane, Mark
from baton.kv.pinned import Extent, HostMemory

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
    mark: Mark


class Packed(Sequence[Tensor]):
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


@dataclass(frozen=True, slots=True)
class Leaving:
    """Pieces that are being copied out. `fine` `[pieces]`: which of them are finite, when they are there."""

    pieces: list[Piece]
    mark: Mark
    fine: Tensor | None


_Staging = tuple[Form, Tensor]
"""Pieces of one form on the device, `[pieces, bytes]`."""


class Arrival:
    """Parts that are being copied in; they are in their row after `land`, at which the device waits for them."""

    def __init__(
        self, lane: Lane, mark: Mark, staged: Sequence[tuple[Form, Tensor]], targets: Sequence[Tensor]
    ) -> None:
        self.bytes = sum(staging.numel() for _, staging in staged)
        self._lane = lane
        self._mark = mark
        self._staged: Sequence[tuple[Form, Tensor]] = staged
        self._targets = targets

    def done(self) -> bool:
        """Whether to land takes no waiting."""
        return not self._staged or self._mark.done()

    def over(self) -> bool:
        """Whether it takes no more memory of the device."""
        return not self._staged

    def finish(self) -> None:
        self.land()

    def land(self) -> None:
        """No matter if it did before."""
        if not self._staged:
            return
        self._mark.join()
        start = 0
        for form, staging in self._staged:
            self._lane.hand_over(staging)
            targets = self._targets
            if len(self._staged) > 1:
                count = form.shapes[0][0] * len(staging)
                targets = [target[start : start + count] for target in targets]
                start += count
            _scatter(form, staging, targets)
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._staged, self._targets = (), ()


@dataclass(frozen=True, slots=True)
class _Staged:
    """What a copy to the host takes of the device's memory while it runs."""

    bytes: int
    mark: Mark

    def over(self) -> bool:
        return self.mark.done()

    def finish(self) -> None:
        self.mark.wait()


class Copies:
    """Moves parts between rows and the host. On the device it takes `most` bytes, or what one row takes.

    Raises an allocator's error where there is no memory, and has changed nothing then.
    """

    def __init__(self, lane: Lane, host: HostMemory, most: int) -> None:
        self.host = host
        self._lane = lane
        self._most = most
        self._underway: deque[Arrival | _Staged] = deque()

    def out(self, parts: Sequence[Tensor], *, blocks: int = 1, checked: bool = False) -> Leaving:
        """Copies parts, cut along their first dimension into so many pieces. The row may change as soon as it returns.

        `checked`: it is found out which pieces are finite, by their sums; one that overflows is taken for what it looks
        like.
        """
        form = form_of(parts, blocks)
        size = form.bytes
        memory = self.host.take(blocks, size)
        try:
            self._make_room(blocks * size)
            staging = torch.empty(blocks, size, dtype=torch.uint8, device=self._lane.device)
            _gather(form, parts, staging)
            found = _finite(form, staging) if checked else None
        except Exception:
            for extent in memory:
                self.host.give(extent)
            raise
        fine = None if found is None else self._lane.flags(blocks)

        def copy() -> None:
            start = 0
            for extent in memory:
                extent.bytes.copy_(staging.view(-1)[start : start + extent.size], non_blocking=True)
                start += extent.size
            if fine is not None and found is not None:
                fine.copy_(found, non_blocking=True)

        mark = self._lane.begin(copy, [staging] if found is None else [staging, found], behind=True)
        self._underway.append(_Staged(blocks * size, mark))
        cut = [extent.cut(at, size) for extent in memory for at in range(0, extent.size, size)]
        return Leaving([Piece(extent, form, mark) for extent in cut], mark, fine)

    def into(self, packed: Packed, targets: Sequence[Tensor]) -> Arrival:
        """Begins to copy; `targets` are the row's parts, which nobody writes until it has landed."""
        groups = [(form, [*some]) for form, some in itertools.groupby(packed.pieces, lambda piece: piece.form)]
        self._make_room(packed.bytes)
        staged = [(form, self._lane.empty(len(some) * form.bytes).view(len(some), -1)) for form, some in groups]

        def copy() -> None:
            for (_, pieces), (_, staging) in zip(groups, staged, strict=True):
                start = 0
                for extent in _joined([piece.memory for piece in pieces]):
                    staging.view(-1)[start : start + extent.size].copy_(extent.bytes, non_blocking=True)
                    start += extent.size

        arrival = Arrival(self._lane, self._lane.begin(copy, behind=False), staged, targets)
        self._underway.append(arrival)
        return arrival

    def release(self, packed: Packed) -> None:
        """Gives back the host's memory."""
        for piece in packed.pieces:
            self.host.give(piece.memory)

    def _make_room(self, size: int) -> None:
        """What is underway takes no more than it may with so much more: the oldest is waited for."""
        self._underway = deque(one for one in self._underway if not one.over())
        while self._underway and sum(one.bytes for one in self._underway) + size > self._most:
            self._underway.popleft().finish()


def _joined(extents: Sequence[Extent]) -> Iterator[Extent]:
    """The same bytes, where one begins at the other's end as one."""
    last: Extent | None = None
    for extent in extents:
        if last is not None and last.base is extent.base and last.start + last.size == extent.start:
            last = last.cut(0, last.size + extent.size)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def _unit(parts: Sequence[Tensor]) -> torch.dtype:
    sizes = [part.nbytes // len(part) for part in parts]
    starts = [part.storage_offset() * part.element_size() for part in parts]
    return _UNITS[math.gcd(8, *sizes, *starts)]


def _gather(form: Form, parts: Sequence[Tensor], staging: Tensor) -> None:
    if not all(part.is_contiguous() for part in parts):
        # Rows that are laid out token by token: as many copies as there are parts.
        torch._foreach_copy_(form.views(staging), _by_piece(parts, staging))
        return
    unit = _unit(parts)
    ordered = [parts[at].view(len(staging), -1).view(unit) for at in form.order]
    torch.cat(ordered, dim=1, out=staging.view(unit))


def _scatter(form: Form, staging: Tensor, parts: Sequence[Tensor]) -> None:
    if not all(part.is_contiguous() for part in parts):
        torch._foreach_copy_(_by_piece(parts, staging), form.views(staging))
        return
    unit = _unit(parts)
    ordered = [parts[at].view(len(staging), -1).view(unit) for at in form.order]
    torch.split_with_sizes_copy(staging.view(unit), [part.shape[1] for part in ordered], dim=1, out=ordered)


def _by_piece(parts: Sequence[Tensor], staging: Tensor) -> list[Tensor]:
    return [part.unflatten(0, (len(staging), -1)) for part in parts]


def _finite(form: Form, staging: Tensor) -> Tensor:
    """`[pieces]`; several kinds of numbers are there only in one piece."""
    found: list[Tensor] = []
    start = 0
    for dtype, size in form.kinds():
        numbers = staging if size == staging.shape[1] else staging[:, start : start + size].contiguous()
        found.append(numbers.view(-1).view(dtype).view(len(staging), -1).sum(1, dtype=torch.float32).isfinite())
        start += size
    return found[0] if len(found) == 1 else torch.stack(found).all(0)
