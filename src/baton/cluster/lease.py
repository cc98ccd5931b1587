"""Watches that somebody is there, and does something when he is not: engines end with their front."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

PAUSE_SECONDS, CHECKS = 2.5, 4
"""At so many checks in a row, so far apart, there must be no lease."""

log = logging.getLogger("baton.cluster")


class Lease:
    """Calls `over` in a thread of its own when there is no lease at several checks in a row, `pause` seconds apart."""

    def __init__(
        self, name: str, over: Callable[[], None], holds: Callable[[str], bool], *, pause: float = PAUSE_SECONDS
    ) -> None:
        self._name = name
        self._over = over
        self._holds = holds
        self._pause = pause
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="baton-lease", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        missed = 0
        while not self._closed.wait(self._pause):
            missed = 0 if self._holds(self._name) else missed + 1
            if missed >= CHECKS:
                log.warning("the front is gone: its engines end")
                self._over()
                missed = 0  # again, if that did not work
