"""A side for fills without streams: what is launched there is computed later, at a moment that dice decide."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from baton.batch.row_state import PendingForward


class Delayed:
    """Work that runs at an unknown time; its first few `ready` calls return False."""

    def __init__(self, work: Callable[[], PendingForward], asked: int, seconds: float) -> None:
        self._work = work
        self._left = asked
        self._result: PendingForward | Exception | None = None
        self.seconds = seconds

    def ready(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self._run()
        return self._result is not None

    def result(self) -> PendingForward:
        self._run()
        if isinstance(self._result, Exception):
            raise self._result
        assert self._result is not None
        return self._result

    def wait(self) -> None:
        """It may be half done, which looks the same as done."""
        self._run()

    def _run(self) -> None:
        if self._result is None:
            try:
                self._result = self._work()
            except Exception as error:
                self._result = error


class DelayedStream:
    """Some of the work is done at once, as by a device that is fast, and some later: after whatever came meanwhile.

    `flights`: how many were begun.
    """

    def __init__(self, dice: random.Random, longest: int = 4, seconds: float = 0.25) -> None:
        self.flights = 0
        self._dice = dice
        self._longest = longest
        self._seconds = seconds
        self.inside: list[str] = []

    @contextmanager
    def first(self) -> Iterator[None]:
        self.inside.append("first")
        try:
            yield
        finally:
            self.inside.pop()

    @contextmanager
    def back(self) -> Iterator[None]:
        assert self.inside == ["first"]
        self.inside.append("back")
        try:
            yield
        finally:
            self.inside.pop()

    def begin(self, work: Callable[[], PendingForward], *, behind: bool) -> Delayed:
        assert self.inside == ["first"]
        self.flights += 1
        delayed = Delayed(work, self._dice.randint(0, self._longest), self._seconds)
        if self._dice.random() < 0.5:
            # What launching it raises is raised here, as by an allocator.
            delayed.result()
        return delayed
