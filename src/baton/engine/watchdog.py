"""Watches another thread from one of its own: logs once per hang where every thread is, and the hang's end.

It ends a server that cannot be saved, so that the process's supervisor starts it again.

It needs Python's lock to log anything, so it does not see a hang in native code that keeps the lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable

log = logging.getLogger("baton.engine")

GIVEN_UP = 70
"""The exit status of a process that ends itself."""
_CHECKS = 4
_MOST_SECONDS = 1.0


class Watchdog:
    """`stuck` returns for how many seconds the engine has had work and has not come round; 0 if all is well.

    `what`: what is missing then. `ends_after`: seconds after which the process is ended (0: never). It must be above at
    four checks in a row, so that a process that was stopped and goes on is not ended.
    """

    def __init__(
        self,
        stuck: Callable[[], float],
        limit_seconds: float,
        *,
        what: str = "no iteration",
        ends_after: float = 0.0,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._what = what
        self._ends_after = ends_after
        self._end = end
        self._beyond = 0
        self._stuck = stuck
        self._limit_seconds = limit_seconds
        self._longest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="baton-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends its thread, soon. May be called twice, from any thread."""
        self._over.set()

    def check(self) -> None:
        """Logs the start or end of a hang, and ends the process if it must."""
        seconds = self._stuck()
        self._beyond = self._beyond + 1 if self._ends_after and seconds > self._ends_after else 0
        if self._beyond >= _CHECKS:
            self._give_up(seconds)
        if seconds > self._limit_seconds:
            if not self._longest:
                message = "%s for %.1f s (--hang-timeout %g); where all threads are:\n%s"
                log.error(message, self._what, seconds, self._limit_seconds, _stacks())
            self._longest = seconds
        elif self._longest:
            log.warning("it goes on after more than %.1f s with %s", self._longest, self._what)
            self._longest = 0.0

    def _give_up(self, seconds: float) -> None:
        """Ends the process even if memory is short."""
        try:
            message = "%s for %.0f s: this process ends with status %d, to be started again (--hang-exit)"
            log.critical(message, self._what, seconds, GIVEN_UP)
        finally:
            self._end(GIVEN_UP)

    def _watch(self) -> None:
        while not self._over.wait(min(self._limit_seconds / _CHECKS, _MOST_SECONDS)):
            # Memory may be short just now, and the watchdog must not die of it.
            with contextlib.suppress(MemoryError):
                self.check()


def _stacks() -> str:
    """The stacks of all threads by their names, innermost call last, however many there are."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames)
