"""What is kept in memory for clients, in sum: above a bound, whoever has the most has to give it up."""

from __future__ import annotations

from collections.abc import Callable


class Held:
    """Bytes of many holders, on one event loop. Never above `most`, once those that must have given theirs up."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._holders: dict[Hold, None] = {}

    def hold(self, dropped: Callable[[], None]) -> Hold:
        """A holder of nothing yet. `dropped` is called, once, when it has to give up what it has."""
        return Hold(self, dropped)

    def _changed(self, hold: Hold, by: int) -> None:
        self.bytes += by
        if hold.bytes:
            self._holders[hold] = None
        else:
            self._holders.pop(hold, None)
        while self.bytes > self.most:
            droppable = [holder for holder in self._holders if not holder.kept]
            if not droppable:
                return
            # Of equals the oldest.
            max(droppable, key=lambda holder: holder.bytes).drop()


class Hold:
    """One holder's part. `kept`: what it has is in use, so that it cannot be given up."""

    __slots__ = ("_dropped", "_held", "bytes", "gone", "kept")

    def __init__(self, held: Held, dropped: Callable[[], None]) -> None:
        self._held = held
        self._dropped = dropped
        self.bytes = 0
        self.kept = False
        self.gone = False

    def set(self, size: int) -> None:
        """It has so much now. Nothing counts of what was given up."""
        if size != self.bytes and not self.gone:
            by, self.bytes = size - self.bytes, size
            self._held._changed(self, by)

    def free(self) -> None:
        self.set(0)

    def drop(self) -> None:
        self.free()
        self.gone = True
        self._dropped()
