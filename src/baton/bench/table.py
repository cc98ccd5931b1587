"""Trials on the terminal and as JSON: medians of the repeated runs, with their range."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rich.table import Table

from baton.bench.accuracy import Right
from baton.bench.compare import Verdict, read_report
from baton.bench.figures import Figures
from baton.core.errors import SettingError
from baton.core.events import SLOT_KINDS

Shown = tuple[str, Callable[[Figures], float | None], str]
Cell = tuple[str, str]
"""The median and the range."""

LINES: tuple[Shown, ...] = (
    ("generated tokens a second", lambda run: run.tokens_per_second, "{:,.1f}"),
    ("queries a second", lambda run: run.queries_per_second, "{:.2f}"),
    ("  of these within the goal", lambda run: run.goodput, "{:.2f}"),
    ("seconds to the first token, p50", lambda run: run.first_token.get("p50"), "{:.3f}"),
    ("  p99", lambda run: run.first_token.get("p99"), "{:.3f}"),
    ("milliseconds a token, p50", lambda run: _ms(run.per_token.get("p50")), "{:.1f}"),
    ("  longest gaps, p99", lambda run: _ms(run.inter_token.get("p99")), "{:.1f}"),
    ("  a query's longest gap, p50", lambda run: _ms(run.longest_gap.get("p50")), "{:.1f}"),
    ("  p99", lambda run: _ms(run.longest_gap.get("p99")), "{:.1f}"),
    ("seconds to the end, p50", lambda run: run.end_to_end.get("p50"), "{:.3f}"),
    ("  p99", lambda run: run.end_to_end.get("p99"), "{:.3f}"),
    ("idle token slots, %", lambda run: 100 * run.idle_ratio, "{:.2f}"),
    *(
        (f"  {kind}", lambda run, kind=kind: 100 * run.slots[kind] / (sum(run.slots.values()) or 1), "{:.2f}")
        for kind in SLOT_KINDS
        if kind != "useful"
    ),
    (
        "prompt tokens from the prefix store, %",
        lambda run: 100 * run.cached_tokens / (run.prompt_tokens or 1),
        "{:.1f}",
    ),
    ("most KV, MiB", lambda run: run.kv_bytes_most / 2**20, "{:,.1f}"),
    ("preemptions", lambda run: run.preemptions, "{:.0f}"),
    ("failed queries", lambda run: run.failed, "{:.0f}"),
)


IDLE = frozenset(name for name, _, _ in LINES if name.strip() in ("idle token slots, %", *SLOT_KINDS))
NOT_OVER_HTTP = frozenset({"most KV, MiB", "preemptions"})


def figure_rows(
    runs: Mapping[str, Sequence[Figures]],
    accuracy: Mapping[str, Right] = {},
    skip: Set[str] = frozenset(),
) -> Iterator[tuple[str, *tuple[Cell, ...]]]:
    """A name, and for each contender the median and, if there is more than one run, the range."""
    for name, get, form in LINES:
        if name not in skip:
            yield name, *(_cell(some, get, form) for some in runs.values())
    if any(run.compared for some in runs.values() for run in some):
        yield "answers as alone", *((equality(some), "") for some in runs.values())
    for task in next(iter(accuracy.values()), {}):
        some = [accuracy[name][task] for name in runs]
        yield f"right answers, {task}", *((f"{sum(right)} of {len(right)}", "") for right in some)


def table_of(
    runs: Mapping[str, Sequence[Figures]], accuracy: Mapping[str, Right] = {}, skip: Set[str] = frozenset()
) -> Table:
    """A line for each figure, a column for each contender."""
    table = Table(pad_edge=False)
    table.add_column("")
    for contender in runs:
        table.add_column(contender, justify="right")
    for name, *cells in figure_rows(runs, accuracy, skip):
        table.add_row(name, *(f"{middle} [dim]({span})[/dim]" if span else middle for middle, span in cells))
    return table


def verdict_table(speeds: Sequence[Verdict]) -> Table:
    """A line for each figure of each contender."""
    table = Table(pad_edge=False)
    for name in ("", "figure", "A", "B", "B takes", "95 %", "machine's speed taken out", "by chance", ""):
        table.add_column(name, justify="left" if name in ("", "figure") else "right")
    for one in speeds:
        span, chance = f"{one.low:.3f} to {one.high:.3f}", f"{one.chance:.4f}"
        a, b, adjusted = f"{one.a:,.4g}", f"{one.b:,.4g}", "in turn" if one.in_turn else f"{one.adjusted:.3f}x"
        table.add_row(one.contender, one.figure, a, b, f"{one.ratio:.3f}x", span, adjusted, chance, one.word)
    return table


def equality(runs: Sequence[Figures]) -> str:
    """How many of the compared answers have the same tokens as the query alone."""
    compared = sum(run.compared for run in runs)
    return f"{compared - sum(run.different for run in runs)} of {compared}" if compared else "not compared"


def report(
    about: Mapping[str, Any],
    runs: Mapping[str, Sequence[Figures]],
    settings: Mapping[str, Any],
    accuracy: Mapping[str, Right] = {},
) -> dict[str, Any]:
    """What `--json` writes and `baton compare` reads."""
    parts = {
        name: {
            "settings": settings[name],
            "runs": [run.as_json() for run in some],
            **({"accuracy": accuracy[name]} if name in accuracy else {}),
        }
        for name, some in runs.items()
    }
    return {"baton_bench": 1, **about, "contenders": parts}


def runs_before(path: str, about: Mapping[str, Any], names: Sequence[str]) -> dict[str, list[Figures]]:
    """The runs of the report that `--append` extends, by contender; none if there is no such file, or it is empty.

    Raises SettingError if it is a report of something else.
    """
    if not Path(path).exists() or not Path(path).stat().st_size:
        return {}
    before = read_report(path)
    for what, now in {**about, "contenders": list(names)}.items():
        then = list(before["contenders"]) if what == "contenders" else before.get(what)
        if then != now:
            raise SettingError(f"--append {path}: its {what} is {then}, not {now}", param="append")
    return {name: [Figures(**run) for run in before["contenders"][name]["runs"]] for name in names}


def _cell(runs: Sequence[Figures], get: Callable[[Figures], float | None], form: str) -> Cell:
    values = [value for value in map(get, runs) if value is not None]
    if not values:
        return "-", ""
    low, middle, high = (form.format(pick(values)) for pick in (min, statistics.median, max))
    return middle, "" if low == high else f"{low} to {high}"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000
