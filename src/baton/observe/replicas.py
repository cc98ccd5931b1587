"""How many replicas the load wants: the last minute's offered load, by Little's law.

Queries that arrive at rate L and keep a row for S seconds each keep L x S rows busy, however many replicas share them
(Little 1961). So the number does not run away with the queue, as one by queue length does: queued queries count once,
as if they came within the next minute.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

WINDOW_SECONDS = 60.0
TARGET = 0.8
"""How busy a replica should be at most: above, queues grow fast with every burst."""


class Wanted(NamedTuple):
    """How many replicas are wanted. `rows` and `memory`: how many each of the two would want."""

    rows: float
    memory: float

    @property
    def replicas(self) -> int:
        return max(1, math.ceil(max(self.rows, self.memory) - 1e-9))


@dataclass(slots=True)
class _Second:
    """What happened in one second."""

    at: int
    arrived: int = 0
    ended: int = 0
    served_seconds: float = 0.0
    row_bytes: float = 0.0
    iterations: int = 0


class Load:
    """The last minute's arrivals, service times and bytes a row, kept per second, so that its size has a bound."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque()

    def arrived(self, time: float) -> None:
        self._at(time).arrived += 1

    def ended(self, time: float, served_seconds: float) -> None:
        """A query left that had a row for so long."""
        now = self._at(time)
        now.ended += 1
        now.served_seconds += served_seconds

    def iterated(self, time: float, row_bytes: float) -> None:
        """An iteration is over, after which each row in use has so many bytes."""
        now = self._at(time)
        now.row_bytes += row_bytes
        now.iterations += 1

    def wanted(self, now: float, *, waiting: int, max_rows: int, kv_bytes_budget: int) -> Wanted:
        """Returns 0 if nothing ended in the last minute, because the service time is then unknown."""
        self._forget(now)
        ended = sum(second.ended for second in self._seconds)
        if not ended:
            return Wanted(0.0, 0.0)
        arrivals = sum(second.arrived for second in self._seconds) + waiting
        busy = arrivals / WINDOW_SECONDS * sum(second.served_seconds for second in self._seconds) / ended
        iterations = sum(second.iterations for second in self._seconds)
        row_bytes = sum(second.row_bytes for second in self._seconds) / iterations if iterations else 0.0
        memory = busy * row_bytes / (TARGET * kv_bytes_budget) if kv_bytes_budget else 0.0
        return Wanted(busy / (TARGET * max(1, max_rows)), memory)

    def _at(self, time: float) -> _Second:
        second = int(time)
        if not self._seconds or self._seconds[-1].at < second:
            self._seconds.append(_Second(second))
            self._forget(time)
        return self._seconds[-1]

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0].at <= now - WINDOW_SECONDS:
            self._seconds.popleft()
