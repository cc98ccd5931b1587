"""Plots of trials as SVG in the colours of the page around it, so that it is readable in light and dark.

matplotlib (the extra [bench]) is imported when the first plot is drawn.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baton.bench.figures import Figures
from baton.bench.picture import Picture
from baton.core.errors import SettingError
from baton.core.events import SLOT_KINDS

Runs = Mapping[str, Sequence[Figures]]

# matplotlib needs colours: these stand for the page's, and are replaced by them.
INK, FAINT, PAPER, QUERY, OTHER, PROMPT, IDLE = (f"#0102{n:02x}" for n in range(1, 8))
_NAMES = {INK: "ink", FAINT: "faint", PAPER: "paper", QUERY: "query", OTHER: "other", PROMPT: "prompt", IDLE: "idle"}
COLOURS = 8
_CONTENDERS = [f"#0103{n:02x}" for n in range(COLOURS)]
_KINDS = dict(zip(SLOT_KINDS[1:], (f"#0104{n:02x}" for n in range(len(SLOT_KINDS) - 1)), strict=True))
_VARIABLES = {
    **_NAMES,
    **{colour: f"c{n}" for n, colour in enumerate(_CONTENDERS)},
    **{colour: f"k{n}" for n, colour in enumerate(_KINDS.values())},
}
_WIDE = 9.6


def check_installed() -> None:
    """Raises SettingError that says what to install."""
    if importlib.util.find_spec("matplotlib") is None:
        message = "--html needs matplotlib, which is not installed: pip install -c constraints.txt -e '.[bench]'"
        raise SettingError(message, param="html")


def colours(runs: Runs) -> dict[str, str]:
    """Of each contender, as a CSS variable's name."""
    return {name: f"c{n % COLOURS}" for n, name in enumerate(runs)}


def throughput_against_latency(runs: Runs) -> str:
    """A dot for each run and a ring around the middle one; up and to the left is better."""
    panels: list[tuple[str, Callable[[Figures], float | None]]] = [
        ("seconds to the first token (median of queries)", lambda run: run.first_token.get("p50")),
        ("milliseconds a token (median of queries)", lambda run: 1000 * run.per_token.get("p50", 0.0) or None),
        ("seconds to the end (median of queries)", lambda run: run.end_to_end.get("p50")),
    ]
    figure, axes = _figure(len(panels), 3.2, sharey=True)
    for place, (label, read) in zip(axes, panels, strict=True):
        for colour, some in zip(itertools.cycle(_CONTENDERS), runs.values(), strict=False):
            dots = [(x, one.tokens_per_second) for one in some if (x := read(one)) is not None]
            if dots:
                xs, ys = zip(*dots, strict=True)
                place.scatter(xs, ys, s=22, color=colour, alpha=0.6, linewidths=0)
                middle = statistics.median(xs), statistics.median(ys)
                place.scatter(*middle, s=90, facecolors="none", edgecolors=colour, linewidths=1.8)
        place.set_xlabel(label)
        # From zero, with some space at the other end, so that no dot is cut.
        place.set_xlim(0, 1.05 * place.get_xlim()[1])
        place.set_ylim(0, 1.05 * place.get_ylim()[1])
    axes[0].set_ylabel("generated tokens a second")
    return _svg(figure, "throughput")


def cumulative(runs: Runs) -> str:
    """The share of queries, or gaps, that took at most so long; all runs together. Further left is better."""
    panels: list[tuple[str, Callable[[Figures], Sequence[float]], float]] = [
        ("seconds to the first token", lambda run: run.first_tokens, 1),
        ("milliseconds between tokens", lambda run: run.gaps, 1000),
        ("seconds to the end", lambda run: run.wholes, 1),
    ]
    figure, axes = _figure(len(panels), 3.0, sharey=True)
    for place, (label, read, factor) in zip(axes, panels, strict=True):
        for colour, some in zip(itertools.cycle(_CONTENDERS), runs.values(), strict=False):
            values = sorted(value * factor for one in some for value in read(one))
            if values:
                # At most 400 corners: more cannot be seen, and a page of ten thousand gaps stays small.
                ranks = sorted({round(n * (len(values) - 1) / 400) for n in range(401)})
                place.step([values[n] for n in ranks], [100 * (n + 1) / len(values) for n in ranks], color=colour)
        place.set_xlabel(label)
        if factor != 1:
            # Tokens that came at once have a gap too small for the axis.
            usual = [statistics.median(read(one)) * factor for some in runs.values() for one in some if read(one)]
            place.set_xscale("log")
            place.set_xlim(left=min(usual, default=1) / 10)
        else:
            place.set_xlim(left=0)
        place.set_ylim(0, 101)
    axes[0].set_ylabel("% of queries; of gaps")
    return _svg(figure, "cumulative")


def idle_kinds(runs: Runs) -> str:
    """Of 100 computed token slots, those that no query needed, by kind."""
    figure, (place,) = _figure(1, 0.9 + 0.42 * len(runs))
    names = list(runs)
    left = [0.0] * len(names)
    for kind, colour in _KINDS.items():
        shares = [_share(runs[name], kind) for name in names]
        place.barh(names, shares, left=left, height=0.62, color=colour, edgecolor=PAPER, linewidth=1.5)
        left = [a + b for a, b in zip(left, shares, strict=True)]
    for at, whole in enumerate(left):
        place.text(whole, at, f"  {whole:.1f} %" if whole else "  none", va="center", color=INK)
    place.invert_yaxis()
    place.set_xlim(0, max(1.0, 1.12 * max(left)))
    place.grid(axis="y", visible=False)
    place.set_xlabel("% of all token slots that were computed")
    return _svg(figure, "idle")


def timelines(pictures: Mapping[str, Picture]) -> str:
    """One run of each: rows over time, a bar for each query, prompts that are computed apart below."""
    heights = [_lanes(one) for one in pictures.values()]
    figure, axes = _figure(len(pictures), 0.5 + sum(0.75 + 0.14 * lanes for lanes in heights), down=heights)
    end = max((interval.ended for one in pictures.values() for interval in one.intervals), default=1.0)
    for place, (name, picture) in zip(axes, pictures.items(), strict=True):
        _timeline(place, picture)
        place.set_title(name, loc="left", fontsize=10)
        place.set_xlim(0, end)
    axes[-1].set_xlabel("seconds")
    return _svg(figure, "timelines")


def kinds() -> dict[str, str]:
    """The kinds of idle slots with the CSS variables of their colours."""
    return {kind: _VARIABLES[colour] for kind, colour in _KINDS.items()}


def _timeline(place: Any, picture: Picture) -> None:
    rows = max((one.rows for one in picture.moments), default=1)
    for moment in picture.moments:
        if moment.idle:
            span = (moment.began, moment.ended - moment.began)
            place.broken_barh([span], (0, moment.rows), facecolor="none", edgecolor=IDLE, hatch="//////", linewidth=0)
    for kind, first, colours in (("run", 0, (QUERY, OTHER)), ("prefill", rows + 0.6, (PROMPT, PROMPT))):
        lanes: dict[int, int] = {}
        for interval in sorted((one for one in picture.intervals if one.kind == kind), key=lambda one: one.began):
            # Neighbours in a row differ, so that one sees where a query ends and the next begins.
            turn = lanes[interval.lane] = lanes.get(interval.lane, -1) + 1
            place.broken_barh(
                [(interval.began, interval.ended - interval.began)],
                (first + interval.lane + 0.06, 0.88),
                facecolor=colours[turn % 2],
                edgecolor=PAPER,
                linewidth=0.4,
            )
    lanes_beside = _lanes(picture) - rows
    place.set_ylim(rows + (0.6 + lanes_beside if lanes_beside else 0), 0)
    ticks, labels = [rows / 2], [f"{rows} rows"]
    if lanes_beside:
        ticks, labels = [*ticks, rows + 0.6 + lanes_beside / 2], [*labels, "prompts"]
    place.set_yticks(ticks, labels)
    place.grid(visible=False)


def _lanes(picture: Picture) -> int:
    rows = max((one.rows for one in picture.moments), default=1)
    return rows + max((one.lane + 1 for one in picture.intervals if one.kind == "prefill"), default=0)


def _share(some: Sequence[Figures], kind: str) -> float:
    return 100 * sum(one.slots[kind] for one in some) / (sum(sum(one.slots.values()) for one in some) or 1)


def _figure(panels: int, height: float, *, sharey: bool = False, down: Sequence[int] | None = None) -> tuple[Any, Any]:
    """Panels side by side, or one below the other if `down` has their heights."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {"axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.7, "axes.edgecolor": FAINT}
    style |= dict.fromkeys(("xtick.color", "ytick.color", "axes.labelcolor", "axes.titlecolor", "text.color"), INK)
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "font.size": 9}
    style |= {"lines.linewidth": 1.8, "hatch.linewidth": 0.8, "xtick.major.size": 0, "ytick.major.size": 0}
    with rc_context(style):
        figure = Figure(figsize=(_WIDE, height), layout="constrained")
        if down is None:
            axes = figure.subplots(1, panels, sharey=sharey, squeeze=False)[0]
        else:
            ratios = [max(1.0, float(many)) for many in down]
            axes = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
    return figure, axes


def _svg(figure: Any, name: str) -> str:
    from matplotlib import rc_context

    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Two plots in one page must not share the ids of their parts.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"#010[2-4][0-9a-f]{2}", lambda match: f"var(--{_VARIABLES[match[0]]})", text)
