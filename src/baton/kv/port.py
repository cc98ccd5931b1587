"""The port between rows and other memory: what a row keeps is copied out and back, beside the device's steps.

Rows, segments and the prefix store know only this port. `cuda/offload.py` is the body. On the CPU there is none,
because rows are in the host's memory already.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class OffloadedParts(Sequence[Tensor]):
    """A row's parts in other memory. As a sequence it is the parts themselves; reading them waits for the copy."""

    @property
    @abstractmethod
    def bytes(self) -> int: ...


class KVPiece(Protocol):
    """The parts of a row, or of a run of its tokens, in other memory."""


class CopyEvent(Protocol):
    """A position in a stream of copies. It is reached when all earlier copies are done."""

    def done(self) -> bool:
        """Whether it is reached; does not wait."""

    def wait(self) -> None:
        """The host waits until it is reached."""

    def join(self) -> None:
        """Makes all later work of the device, outside of the stream, wait for it; the host goes on."""


class KVStore(Protocol):
    """Pieces that are being copied out. `fine` `[pieces]`: which of them are finite, valid once they are copied."""

    @property
    def pieces(self) -> Sequence[KVPiece]: ...
    @property
    def event(self) -> CopyEvent: ...
    @property
    def fine(self) -> Tensor | None: ...


class KVLoad(Protocol):
    """Parts that are being copied in."""

    def done(self) -> bool:
        """Whether `land` would not wait."""

    def land(self) -> None:
        """Makes the parts valid in their row for all later work of the device. If it raises, it may be tried again."""

    def cancel(self) -> None:
        """Gives up the load."""


class KVOffload(Protocol):
    """Moves parts between rows and other memory.

    Raises an allocator's error if there is no memory, and has changed nothing then.
    """

    def out(self, parts: Sequence[Tensor], *, blocks: int = 1, checked: bool = False) -> KVStore:
        """Copies parts, cut along their first dimension into so many pieces. The row may change as soon as it returns.

        `checked`: also computes which pieces are finite.
        """

    def joined(self, pieces: Sequence[KVPiece]) -> OffloadedParts:
        """Joins pieces, in order, to parts for a row."""

    def into(self, parts: OffloadedParts, targets: Sequence[Tensor]) -> KVLoad:
        """Begins to copy. `targets` are the row's parts, which nothing may write until the load has landed."""

    def release(self, parts: OffloadedParts) -> None:
        """Gives back the memory of parts."""

    def give(self, piece: KVPiece) -> None:
        """Gives back the memory of one piece."""
