"""What iterations cost on one machine: by rows that decode, by prompt tokens, and by the columns that they read.

The numbers are measured by `baton tune` and used by `baton simulate`, or written by hand for a device that is not
available.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton.core.errors import SettingError
from baton.core.files import read_object, write_text
from baton.core.step import StepCost

Curve = tuple[tuple[int, float], ...]
"""Seconds by a count, in rising order."""


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """`decode`: seconds of an iteration by its rows, if each has one token; `fill`: of others, by their tokens.

    Besides these: `column_seconds` for each column that a row with one token reads; `pair_seconds` for each pair of a
    prompt's token and a column that it attends to; `token_seconds` for each row whose query goes on (not for one that
    is only computed); `query_seconds` for each query that comes and goes; `iteration_seconds` for each iteration, if
    the curves are of forwards alone.
    """

    decode: Curve
    fill: Curve
    column_seconds: float
    pair_seconds: float
    iteration_seconds: float = 0.0
    token_seconds: float = 0.0
    query_seconds: float = 0.0
    about: str = ""

    def of(self, cost: StepCost) -> float:
        """Seconds of an iteration with such a forward."""
        whole = at(self.decode, cost.rows) if cost.slots == cost.rows else in_passes(self.fill, cost.slots)
        live = cost.rows - cost.finished
        attention_seconds = self.attention_seconds(cost.single_columns, cost.pairs)
        return self.iteration_seconds + self.token_seconds * live + whole + attention_seconds

    def attention_seconds(self, single_columns: float, pairs: float = 0.0) -> float:
        """Seconds of attention."""
        return self.column_seconds * single_columns + self.pair_seconds * pairs

    def step(self, rows: int, columns: float) -> float:
        """Seconds of a step of so many rows of so many columns each."""
        return self.of(StepCost(rows, rows, 0, single_columns=round(rows * columns)))

    def chunk(self, tokens: int, cached: int, beside: int = 0, columns: int = 0) -> float:
        """Seconds of a forward with so many tokens of a prompt, and so many rows of so many columns that decode."""
        pairs = tokens * (cached + tokens / 2)
        return self.of(StepCost(beside + 1, beside + tokens, 0, single_columns=beside * columns, pairs=pairs))


def at(curve: Curve, count: int) -> float:
    """Interpolates between measured counts; extends the last line, and the first value below the first count."""
    if count <= curve[0][0] or len(curve) == 1:
        return curve[0][1]
    above = next((i for i, (seen, _) in enumerate(curve) if count <= seen), len(curve) - 1)
    (low, before), (high, after) = curve[above - 1], curve[above]
    return before + (count - low) * (after - before) / (high - low)


def in_passes(curve: Curve, count: int) -> float:
    """As `at`; beyond the last measured count in passes of that size, as long forwards are made, and the rest."""
    whole, rest = divmod(count, curve[-1][0])
    return whole * curve[-1][1] + (at(curve, rest) if rest else 0.0)


def middle(some: Sequence[MeasuredCosts]) -> MeasuredCosts:
    """Medians of several measurements of the same counts, number by number; none below 0, and curves that rise."""

    def curve(curves: Sequence[Curve]) -> Curve:
        by_count = zip(*curves, strict=True)
        return rising([(points[0][0], max(0.0, statistics.median(s for _, s in points))) for points in by_count])

    def number(name: str) -> float:
        median: float = statistics.median(getattr(costs, name) for costs in some)
        return max(0.0, median)

    return MeasuredCosts(
        decode=curve([costs.decode for costs in some]),
        fill=curve([costs.fill for costs in some]),
        column_seconds=number("column_seconds"),
        pair_seconds=number("pair_seconds"),
        iteration_seconds=number("iteration_seconds"),
        token_seconds=number("token_seconds"),
        query_seconds=number("query_seconds"),
        about=some[0].about,
    )


def rising(curve: Sequence[tuple[int, float]]) -> Curve:
    """The nearest curve that never falls: a lower cost of more rows is noise (pool adjacent violators)."""
    pools: list[list[float]] = []
    for _, seconds in curve:
        pools.append([seconds])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [_mean(pool) for pool in pools for _ in pool]
    return tuple((count, seconds) for (count, _), seconds in zip(curve, level, strict=True))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def save(costs: MeasuredCosts, path: str | Path, more: dict[str, Any] | None = None) -> None:
    """Raises SettingError."""
    contents = {"baton_costs": 1, **dataclasses.asdict(costs), **(more or {})}
    write_text("--json", path, json.dumps(contents, indent=1) + "\n", param="json")


def read_costs(path: str | Path) -> tuple[MeasuredCosts, dict[str, Any]]:
    """Costs, and the rest of the file. Raises SettingError."""
    contents = read_object("", path, param="costs")
    try:
        names = {field.name for field in dataclasses.fields(MeasuredCosts)}
        if contents.pop("baton_costs", None) != 1:
            raise ValueError("it has no baton_costs")
        values = {name: contents.pop(name) for name in list(contents) if name in names}
        for name in ("decode", "fill"):
            values[name] = tuple((int(count), float(seconds)) for count, seconds in values[name])
            if not values[name] or list(values[name]) != sorted(set(values[name])):
                raise ValueError(f"{name} must rise")
        return MeasuredCosts(**values), contents
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingError(f"{path} has no costs that baton tune writes: {error}", param="costs") from None
