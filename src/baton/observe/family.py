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
        formula: In `SYMBOLS`.
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


def gauge(
    name: str, help: str, formula: str, source: Source, panel: str = "", legend: str = "", over: Over = Over.SUM
) -> Family:
    return Family(f"baton_{name}", Kind.GAUGE, help, formula, "", source, panel, legend, over)


def counter(
    name: str, help: str, formula: str, source: Source, panel: str = "", legend: str = "", label: str = ""
) -> Family:
    return Family(f"baton_{name}_total", Kind.COUNTER, help, formula, label, source, panel, legend)


def histogram(name: str, help: str, formula: str, source: Source, panel: str = "", label: str = "") -> Family:
    return Family(f"baton_{name}", Kind.HISTOGRAM, help, formula, label, source, panel)


SYMBOLS: dict[str, str] = {
    "p, g": "a query's prompt tokens and generated tokens",
    "t_0, t_1 ... t_g, t_end": "when it arrived, when each of its tokens was drawn, when it ended",
    "R, W, P": "queries that run, wait, prefill",
    "B, B_max": "rows of the batch now, and the most it may have",
    "useful, all": "token slots that a query needed, once per token; all that forwards computed",
    "L": "queries a second that arrived in the last minute, refused ones too, and those that wait over 60 s",
    "S": "mean seconds that a query which ended in the last minute spent prefilling and in the batch",
    "K": "mean bytes of keys and values of a query in a row, over the last minute",
    "M": "the budget of keys and values in bytes",
}
