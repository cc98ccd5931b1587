"""The paper's comparison as a picture: what rising load does to each method, and what each computes in vain."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from baton.core.events import SLOT_KINDS
from benchmarks.report import percentile

from .methods import COMPLETION, LITERAL, ORCA, RAGGED, Measured

COLOURS = {COMPLETION: "#9aa0a6", ORCA: "#e8871e", LITERAL: "#7b61c4", RAGGED: "#1f6fd0"}
Methods = Mapping[str, Sequence[Measured]]


def draw(path: Path, loads: Mapping[str, Methods], offline: Methods) -> None:
    """`loads`: runs by load and method; `offline`: all queries at once."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style = {"axes.grid": True, "grid.color": "#e6e6e6", "axes.spines.top": False, "axes.spines.right": False}
    with rc_context({**style, "axes.axisbelow": True, "font.size": 9, "xtick.major.size": 0, "ytick.major.size": 0}):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        rate, wait, idle = figure.subplots(1, 3)
    for name in offline:
        x = range(len(loads))
        runs = [methods[name] for methods in loads.values()]
        speeds = [statistics.median(run.figures.tokens_per_second for run in some) for some in runs]
        waits = [percentile([wait for run in some for wait in run.figures.wholes], 95) for some in runs]
        for place, values in ((rate, speeds), (wait, waits)):
            place.plot(x, values, marker="o", color=COLOURS[name], label=name)
            place.set_xticks(list(x), list(loads))
            place.set_xlabel("load, of what Orca answers offline")
    for place in (rate, wait):
        place.set_ylim(bottom=0)
    rate.set_ylabel("tokens/s")
    wait.set_ylabel("seconds to the last token, p95")
    names, left = list(offline), [0.0] * len(offline)
    for kind, colour in zip(SLOT_KINDS, ("#2e9e5b", "#d7d7d7", "#b9b9b9", "#8f8f8f", "#d05050"), strict=False):
        shares = [_share(offline[name], kind) for name in names]
        if kind == SLOT_KINDS[0] or any(shares):
            idle.barh(names, shares, left=left, color=colour, label=kind.replace("_", " "))
        left = [a + b for a, b in zip(left, shares, strict=True)]
    idle.set_yticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    idle.invert_yaxis()
    idle.set_xlabel("% of all token slots that were computed")
    idle.legend(fontsize=7, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False)
    rate.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=110)


def _share(some: Sequence[Measured], kind: str) -> float:
    slots = [run.figures.slots for run in some]
    return 100 * sum(one[kind] for one in slots) / sum(sum(one.values()) for one in slots)
