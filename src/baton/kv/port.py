"""The port between rows and other memory: what a row keeps leaves for it, and comes back, beside the device's steps.

Rows, segments and the prefix store know these alone. `cuda/offload.py` is the body; on the CPU there is none, because
rows lie in the host's memory already.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class OffloadedParts(Sequence[Tensor]):
    """A row's parts in other memory. As a sequence it is the parts themselves, which waits for them."""

    @property
    @abstractmethod
    def bytes(self) -> int: ...


class KVPiece(Protocol):
    """The parts of a row, or of a run of its tokens, in other memory."""


class CopyEvent(Protocol):
    """A place in a stream of copies, which the stream reaches when all that was begun before is done."""

    def done(self) -> bool:
        """Whether it is reached; does not wait."""

    def wait(self) -> None:
        """The host waits until it is reached."""

    def join(self) -> None:
        """Whatever the device is given from now on, outside of the stream, comes behind it; the host goes on."""


class KVStore(Protocol):
    """Pieces that are being copied out. `fine` `[pieces]`: which of them are finite, when they are there."""

    @property
    def pieces(self) -> Sequence[KVPiece]: ...
    @property
    def mark(self) -> CopyEvent: ...
    @property
    def fine(self) -> Tensor | None: ...


class KVLoad(Protocol):
    """Parts that are being copied in."""

    def done(self) -> bool:
        """Whether to land takes no waiting."""

    def land(self) -> None:
        """They are in their row for all that the device is given after this. If it raises, it may be tried again."""

    def cancel(self) -> None:
        """Nobody waits for it any more."""


class KVOffload(Protocol):
    """Moves parts between rows and other memory.

    Raises an allocator's error where there is no memory, and has changed nothing then.
    """

    def out(self, parts: Sequence[Tensor], *, blocks: int = 1, checked: bool = False) -> KVStore:
        """Copies parts, cut along their first dimension into so many pieces. The row may change as soon as it returns.

        `checked`: it is found out which pieces are finite.
        """

    def joined(self, pieces: Sequence[KVPiece]) -> OffloadedParts:
        """Pieces one behind the other, as parts for a row."""

    def into(self, parts: OffloadedParts, targets: Sequence[Tensor]) -> KVLoad:
        """Begins to copy; `targets` are the row's parts, which nobody writes until it has landed."""

    def release(self, parts: OffloadedParts) -> None:
        """Gives back the memory of parts."""

    def give(self, piece: KVPiece) -> None:
        """Gives back the memory of one piece."""
