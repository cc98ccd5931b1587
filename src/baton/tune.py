"""The verb `baton tune`: measures what steps and prompts cost here, and advises rows and chunk for a latency goal."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from baton import builtin
from baton.bench.costmodel import MeasuredCosts, rising, save
from baton.bench.drive import drive
from baton.bench.workload import Ask, Workload
from baton.clock import monotonic
from baton.compose import POLICIES, facts_of, model_name, set_threads, start
from baton.config import AUTO, Config, Settings, resolve
from baton.engine.client import Client
from baton.kv.rectangle import Rectangle, footprint
from baton.model.load import Loaded, load
from baton.model.look import Span

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FILLS = (16, 32, 64, 128, 256, 512)
SHORT, FAR = 8, 256
TURNS = 9
_WARM = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """A median, and the range in which nine of ten single measurements lay."""

    kind: str
    count: int
    columns: int
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


def measure(loaded: Loaded, settings: Settings, told: Callable[[Measured], None] = lambda found: None) -> MeasuredCosts:
    """Steps by rows, prompts by tokens, both with few columns and with many; and an iteration's work beside them.

    `told` hears of each measurement. Nothing of the model or of a running engine is changed.
    """
    most = settings.max_model_len
    far = max(SHORT + 1, min(FAR, most // 2))
    rows = [count for count in ROWS if count <= settings.max_rows]
    if rows[-1] != settings.max_rows:
        rows.append(settings.max_rows)
    rectangle = Rectangle(
        loaded.geometry.shapes, capacity=rows[-1], columns=most, dtype=loaded.dtype, device=loaded.device
    )
    for row in range(rows[-1]):
        # Columns that were never written are all one page of zeros, which is read from the cache.
        loaded.forward.fill(rectangle, [Span(row, 0, far)], [_TOKEN] * far)[1].commit()
    decode, reads = _decode(loaded, rectangle, rows, far, told)
    fill, looks = _fill(loaded, rectangle, far, told)
    costs = MeasuredCosts(decode, fill, reads, looks)
    about = f"{loaded.name}, {loaded.forward.description}"
    return dataclasses.replace(_beside(loaded, settings, costs), about=about)


def choices(
    costs: MeasuredCosts, most_rows: int, prompt_tokens: int, answer_tokens: int, spread: float = 0.0
) -> list[Choice]:
    """For each number of rows, on queries of these lengths: every answer token costs its share of a step, and of the
    prompts that are computed meanwhile. `spread`: of the measurements, as a share, for the range."""
    columns = prompt_tokens + answer_tokens / 2
    found = []
    for rows in range(1, most_rows + 1):
        step = costs.step(rows, columns)
        # A row's answer takes as many steps as tokens, in which every other row's prompt is computed once, too.
        chunks = max(1, math.ceil(prompt_tokens / costs.fill[-1][0]))
        size = max(2, prompt_tokens // chunks)
        prompt = sum(costs.chunk(size, size * done) for done in range(chunks))
        per_token = step + rows * prompt / answer_tokens
        found.append(
            Choice(rows, rows / per_token, per_token, rows / per_token * (1 - spread), rows / per_token * (1 + spread))
        )
    return found


def advice(some: Sequence[Choice], goal_seconds: float | None) -> Choice | None:
    """The most throughput within the goal; the fewest rows within 2 % of that. None where the goal cannot be met."""
    within = [one for one in some if goal_seconds is None or one.per_token <= goal_seconds]
    if not within:
        return None
    best = max(one.tokens_per_second for one in within)
    return next(one for one in within if one.tokens_per_second >= 0.98 * best)


def chunk_for(costs: MeasuredCosts, rows: int, columns: int, stall_seconds: float) -> int:
    """The largest chunk that a step of so many rows may have beside it and be no longer than that."""
    found = 1
    for tokens in (2**power for power in range(3, 13)):
        if costs.chunk(tokens, columns, rows, columns) - costs.step(rows, columns) <= stall_seconds:
            found = tokens
    return found


def _decode(
    loaded: Loaded, rectangle: Rectangle, rows: Sequence[int], far: int, told: Callable[[Measured], None]
) -> tuple[tuple[tuple[int, float], ...], float]:
    near: list[tuple[int, float]] = []
    slopes = []
    for count in rows:
        pair = []
        for columns in (SHORT, far):
            spans = [Span(row, columns, 1) for row in range(count)]
            found = _measured("decode", count, columns, partial(_run, loaded, rectangle, spans))
            told(found)
            pair.append(found.seconds)
        slopes.append(max(0.0, pair[1] - pair[0]) / (count * (far - SHORT) or 1))
        near.append((count, pair[0]))
    column = statistics.median(slopes)
    return rising([(count, max(1e-9, seconds - column * count * SHORT)) for count, seconds in near]), column


def _fill(
    loaded: Loaded, rectangle: Rectangle, far: int, told: Callable[[Measured], None]
) -> tuple[tuple[tuple[int, float], ...], float]:
    fits = [count for count in FILLS if far + count <= rectangle.columns] or [FILLS[0]]
    near, slopes = [], []
    for count in fits:
        pair = []
        for start_at in (0, far):
            spans = [Span(0, start_at, count)]
            found = _measured("fill", count, start_at, partial(_run, loaded, rectangle, spans))
            told(found)
            pair.append(found.seconds)
        slopes.append(max(0.0, pair[1] - pair[0]) / (count * far))
        near.append((count, pair[0]))
    slope = statistics.median(slopes)
    return rising([(count, max(1e-9, seconds - slope * count**2 / 2)) for count, seconds in near]), slope


def _run(loaded: Loaded, rectangle: Rectangle, spans: Sequence[Span]) -> None:
    """A forward that is not committed: nobody sees it."""
    run = loaded.forward.decode if all(span.count == 1 for span in spans) else loaded.forward.fill
    run(rectangle, spans, [_TOKEN] * sum(span.count for span in spans))


_TOKEN = 5


def _measured(kind: str, count: int, columns: int, work: Callable[[], None]) -> Measured:
    for _ in range(_WARM):
        work()
    seconds = sorted(_timed(work) for _ in range(TURNS))
    return Measured(kind, count, columns, statistics.median(seconds), seconds[0], seconds[-1])


def _timed(work: Callable[[], None]) -> float:
    began = monotonic()
    work()
    return monotonic() - began


def _beside(loaded: Loaded, settings: Settings, costs: MeasuredCosts) -> MeasuredCosts:
    """With the work beside forwards: what a real engine takes longer, by iteration, by row of it, and by query."""
    client = start(loaded, settings, POLICIES["baton"](), "tune")
    try:
        rows = (1, settings.max_rows)
        few, many = (max(0.0, _gap(client, count) - costs.step(count, SHORT + _ANSWER / 2)) for count in rows)
        row = max(0.0, many - few) / max(1, rows[1] - 1)
        costs = dataclasses.replace(costs, iteration_seconds=max(0.0, few - row), token_seconds=row)
        short = Workload("tune", (Ask(0.0, SHORT, 1),) * _SHORT_QUERIES)
        seconds = min(drive(client, short, [[_TOKEN] * SHORT] * _SHORT_QUERIES, monotonic).seconds for _ in range(3))
    finally:
        client.close()
    query = max(0.0, seconds / _SHORT_QUERIES - costs.chunk(SHORT, 0))
    return dataclasses.replace(costs, query_seconds=query)


_ANSWER, _SHORT_QUERIES = 64, 48


def _gap(client: Client, rows: int) -> float:
    """Seconds between the tokens of so many queries that run side by side."""
    workload = Workload("tune", (Ask(0.0, SHORT, _ANSWER),) * rows)
    runs = [drive(client, workload, [[_TOKEN] * SHORT] * rows, monotonic) for _ in range(3)]
    # Tokens of one wake-up come with no time between them: what counts is how long a query took.
    return min(statistics.median((one.whole - one.first) / (_ANSWER - 1) for one in run.heard) for run in runs)


def spread_of(measured: Sequence[Measured]) -> float:
    """How far single measurements lay from their medians, as a share: the median of that."""
    shares = [(found.high - found.low) / 2 / found.seconds for found in measured if found.seconds]
    return statistics.median(shares) if shares else 0.0


def points(some: Sequence[Choice]) -> Iterator[Choice]:
    """Those that a table shows: all where there are few, else about a dozen."""
    step = max(1, len(some) // 12)
    yield from (one for at, one in enumerate(some) if at % step == 0 or at == len(some) - 1)


def run_tune(config: Config, asked: dict[str, Any]) -> None:
    """Measures, shows the curve and the advice, and writes the costs for `baton simulate`."""
    if config.max_batch_size == AUTO:
        config = dataclasses.replace(config, max_batch_size=str(asked["most_rows"]))
    set_threads(config)
    console = Console(highlight=False)
    name = model_name(config)
    loaded = load(config, config.model or str(builtin.path()), name)
    settings = resolve(config, facts_of(loaded))
    measured: list[Measured] = []
    with Progress(*_COLUMNS, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=None)

        def told(found: Measured) -> None:
            measured.append(found)
            progress.update(task, description=f"{found.kind} {found.count} at {found.columns} columns", advance=1)

        costs = measure(loaded, settings, told)
    spread = spread_of(measured)
    some = choices(costs, settings.max_rows, asked["prompt_tokens"], asked["answer_tokens"], spread)
    goal = asked["goal_ms"] and asked["goal_ms"] / 1000
    best = advice(some, goal)
    console.print(f"{name}, {loaded.dtype} on {loaded.device}; {loaded.forward.description}")
    console.print(_table(costs, list(points(some)), best, asked["prompt_tokens"] + asked["answer_tokens"] / 2))
    console.print(_sentence(costs, best, some, goal, settings.max_stall_seconds, spread))
    if asked["json_file"]:
        shape = footprint(loaded.geometry.shapes, settings.max_model_len, loaded.dtype, loaded.device)
        more = {
            "footprint": dataclasses.asdict(shape),
            "context_tokens": settings.max_model_len,
            "measured": [dataclasses.asdict(one) for one in measured],
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
        f"(single measurements lay within {spread:.0%})."
    )
