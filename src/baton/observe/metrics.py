"""Prometheus metrics of the engine's events, under their public names (docs/metrics.md)."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

from baton.core.clock import Clock
from baton.core.events import Event
from baton.engine.client import Stats
from baton.observe.catalog import FAMILIES
from baton.observe.compat import vllm
from baton.observe.counted import Counted
from baton.observe.exposition import page
from baton.observe.family import Snapshot, Values
from baton.observe.merged import plain
from baton.observe.replicas import Wanted


class Metrics:
    """A sink of events, and the page that they add up to. May be called from any thread."""

    def __init__(self, model_name: str, clock: Clock, *, max_rows: int = 1, compat: bool = False) -> None:
        """`max_rows`: most rows of the batch. `compat`: vLLM's names besides baton's."""
        self._model_name = model_name
        self._clock = clock
        self._compat = compat
        self._lock = threading.Lock()
        self.counted = Counted()
        self.max_rows = max_rows

    def __call__(self, event: Event) -> None:
        """Counts one event. Quick: additions under a lock that is only held for additions."""
        with self._lock:
            self.counted.add(event)

    def fields_ignored(self, names: Collection[str]) -> None:
        """Counts fields of a request that were taken without effect. The names are from the server's fixed list."""
        with self._lock:
            for name in names:
                self.counted.ignored.add(name)

    def render(self, stats: Stats) -> tuple[bytes, str]:
        """Returns the metrics page and its content type. Gauges are taken from `stats`."""
        with self._lock:
            ours = self._values(stats)
            families = [(family, ours[family.name]) for family in FAMILIES]
            if self._compat:
                families += vllm(stats, ours, self.counted.reasons)
            return page(self._model_name, families)

    def told(self, stats: Stats) -> dict[str, Any]:
        """Returns all values as plain JSON, for a page of several engines (`observe/merged.py`)."""
        with self._lock:
            values = {name: plain(values) for name, values in self._values(stats).items()}
            return {"values": values, "reasons": dict(self.counted.reasons)}

    def wanted(self, stats: Stats) -> Wanted:
        """How many engines the last minute's load would keep busy."""
        with self._lock:
            return self._wanted(self._clock(), stats)

    def _values(self, stats: Stats) -> dict[str, Values]:
        now = self._clock()
        snapshot = Snapshot(now, stats, self.counted, self._wanted(now, stats))
        return {family.name: family.values(snapshot) for family in FAMILIES}

    def _wanted(self, now: float, stats: Stats) -> Wanted:
        return self.counted.load.wanted(
            now, waiting=stats.waiting, max_rows=self.max_rows, kv_bytes_budget=stats.kv_bytes_budget
        )
