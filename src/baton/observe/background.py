"""A slow sink on a thread of its own, so that it never slows an iteration."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from baton.core.events import Event

MOST_EVENTS = 65_536
_PERIOD_SECONDS = 0.05

_log = logging.getLogger("baton.observe")

SlowSink = Callable[[Sequence[Event]], None]


class BackgroundSink:
    """Keeps up to `most` events for `sink`, which gets the new ones 20 times a second.

    The engine's thread only appends: waking another thread would cost it a system call and Python's lock. If the sink
    does not keep up, or raises, events are dropped and counted in `dropped`.
    """

    def __init__(self, sink: SlowSink, name: str, most: int = MOST_EVENTS) -> None:
        self.dropped = 0
        self._sink = sink
        self._most = most
        self._events: deque[Event] = deque()
        self._ending = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"baton-{name}", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        if len(self._events) < self._most and not self._failed:
            self._events.append(event)
        else:
            self.dropped += 1

    def close(self) -> None:
        """Returns when all kept events have been handed on. May be called twice."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(_PERIOD_SECONDS):
            self._hand_on()
        self._hand_on()

    def _hand_on(self) -> None:
        some = [self._events.popleft() for _ in range(len(self._events))]
        if not some:
            return
        try:
            self._sink(some)
        except Exception as error:
            self.dropped += len(some)
            if not self._failed:
                _log.error("%s: events are dropped from now on (%s)", self._thread.name, error)
            self._failed = True
