"""`baton tune`: measures what iterations cost here, and advises rows and chunk for a latency goal."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton.bench.costmodel import MeasuredCosts, save
from baton.compose import model_name, open_model
from baton.core.clock import monotonic
from baton.core.config import AUTO, Config
from baton.core.settings import Settings, resolve
from baton.kv.rectangle import footprint
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from baton.measure.calibrate import Calibration

FAR = 256
LEAST_PASSES, MOST_PASSES, ENOUGH_SECONDS = 5, 15, 15.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of an iteration with so many rows ("decode") or prompt tokens ("fill").

    The median and the range of all passes.
    """

    kind: str
    count: int
    seconds: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What so many rows give on the expected queries: tokens a second in all, seconds between a query's tokens."""

    rows: int
    tokens_per_second: float
    per_token: float
    low: float
    high: float


def measure(
    loaded: Loaded, settings: Settings, on_measured: Callable[[int], None] = lambda passes: None
) -> Calibration:
    """Runs enough passes for medians: more if they are short. `on_measured` gets the number of passes.

    The model is not changed; no engine may run on it meanwhile.
    """
    calibration = Calibration(loaded, settings)
    began = monotonic()
    while len(calibration.passes) < LEAST_PASSES or (
        len(calibration.passes) < MOST_PASSES and monotonic() - began < ENOUGH_SECONDS
    ):
        calibration.measure()
        on_measured(len(calibration.passes))
    return calibration


def measured(passes: Sequence[MeasuredCosts]) -> Iterator[Measured]:
    """Each point of the curves, over all passes."""
    for kind in ("decode", "fill"):
        for points in zip(*(getattr(costs, kind) for costs in passes), strict=True):
            seconds = [seconds for _, seconds in points]
            yield Measured(kind, points[0][0], statistics.median(seconds), min(seconds), max(seconds))


def choices(
    costs: MeasuredCosts, most_rows: int, prompt_tokens: int, answer_tokens: int, spread: float = 0.0
) -> list[Choice]:
    """Throughput for each number of rows, on queries of these lengths.

    Every generated token costs its share of a step, and of the prompts that are computed meanwhile. `spread`: of the
    measurements, as a share, for the range.
    """
    columns = prompt_tokens + answer_tokens / 2
    options = []
    for rows in range(1, most_rows + 1):
        step = costs.step(rows, columns)
        # A row's answer takes as many steps as tokens, in which every other row's prompt is computed once too.
        chunks = max(1, math.ceil(prompt_tokens / costs.fill[-1][0]))
        size = max(2, prompt_tokens // chunks)
        prompt = sum(costs.chunk(size, size * done) for done in range(chunks))
        per_token = step + rows * prompt / answer_tokens
        options.append(
            Choice(rows, rows / per_token, per_token, rows / per_token * (1 - spread), rows / per_token * (1 + spread))
        )
    return options


def advice(some: Sequence[Choice], goal_seconds: float | None) -> Choice | None:
    """The highest throughput within the goal; the fewest rows within 2 % of it. None if the goal cannot be met."""
    within = [one for one in some if goal_seconds is None or one.per_token <= goal_seconds]
    if not within:
        return None
    best = max(one.tokens_per_second for one in within)
    return next(one for one in within if one.tokens_per_second >= 0.98 * best)


def chunk_for(costs: MeasuredCosts, rows: int, columns: int, stall_seconds: float) -> int:
    """The largest chunk that takes no longer than a step of so many rows beside it."""
    largest = 1
    for tokens in (2**power for power in range(3, 13)):
        if costs.chunk(tokens, columns, rows, columns) - costs.step(rows, columns) <= stall_seconds:
            largest = tokens
    return largest


def spread_of(measured: Sequence[Measured]) -> float:
    """How far passes were from their medians, as a share: the median of that."""
    shares = [(one.high - one.low) / 2 / one.seconds for one in measured if one.seconds]
    return statistics.median(shares) if shares else 0.0


def points(some: Sequence[Choice]) -> Iterator[Choice]:
    """The points for a table: all if there are few, else about a dozen."""
    step = max(1, len(some) // 12)
    yield from (one for at, one in enumerate(some) if at % step == 0 or at == len(some) - 1)


def run_tune(config: Config, asked: dict[str, Any]) -> None:
    """Measures, shows the curve and the advice, and writes the costs for `baton simulate`."""
    if config.max_batch_size == AUTO:
        config = dataclasses.replace(config, max_batch_size=str(asked["most_rows"]))
    console = Console(highlight=False)
    loaded, name = open_model(config), model_name(config)
    settings = resolve(config, facts_of(loaded))
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        calibration = measure(
            loaded, settings, lambda passes: progress.update(task, description=f"measured {passes} times")
        )
    costs, curve = calibration.costs(), list(measured(calibration.passes))
    spread = spread_of(curve)
    some = choices(costs, settings.max_rows, asked["prompt_tokens"], asked["answer_tokens"], spread)
    goal = asked["goal_ms"] and asked["goal_ms"] / 1000
    best = advice(some, goal)
    console.print(f"{name}, {loaded.dtype} on {loaded.device}; {loaded.description}")
    console.print(_table(costs, list(points(some)), best, asked["prompt_tokens"] + asked["answer_tokens"] / 2))
    console.print(_sentence(costs, best, some, goal, settings.max_stall_seconds, spread))
    if asked["json_file"]:
        shape = footprint(loaded.geometry.shapes, settings.max_model_len, loaded.dtype, loaded.device)
        more = {
            "footprint": dataclasses.asdict(shape),
            "context_tokens": settings.max_model_len,
            "measured": [dataclasses.asdict(one) for one in curve],
            "choices": [dataclasses.asdict(one) for one in some],
            "advice": best and dataclasses.asdict(best),
        }
        save(costs, asked["json_file"], more)
        console.print(f"costs written: baton simulate --costs {asked['json_file']}")


_COLUMNS = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())


def _table(costs: MeasuredCosts, some: Sequence[Choice], best: Choice | None, columns: float) -> Table:
    table = Table(pad_edge=False)
    for title in ("rows", "a step, ms", "tokens a second in all", "", "milliseconds a token"):
        table.add_column(title, justify="left" if not title else "right")
    most = max(one.tokens_per_second for one in some)
    for one in some:
        bar = "█" * round(24 * one.tokens_per_second / most)
        rate = f"{one.tokens_per_second:,.0f} [dim]({one.low:,.0f} to {one.high:,.0f})[/dim]"
        step, token = f"{1000 * costs.step(one.rows, columns):.1f}", f"{1000 * one.per_token:.1f}"
        style = "bold" if best is not None and one.rows == best.rows else ""
        table.add_row(str(one.rows), step, rate, bar, token, style=style)
    return table


def _sentence(
    costs: MeasuredCosts,
    best: Choice | None,
    some: Sequence[Choice],
    goal: float | None,
    stall_seconds: float,
    spread: float,
) -> str:
    if best is None:
        least = min(one.per_token for one in some)
        return (
            f"No number of rows gives a token in {1000 * (goal or 0):.0f} ms: the least here is {1000 * least:.1f} ms."
        )
    chunk = chunk_for(costs, best.rows, FAR, goal or stall_seconds)
    wish = "" if goal is None else f" within {1000 * goal:.0f} ms a token"
    return (
        f"Most throughput{wish}: --max-batch-size {best.rows} --prefill-chunk {chunk}, about "
        f"{best.tokens_per_second:,.0f} tokens a second at {1000 * best.per_token:.1f} ms a token "
        f"(its measurements lay within {spread:.0%})."
    )
