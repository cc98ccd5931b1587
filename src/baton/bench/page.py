"""Trials as one self-contained HTML file: figures, plots, what was run, and how to run it again."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from baton.bench import plots
from baton.bench.figures import Figures
from baton.bench.picture import Picture
from baton.bench.table import figure_rows

Runs = Mapping[str, Sequence[Figures]]


def page(
    runs: Runs,
    pictures: Mapping[str, Picture],
    *,
    facts: Mapping[str, Any],
    settings: Mapping[str, Mapping[str, Any]],
    accuracy: Mapping[str, Mapping[str, Sequence[bool]]],
    command: str,
) -> str:
    """`facts`: what was run, by name: "model" and "workload" among them. `settings`: of each contender."""
    key = _key(plots.colours(runs))
    template = Template(resources.files("baton.bench").joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(str(facts["model"])),
        subtitle=escape(str(facts["workload"])),
        verdict=_verdict(runs),
        repeat=max(len(some) for some in runs.values()),
        table=_table(["", *runs], figure_rows(runs, accuracy), _figure_row, span=2),
        key=key,
        throughput=plots.throughput_against_latency(runs),
        cumulative=plots.cumulative(runs),
        timelines=plots.timelines(pictures),
        idle_key=_key({kind.replace("_", " "): colour for kind, colour in plots.kinds().items()}),
        idle=plots.idle_kinds(runs),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()),
        command=escape(command),
        settings=_table(["", *settings], _settings(settings), _row),
    )


def _verdict(runs: Runs) -> str:
    """The best against the others, in one sentence; nothing if there is only one.

    The best is the fastest, or if queries missed the goal, the one in which most met it.
    """
    every = [one for some in runs.values() for one in some]
    missed = any(one.goodput < one.queries_per_second for one in every)
    speeds = {name: [one.goodput if missed else one.tokens_per_second for one in some] for name, some in runs.items()}
    middle = {name: statistics.median(some) for name, some in speeds.items()}
    best = max(middle, key=lambda name: middle[name])
    # If the ranges of both overlap, the ratio of medians may be chance.
    apart = {name: max(some) < min(speeds[best]) for name, some in speeds.items() if name != best}
    if not apart:
        return ""
    said = f"{best} generates the most tokens a second, {middle[best]:,.0f}: "
    if missed:
        said = f"{best} answers the most queries within the goal, {middle[best]:,.2f} a second: "
    said += ", ".join(
        f"{_times(middle[best], middle[name])} those of {name}{'' if sure else ' (their runs overlap)'}"
        for name, sure in apart.items()
    )
    return f"<p>{escape(said)}.</p>"


def _times(best: float, other: float) -> str:
    return f"{best / other:.2f} times" if other else "against none of"


def _settings(settings: Mapping[str, Mapping[str, Any]]) -> Iterable[list[str]]:
    names = dict.fromkeys(name for one in settings.values() for name in one)
    return ([name, *(str(one.get(name, "")) for one in settings.values())] for name in names)


def _key(colours: Mapping[str, str]) -> str:
    some = (f'<span><i style="background:var(--{css})"></i>{escape(name)}</span>' for name, css in colours.items())
    return f'<div class="key">{"".join(some)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], line: Callable[[Any], str], span: int = 1) -> str:
    heads = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name in head[1:])
    return f"<table><tr><th>{escape(head[0])}</th>{heads}</tr>{''.join(map(line, rows))}</table>"


def _figure_row(row: Sequence[Any]) -> str:
    """A name, and for each contender the middle value and the range."""
    name, *cells = row
    shown = "".join(f'<td>{escape(middle)}</td><td class="span">{escape(span)}</td>' for middle, span in cells)
    row_class = ' class="more"' if name.startswith(" ") else ""
    return f"<tr{row_class}><td>{escape(name.strip())}</td>{shown}</tr>"


def _row(row: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
