"""Looks after the engine's thread from a thread of its own: says once per hang where every thread is, and its end.

It needs Python's lock to say anything: what hangs in native code that keeps the lock is not seen.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable

log = logging.getLogger("baton.engine")

_LOOKS = 4
_MOST_SECONDS = 1.0


class Watchdog:
    """`stuck` answers for how many seconds the engine has had work and has not come round; 0 where all is well."""

    def __init__(self, stuck: Callable[[], float], limit_seconds: float) -> None:
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

    def look(self) -> None:
        """Says what there is to say now."""
        seconds = self._stuck()
        if seconds > self._limit_seconds:
            if not self._longest:
                message = "no iteration for %.1f s (--hang-timeout %g); where all threads are:\n%s"
                log.error(message, seconds, self._limit_seconds, _stacks())
            self._longest = seconds
        elif self._longest:
            log.warning("the engine goes on after more than %.1f s without an iteration", self._longest)
            self._longest = 0.0

    def _watch(self) -> None:
        while not self._over.wait(min(self._limit_seconds / _LOOKS, _MOST_SECONDS)):
            self.look()


def _stacks() -> str:
    """The stacks of all threads by their names, innermost call last; however many there are."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames().items()
    return "\n".join(f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames)
