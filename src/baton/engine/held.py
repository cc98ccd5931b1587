"""The sum of memory that is kept for clients. Above a limit, the holder with the most must give it up."""

from __future__ import annotations

from collections.abc import Callable


class Held:
    """Bytes of many holders on one event loop. At most `most`, after holders have given up theirs."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._holders: dict[Hold, None] = {}

    def hold(self, dropped: Callable[[], None]) -> Hold:
        """Returns a holder of nothing yet. `dropped` is called once, if it must give up what it has."""
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
            # Of several equal ones the oldest.
            max(droppable, key=lambda holder: holder.bytes).drop()


class Hold:
    """One holder's part. `kept`: its memory is in use and cannot be given up."""

    __slots__ = ("_dropped", "_held", "bytes", "gone", "kept")

    def __init__(self, held: Held, dropped: Callable[[], None]) -> None:
        self._held = held
        self._dropped = dropped
        self.bytes = 0
        self.kept = False
        self.gone = False

    def set(self, size: int) -> None:
        """Sets how much it has now. After it has given up, nothing counts."""
        if size != self.bytes and not self.gone:
            by, self.bytes = size - self.bytes, size
            self._held._changed(self, by)

    def free(self) -> None:
        self.set(0)

    def drop(self) -> None:
        self.free()
        self.gone = True
        self._dropped()
