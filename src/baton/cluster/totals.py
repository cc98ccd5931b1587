"""The statistics of all engines as those of one. What a lost engine did stays counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from baton.core.events import Slots
from baton.engine.port import Stats

_COUNTERS = (
    "iterations",
    "prompt_tokens",
    "generated_tokens",
    "insertions",
    "preemptions",
    "prefix_cached_tokens",
    "submitted",
)
_LARGEST = ("last_iteration_age_seconds", "columns")
_NOT_NUMBERS = ("slots", "outcomes", "costs")
NOTHING = Stats(
    **{known.name: 0 for known in fields(Stats) if known.name not in _NOT_NUMBERS},  # type: ignore[arg-type]
    slots=Slots(),
    outcomes={},
)


class Totals:
    """What engines said last, and what those did that are gone. One thread at a time."""

    def __init__(self) -> None:
        self._stats: dict[str, Stats] = {}
        self._past = NOTHING

    def heard(self, engine: str, stats: Stats) -> None:
        self._stats[engine] = stats

    def lost(self, engine: str) -> None:
        """The engine is gone. What was live in it counts as moved."""
        stats = self._stats.pop(engine, None)
        if stats is None:
            return
        live = max(0, stats.submitted - sum(stats.outcomes.values()))
        outcomes = {**stats.outcomes, "moved": stats.outcomes.get("moved", 0) + live}
        counters = {name: getattr(stats, name) for name in _COUNTERS}
        self._past = summed([self._past, replace(NOTHING, **counters, slots=stats.slots, outcomes=outcomes)])

    def by_engine(self) -> dict[str, Stats]:
        """What each engine said last."""
        return dict(self._stats)

    def sum(self) -> Stats:
        """Of all engines, with what those did that are gone."""
        return summed([self._past, *(self._stats[name] for name in sorted(self._stats))])


def summed(all_stats: Sequence[Stats]) -> Stats:
    """The statistics of several engines as those of one. The age is that of the engine that is silent longest."""
    first, *others = all_stats
    numbers = dict(first.numbers())
    slots, outcomes = Slots(), dict(first.outcomes)
    slots.add(first.slots)
    for other in others:
        for name, value in other.numbers().items():
            numbers[name] = max(numbers[name], value) if name in _LARGEST else numbers[name] + value
        slots.add(other.slots)
        for name, value in other.outcomes.items():
            outcomes[name] = outcomes.get(name, 0) + value
    return Stats(**numbers, slots=slots, outcomes=outcomes)  # type: ignore[arg-type]
