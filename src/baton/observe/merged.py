"""One metrics page of several engines: sums over all, and a few numbers of each."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from baton.engine.client import Stats
from baton.observe.catalog import FAMILIES
from baton.observe.compat import vllm
from baton.observe.counters import Histogram
from baton.observe.exposition import page
from baton.observe.family import Family, Kind, Over, Values
from baton.observe.replica_catalog import BY_REPLICA, FOR_PROMPTS

Told = Mapping[str, Any]
"""What `Metrics.told` returns."""


def plain(values: Values) -> dict[str, Any]:
    """Returns a family's values as plain JSON: a histogram as its bounds, counts and sum."""
    return {
        label: [list(value.bounds), list(value.counts), value.sum] if isinstance(value, Histogram) else value
        for label, value in values.items()
    }


class MergedMetrics:
    """The metrics page of a front. What engines had counted when it was last made stays counted after they are gone.

    Safe from any thread.
    """

    def __init__(self, model_name: str, *, compat: bool = False) -> None:
        """`compat`: vLLM's names besides baton's."""
        self._model_name = model_name
        self._compat = compat
        self._lock = threading.Lock()
        self._last: dict[str, Told] = {}
        self._gone: list[Told] = []

    def render(
        self,
        front: Told,
        engines: Mapping[str, Told],
        names: Sequence[str],
        stats: Stats,
        *,
        prefill: Collection[str] = (),
    ) -> tuple[bytes, str]:
        """Returns the page and its content type.

        `front`: what the front itself counted, like refusals. `engines`: what was heard of each now; of one among
        `names` that is not heard, the last holds. `prefill`: those that compute prompts for the others.
        """
        with self._lock:
            self._last |= engines
            for name in self._last.keys() - {*names}:
                self._gone = [_counters([*self._gone, self._last.pop(name)])]
            live = [self._last[name] for name in sorted(self._last)]
            ours = {known.name: _over(known, live, [front, *self._gone]) for known in FAMILIES}
            ours["baton_wanted_replicas"] = {"": _wanted(ours["baton_wanted_replicas_by"])}
            families = [(known, ours[known.name]) for known in FAMILIES]
            for name, family in BY_REPLICA.items():
                families.append((family, {engine: told["values"][name][""] for engine, told in self._last.items()}))
            families.append((FOR_PROMPTS, {engine: float(engine in prefill) for engine in self._last}))
            if self._compat:
                reasons: Counter[str] = Counter()
                for told in [*live, *self._gone]:
                    reasons.update(told["reasons"])
                families += vllm(stats, ours, reasons)
            return page(self._model_name, families)


def _over(family: Family, live: Sequence[Told], others: Sequence[Told]) -> Values:
    """A family over all engines. `others`: of these only what grows counts."""
    counted = [*live, *others] if family.kind is not Kind.GAUGE else live
    lists: dict[str, list[Any]] = {}
    for told in counted:
        for label, value in told["values"].get(family.name, {}).items():
            lists.setdefault(label, []).append(value)
    if not lists and not family.label:
        lists[""] = [0.0]
    return {label: _one(family, values) for label, values in lists.items()}


def _one(family: Family, values: Sequence[Any]) -> Any:
    if family.kind is Kind.HISTOGRAM:
        total = Histogram(values[0][0])
        for bounds, counts, seconds in values:
            one = Histogram(bounds)
            one.counts, one.sum = list(counts), seconds
            total.add(one)
        return total
    if family.over is Over.MOST:
        return max(values)
    return sum(values) / (len(values) if family.over is Over.MEAN else 1)


def _counters(told: Sequence[Told]) -> Told:
    """What grew in these, as of one."""
    reasons: Counter[str] = Counter()
    for one in told:
        reasons.update(one["reasons"])
    grown = [known for known in FAMILIES if known.kind is not Kind.GAUGE]
    return {"values": {known.name: plain(_over(known, told, ())) for known in grown}, "reasons": dict(reasons)}


def _wanted(by: Values) -> float:
    numbers = [float(value) for value in by.values() if not isinstance(value, Histogram)]
    return float(max(1, math.ceil(max(numbers, default=0.0) - 1e-9)))
