"""What a metric is: a line of the catalog, and the source of its value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from baton.engine.client import Stats
from baton.observe.counted import Counted
from baton.observe.counters import Histogram
from baton.observe.replicas import Wanted

Values = Mapping[str, float | Histogram]
"""By the value of the family's label; "" if it has none."""


class Kind(StrEnum):
    """What Prometheus calls a metric's type."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Over(StrEnum):
    """What one number of several engines is."""

    SUM = "sum"
    MOST = "most"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The sources of values: the engine's `stats` now, what was `counted` since its start, `wanted` replicas."""

    time: float
    stats: Stats
    counted: Counted
    wanted: Wanted


Source = Callable[[Snapshot], Any]
"""Returns a number, a histogram, or either by the value of the label."""


@dataclass(frozen=True, slots=True)
class Family:
    """One metric.

    Attributes:
        name: As on the page, with `_total` for counters.
        formula: In the symbols of `docs/metrics.md`.
        panel: The title of the dashboard's panel that shows it; "" for none.
        legend: The name of its line there.
        over: What it is over several engines.
    """

    name: str
    kind: Kind
    help: str
    formula: str
    label: str = ""
    source: Source = lambda now: {}
    panel: str = ""
    legend: str = ""
    over: Over = Over.SUM

    def values(self, now: Snapshot) -> Values:
        value = self.source(now)
        if self.label:
            values: Values = value
            return values
        return {"": value if isinstance(value, Histogram) else float(value)}
