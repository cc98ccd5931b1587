"""Rows and blocks on their way between a device and the host, beside the device's steps (`cuda/copy_stream.py`).

To the host they are gathered behind all that the device was given before, and their row may be another's from then on.
From there they wait in memory of their own on the device, until their row is to be fed.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.cuda.copy_stream import CopyStream
from baton.cuda.packed_rows import Form, Packed, Piece, finite, form_of, gather, scatter
from baton.cuda.pinned_memory import Extent, HostMemory
from baton.kv.port import CopyEvent, KVPiece, OffloadedParts

AT_ONCE_BYTES = 2**24
"""What is copied at once, some 0.3 ms: a step's own small copies wait for the one before them in the same direction."""


@dataclass(frozen=True, slots=True)
class HostStore:
    """Pieces that are being copied out. `fine` `[pieces]`: which of them are finite, when they are there."""

    pieces: list[Piece]
    mark: CopyEvent
    fine: Tensor | None


_Staging = tuple[Form, Tensor]
"""Pieces of one form on the device, `[pieces, bytes]`."""


class HostLoad:
    """Parts that are being copied in; they are in their row after `land`, at which the device waits for them."""

    def __init__(
        self, lane: CopyStream, mark: CopyEvent, staged: Sequence[_Staging], targets: Sequence[Tensor]
    ) -> None:
        self.bytes = sum(staging.numel() for _, staging in staged)
        self._lane = lane
        self._mark = mark
        self._staged = staged
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
        """No matter if it did before; where it raises, it may be tried again."""
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
            scatter(form, staging, targets)
        self.cancel()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._staged, self._targets = (), ()


@dataclass(frozen=True, slots=True)
class _Staged:
    """What a copy to the host takes of the device's memory while it runs."""

    bytes: int
    mark: CopyEvent

    def over(self) -> bool:
        return self.mark.done()

    def finish(self) -> None:
        self.mark.wait()


class HostOffload:
    """Moves parts between rows and the host. On the device it takes `most` bytes, or what one row takes.

    Raises an allocator's error where there is no memory, and has changed nothing then.
    """

    def __init__(self, lane: CopyStream, host: HostMemory, most: int) -> None:
        self.host = host
        self._lane = lane
        self._most = most
        self._underway: deque[HostLoad | _Staged] = deque()

    def out(self, parts: Sequence[Tensor], *, blocks: int = 1, checked: bool = False) -> HostStore:
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
            gather(form, parts, staging)
            found = finite(form, staging) if checked else None
            fine = None if found is None else self._lane.flags(blocks)
        except Exception:
            for extent in memory:
                self.host.give(extent)
            raise

        def copy() -> None:
            start = 0
            for extent in memory:
                _copy(extent.bytes, staging.view(-1)[start : start + extent.size])
                start += extent.size
            if fine is not None and found is not None:
                fine.copy_(found, non_blocking=True)

        mark = self._lane.begin(copy, [staging] if found is None else [staging, found], behind=True)
        self._underway.append(_Staged(blocks * size, mark))
        cut = [extent.cut(at, size) for extent in memory for at in range(0, extent.size, size)]
        return HostStore([Piece(extent, form, mark) for extent in cut], mark, fine)

    def joined(self, pieces: Sequence[KVPiece]) -> Packed:
        """Pieces one behind the other, as parts for a row."""
        return Packed([_ours(piece) for piece in pieces])

    def into(self, parts: OffloadedParts, targets: Sequence[Tensor]) -> HostLoad:
        """Begins to copy; `targets` are the row's parts, which nobody writes until it has landed."""
        packed = _packed(parts)
        groups = [(form, [*some]) for form, some in itertools.groupby(packed.pieces, lambda piece: piece.form)]
        self._make_room(packed.bytes)
        staged = [(form, self._lane.empty(len(some) * form.bytes).view(len(some), -1)) for form, some in groups]

        def copy() -> None:
            for (_, pieces), (_, staging) in zip(groups, staged, strict=True):
                start = 0
                for extent in _joined([piece.memory for piece in pieces]):
                    _copy(staging.view(-1)[start : start + extent.size], extent.bytes)
                    start += extent.size

        arrival = HostLoad(self._lane, self._lane.begin(copy, behind=False), staged, targets)
        self._underway.append(arrival)
        return arrival

    def release(self, parts: OffloadedParts) -> None:
        """Gives back the host's memory."""
        for piece in _packed(parts).pieces:
            self.give(piece)

    def give(self, piece: KVPiece) -> None:
        """Gives back one piece's memory."""
        self.host.give(_ours(piece).memory)

    def _make_room(self, size: int) -> None:
        """What is underway takes no more than it may with so much more: the oldest is waited for."""
        self._underway = deque(one for one in self._underway if not one.over())
        while self._underway and sum(one.bytes for one in self._underway) + size > self._most:
            self._underway.popleft().finish()


def _packed(parts: OffloadedParts) -> Packed:
    if not isinstance(parts, Packed):
        raise TypeError(f"{type(parts).__name__} was not offloaded here")
    return parts


def _ours(piece: KVPiece) -> Piece:
    if not isinstance(piece, Piece):
        raise TypeError(f"{type(piece).__name__} was not offloaded here")
    return piece


def _copy(target: Tensor, source: Tensor) -> None:
    for some, others in zip(target.split(AT_ONCE_BYTES), source.split(AT_ONCE_BYTES), strict=True):
        some.copy_(others, non_blocking=True)


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


def trial(copies: HostOffload, device: torch.device) -> str:
    """What goes wrong where parts go to the host and come back; nothing where they come back to the bit."""
    kept = torch.randn(3, 64, 2, 24, device=device).to(torch.bfloat16)
    kept[0, 40, 1, 7] = torch.nan
    states = torch.randn(2, 5, device=device)
    try:
        whole = Packed(copies.out([kept[0], states[0]]).pieces)
        copies.into(whole, [kept[1], states[1]]).land()
        blocks = copies.out([kept[0], kept[0]], blocks=2, checked=True)
        cut = Packed(blocks.pieces)
        copies.into(cut, [kept[2], torch.empty_like(kept[2])]).land()
        blocks.mark.wait()
        copies.release(whole)
        copies.release(cut)
        bits = kept.view(torch.int16)
        same = torch.equal(bits[0], bits[1]) and torch.equal(bits[0], bits[2]) and torch.equal(states[0], states[1])
    except Exception as error:
        # Whatever a driver raises: there is another way.
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if same and blocks.fine is not None and blocks.fine.tolist() == [True, False]:
        return ""
    return "what came back is not what left"
