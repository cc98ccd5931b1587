"""Numbers that only grow: counts by label, histograms, and the last minute."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable

WINDOW_SECONDS = 60


class CounterVec:
    """One number per label value."""

    def __init__(self, *known: str) -> None:
        self.by_label: defaultdict[str, float] = defaultdict(float, dict.fromkeys(known, 0.0))

    def add(self, label: str, amount: float = 1.0) -> None:
        self.by_label[label] += amount


class Histogram:
    """How many observations fell below each bound, and their sum."""

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(map(float, bounds))
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, other: Histogram) -> None:
        """Counts what another one of the same bounds has counted, too."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus reads them; the last bound is +Inf."""
        total, cumulative = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            cumulative.append((bound, float(total)))
        return cumulative


class LastMinute:
    """Useful and idle token slots of the last minute, kept per second, so that its size has a bound."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()

    def add(self, time: float, useful: int, idle: int) -> None:
        second = int(time)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += useful
            self._seconds[-1][2] += idle
        else:
            self._seconds.append([second, useful, idle])
            self._forget(time)

    def idle_ratio(self, now: float) -> float:
        """Idle slots as a share of all; 0 if nothing was computed."""
        self._forget(now)
        idle = sum(entry[2] for entry in self._seconds)
        total = idle + sum(entry[1] for entry in self._seconds)
        return idle / total if total else 0.0

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] <= now - WINDOW_SECONDS:
            self._seconds.popleft()
