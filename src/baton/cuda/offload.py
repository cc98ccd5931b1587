"""Copies of rows and blocks between a device and the host, beside the device's steps (`cuda/copy_stream.py`).

On the way to the host they are gathered after all earlier work of the device, and their row is free from then on. On
the way back they wait in separate memory on the device until their row is to be fed.
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
"""How much is copied at once, some 0.3 ms: a step's own small copies wait for a copy in the same direction."""


@dataclass(frozen=True, slots=True)
class HostStore:
    """Pieces that are being copied out. `fine` `[pieces]`: which of them are finite, valid once they are copied."""

    pieces: list[Piece]
    event: CopyEvent
    fine: Tensor | None


_Staging = tuple[Form, Tensor]
"""Pieces of one form on the device, `[pieces, bytes]`."""


class HostLoad:
    """Parts that are being copied in; they are in their row after `land`, for which the device waits."""

    def __init__(
        self, stream: CopyStream, event: CopyEvent, staged: Sequence[_Staging], targets: Sequence[Tensor]
    ) -> None:
        self.bytes = sum(staging.numel() for _, staging in staged)
        self._stream = stream
        self._event = event
        self._staged = staged
        self._targets = targets

    def done(self) -> bool:
        """Whether `land` would not wait."""
        return not self._staged or self._event.done()

    def over(self) -> bool:
        """Whether it takes no more memory of the device."""
        return not self._staged

    def finish(self) -> None:
        self.land()

    def land(self) -> None:
        """Does nothing if it was called before; if it raises, it may be tried again."""
        if not self._staged:
            return
        self._event.join()
        start = 0
        for form, staging in self._staged:
            self._stream.hand_over(staging)
            targets = self._targets
            if len(self._staged) > 1:
                count = form.shapes[0][0] * len(staging)
                targets = [target[start : start + count] for target in targets]
                start += count
            scatter(form, staging, targets)
        self.cancel()

    def cancel(self) -> None:
        """Gives up the load."""
        self._staged, self._targets = (), ()


@dataclass(frozen=True, slots=True)
class _Staged:
    """The device memory that a copy to the host takes while it runs."""

    bytes: int
    event: CopyEvent

    def over(self) -> bool:
        return self.event.done()

    def finish(self) -> None:
        self.event.wait()


class HostOffload:
    """Moves parts between rows and the host. On the device it takes `most` bytes, or those of one row.

    Raises an allocator's error if there is no memory, and has changed nothing then.
    """

    def __init__(self, stream: CopyStream, host: HostMemory, most: int) -> None:
        self.host = host
        self._stream = stream
        self._most = most
        self._underway: deque[HostLoad | _Staged] = deque()

    def out(self, parts: Sequence[Tensor], *, blocks: int = 1, checked: bool = False) -> HostStore:
        """Copies parts, cut along their first dimension into so many pieces. The row may change as soon as it returns.

        `checked`: also computes which pieces are finite, by their sums; one whose sum overflows counts as not finite.
        """
        form = form_of(parts, blocks)
        size = form.bytes
        memory = self.host.take(blocks, size)
        try:
            self._make_room(blocks * size)
            staging = torch.empty(blocks, size, dtype=torch.uint8, device=self._stream.device)
            gather(form, parts, staging)
            is_finite = finite(form, staging) if checked else None
            fine = None if is_finite is None else self._stream.flags(blocks)
        except Exception:
            for extent in memory:
                self.host.give(extent)
            raise

        def copy() -> None:
            start = 0
            for extent in memory:
                _copy(extent.bytes, staging.view(-1)[start : start + extent.size])
                start += extent.size
            if fine is not None and is_finite is not None:
                fine.copy_(is_finite, non_blocking=True)

        event = self._stream.begin(copy, [staging] if is_finite is None else [staging, is_finite], behind=True)
        self._underway.append(_Staged(blocks * size, event))
        cut = [extent.cut(at, size) for extent in memory for at in range(0, extent.size, size)]
        return HostStore([Piece(extent, form, event) for extent in cut], event, fine)

    def joined(self, pieces: Sequence[KVPiece]) -> Packed:
        """Joins pieces, in order, to parts for a row."""
        return Packed([_ours(piece) for piece in pieces])

    def into(self, parts: OffloadedParts, targets: Sequence[Tensor]) -> HostLoad:
        """Begins to copy. `targets` are the row's parts, which nothing may write until the load has landed."""
        packed = _packed(parts)
        groups = [(form, [*some]) for form, some in itertools.groupby(packed.pieces, lambda piece: piece.form)]
        self._make_room(packed.bytes)
        staged = [(form, self._stream.empty(len(some) * form.bytes).view(len(some), -1)) for form, some in groups]

        def copy() -> None:
            for (_, pieces), (_, staging) in zip(groups, staged, strict=True):
                start = 0
                for extent in _joined([piece.memory for piece in pieces]):
                    _copy(staging.view(-1)[start : start + extent.size], extent.bytes)
                    start += extent.size

        load = HostLoad(self._stream, self._stream.begin(copy, behind=False), staged, targets)
        self._underway.append(load)
        return load

    def release(self, parts: OffloadedParts) -> None:
        """Gives back the host's memory."""
        for piece in _packed(parts).pieces:
            self.give(piece)

    def give(self, piece: KVPiece) -> None:
        """Gives back one piece's memory."""
        self.host.give(_ours(piece).memory)

    def _make_room(self, size: int) -> None:
        """Waits for the oldest copies until those under way, with so much more, take no more than allowed."""
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
    """The same bytes, with extents joined that follow one another."""
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


def trial(offload: HostOffload, device: torch.device) -> str:
    """Copies parts to the host and back. Returns what goes wrong; nothing if they come back bit by bit."""
    kept = torch.randn(3, 64, 2, 24, device=device).to(torch.bfloat16)
    kept[0, 40, 1, 7] = torch.nan
    states = torch.randn(2, 5, device=device)
    try:
        whole = Packed(offload.out([kept[0], states[0]]).pieces)
        offload.into(whole, [kept[1], states[1]]).land()
        blocks = offload.out([kept[0], kept[0]], blocks=2, checked=True)
        cut = Packed(blocks.pieces)
        offload.into(cut, [kept[2], torch.empty_like(kept[2])]).land()
        blocks.event.wait()
        offload.release(whole)
        offload.release(cut)
        bits = kept.view(torch.int16)
        same = torch.equal(bits[0], bits[1]) and torch.equal(bits[0], bits[2]) and torch.equal(states[0], states[1])
    except Exception as error:
        # Whatever a driver raises: there is another way.
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if same and blocks.fine is not None and blocks.fine.tolist() == [True, False]:
        return ""
    return "what came back is not what left"
