"""Draws docs/rebatching.svg: the rows of the running batch over its iterations, from the events of real runs.

The same queries under `run_to_completion` and `baton` on the built-in model; every cell is one computed token slot.

    python scripts/rebatching_picture.py --out docs/rebatching.svg
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from baton.compose import EngineHandle, open_engine, start
from baton.core.config import Config
from baton.core.events import Event, IterationDone, QueryMoved
from baton.core.query import SamplingParams, State
from baton.policy.table import POLICIES

ROWS, QUERIES, CELL, GAP, TOP = 4, 12, 6, 2, 34
COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#eeca3b", "#ff9da6")


@dataclass
class Bar:
    """One query's stay in a row, from one iteration to another."""

    row: int
    number: int
    start: int
    ended: int | None = None
    freed: int | None = None


@dataclass
class Watch:
    """A sink that records which query ran when; rows are assigned as in the batch, the first free one."""

    hold: bool
    step: int = 0
    bars: dict[str, Bar] = field(default_factory=dict)
    idle_ratio: float = 0.0
    _useful: int = 0
    _idle: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, QueryMoved):
            if event.now is State.RUNNING:
                taken = {bar.row for bar in self.bars.values() if bar.freed is None}
                row = min(set(range(ROWS)) - taken)
                self.bars[event.query_id] = Bar(row, len(self.bars), self.step)
            elif event.query_id in self.bars and not event.now.live:
                bar = self.bars[event.query_id]
                bar.ended = self.step + 1
                bar.freed = None if self.hold else bar.ended
        elif isinstance(event, IterationDone):
            self._useful += event.slots.useful
            self._idle += event.slots.idle
            self.idle_ratio = self._idle / max(self._useful + self._idle, 1)
            if event.kind in ("decode", "both"):
                self.step += 1
            if self.hold and all(bar.ended for bar in self.bars.values()):
                for bar in self.bars.values():
                    bar.freed = bar.freed or self.step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/rebatching.svg"))
    args = parser.parse_args()
    house = open_engine(Config(max_batch_size=str(ROWS)))
    house.client.close()
    watches = {policy: run(house, policy) for policy in ("run_to_completion", "baton")}
    args.out.write_text(svg(watches))
    print(f"{args.out}: " + ", ".join(f"{p} {w.step} iterations, idle {w.idle_ratio:.1%}" for p, w in watches.items()))


def run(house: EngineHandle, policy: str) -> Watch:
    watch = Watch(hold=policy == "run_to_completion")
    client = start(house.loaded, house.settings, POLICIES[policy](), "picture", [watch])
    dice = random.Random(11)
    queries = []
    for _ in range(QUERIES):
        prompt = [dice.randrange(20, 200) for _ in range(dice.randint(6, 20))]
        count = dice.choice((6, 10, 16, 24, 40, 60))
        queries += client.queries(prompt, SamplingParams(temperature=0, max_tokens=count, ignore_eos=True))
    for _ in client.run(queries):
        pass
    client.close()
    return watch


def svg(watches: dict[str, Watch]) -> str:
    longest = max(watch.step for watch in watches.values())
    width, height = 20 + longest * CELL + 10, len(watches) * (TOP + ROWS * (3 * CELL + GAP) + 16) + 22
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="system-ui, sans-serif" font-size="12" role="img">',
        "<title>Rows of the running batch over its iterations: run to completion, and re-batched by baton</title>",
        '<defs><pattern id="idle" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#8885"/><rect width="2" height="6" fill="#888a"/></pattern></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    y = 4
    for policy, watch in watches.items():
        title = f"{policy}: {watch.step} iterations, {watch.idle_ratio:.0%} of the computed token slots idle"
        parts.append(f'<text x="10" y="{y + 20}" fill="#222" font-weight="600">{escape(title)}</text>')
        parts += _bars(list(watch.bars.values()), y + TOP)
        y += TOP + ROWS * (3 * CELL + GAP) + 16
    legend = "a line: a row of the batch, a bar: a query, time runs to the right; hatched: finished, still computed"
    parts.append(f'<text x="10" y="{height - 8}" fill="#666">{legend}</text></svg>')
    return "\n".join(parts)


def _bars(bars: Sequence[Bar], top: int) -> list[str]:
    parts = []
    for bar in bars:
        y = top + bar.row * (3 * CELL + GAP)
        ended, freed = bar.ended or bar.start, bar.freed or bar.ended or bar.start
        colour = COLOURS[bar.number % len(COLOURS)]
        place = f'y="{y}" height="{3 * CELL}" rx="2"'
        width = max(1, (ended - bar.start) * CELL - 1)
        parts.append(f'<rect x="{10 + bar.start * CELL}" width="{width}" {place} fill="{colour}"/>')
        if freed > ended:
            parts.append(
                f'<rect x="{10 + ended * CELL}" width="{(freed - ended) * CELL - 1}" {place} fill="url(#idle)"/>'
            )
        parts.append(
            f'<text x="{13 + bar.start * CELL}" y="{y + 13}" fill="#fff" font-size="10">{bar.number + 1}</text>'
        )
    return parts


if __name__ == "__main__":
    main()
