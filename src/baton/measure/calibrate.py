"""What iterations cost here, measured through serving engines and a listening client, in passes.

A forward in a loop of its own says too little. In a real run its threads were asleep, its weights have left the nearest
caches, and the client shares Python's lock and the cores with it. So the time from the end of one iteration to the end
of the next is measured. Only the cost of more columns comes from forwards alone, short rows against long ones.

A pass measures everything once, within seconds. The machine's speed changes from minute to minute: so the numbers of
one pass belong to one speed, and medians are taken over passes.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from baton.bench.costmodel import Curve, MeasuredCosts, in_passes, middle
from baton.bench.drive import drive
from baton.bench.workload import Ask, Workload
from baton.compose import start
from baton.core.clock import monotonic
from baton.core.errors import CheckFailed
from baton.core.events import Event, IterationDone, QueryEnded
from baton.core.settings import Settings
from baton.kv.rectangle import Rectangle
from baton.loader.loaded import Loaded
from baton.model.visibility import Span
from baton.policy.table import POLICIES

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FILLS = (16, 32, 64, 128, 256, 512)
ATTENTION_CHUNK = 128
SHORT, FAR = 8, 256
STEPS = 12
WAVES = 8
_FEW, _MANY = 3, 9
_TRIES = 5
_TOKEN = 5


@dataclass(frozen=True, slots=True)
class Turn:
    """An iteration: seconds since the one before it ended, and tokens of each row in its forward.

    `live`: rows of queries that go on; `single_columns`: what rows with one token read. `ended`: a query ended in it;
    `after_end`: or in the one before.
    """

    seconds: float
    fed: tuple[int, ...]
    live: int
    single_columns: int
    ended: bool
    after_end: bool

    @property
    def prompts(self) -> tuple[int, ...]:
        return tuple(tokens for tokens in self.fed if tokens > 1)

    @property
    def is_step(self) -> bool:
        """Whether it only paid for rows that decode.

        The cost of an end belongs to its query, and the client pays its part of it while the next forward runs.
        """
        return not (self.prompts or self.ended or self.after_end)


@dataclass(slots=True)
class Turns:
    """A sink: the iterations of a run without the first, whose beginning is unknown."""

    turns: list[Turn] = field(default_factory=list)
    _cached: dict[str, int] = field(default_factory=dict)
    _last: float | None = None
    _ended: bool = False
    _after_end: bool = False

    def __call__(self, event: Event) -> None:
        if isinstance(event, QueryEnded):
            self._ended = True
        elif isinstance(event, IterationDone):
            self._take(event)

    def clear(self) -> None:
        self.turns, self._cached, self._last = [], {}, None
        self._ended = self._after_end = False

    def _take(self, event: IterationDone) -> None:
        fed = list(event.fed.values())
        columns = sum(self._cached.get(name, 0) + 1 for name, tokens in event.fed.items() if tokens == 1)
        if event.slots.finished_row:
            # Held rows read their columns again and again.
            fed += [1] * event.slots.finished_row
            columns += sum(cached for name, cached in self._cached.items() if name not in event.fed)
        if self._last is not None:
            seconds = event.time - self._last
            self.turns.append(Turn(seconds, tuple(fed), len(event.fed), columns, self._ended, self._after_end))
        for name, tokens in event.fed.items():
            self._cached[name] = self._cached.get(name, 0) + tokens
        self._last, self._after_end, self._ended = event.time, self._ended, False


class Calibration:
    """Measures passes. No other engine may run on the model meanwhile; between passes others may."""

    def __init__(self, loaded: Loaded, settings: Settings) -> None:
        self._loaded = loaded
        self._settings = replace(settings, prefix_cache=False)
        most, context = settings.max_rows, settings.max_model_len
        self._rows = [count for count in ROWS if count < most] + [most]
        self._fills = [size for size in FILLS if size + 3 <= context] or [context // 2]
        self._far = max(SHORT + 1, min(FAR, context // 2))
        self._steps = max(3, min(STEPS, (context - SHORT) // len(self._rows) - 1))
        self.passes: list[MeasuredCosts] = []

    def measure(self) -> MeasuredCosts:
        """Runs one more pass and returns its costs. Noise may have put some below 0: use the `middle` of several."""
        column, pair = self._slopes()
        costs = MeasuredCosts(((1, 0.0),), ((1, 0.0),), column, pair)
        costs = replace(costs, token_seconds=self._token_seconds(costs))
        costs = replace(costs, decode=self._decode(costs), fill=self._fill(costs))
        costs = replace(costs, query_seconds=self._query_seconds(costs))
        self.passes.append(costs)
        return costs

    def costs(self) -> MeasuredCosts:
        """Medians of all passes."""
        return replace(middle(self.passes), about=f"{self._loaded.name}, {self._loaded.description}")

    # Through engines

    def _token_seconds(self, costs: MeasuredCosts) -> float:
        """What a row whose query goes on takes longer than one that is computed in vain."""
        most, steps = self._settings.max_rows, self._steps
        if most == 1:
            return 0.0
        asks = [Ask(0.0, SHORT, 1 + 2 * steps)] + [Ask(0.0, SHORT, 1 + steps)] * (most - 1)
        seconds = self._means(
            costs, "run_to_completion", asks, lambda turn: turn.live if turn.is_step else None, (1, most)
        )
        return (seconds[most] - seconds[1]) / (most - 1)

    def _decode(self, costs: MeasuredCosts) -> Curve:
        """Rows that decode side by side, and become fewer as their queries end."""
        levels = [sum(rows >= number for rows in self._rows) for number in range(1, self._settings.max_rows + 1)]
        asks = [Ask(0.0, SHORT, 1 + self._steps * count) for count in levels]
        seconds = self._means(costs, "orca", asks, lambda turn: len(turn.fed) if turn.is_step else None, self._rows)
        return tuple((rows, seconds[rows]) for rows in self._rows)

    def _fill(self, costs: MeasuredCosts) -> Curve:
        """Prompts of each length less one, one after the other, beside a row that decodes."""
        others = [Ask(0.0, size, 3) for size in (SHORT, *(slots - 1 for slots in self._fills))]
        asks = [Ask(0.0, SHORT, 2 + 3 * len(others)), *others]

        def slots_of(turn: Turn) -> int | None:
            return sum(turn.fed) if len(turn.fed) == 2 and len(turn.prompts) == 1 else None

        seconds = self._means(costs, "orca", asks, slots_of, self._fills, rows=2)
        return tuple((slots, seconds[slots]) for slots in self._fills)

    def _query_seconds(self, costs: MeasuredCosts) -> float:
        """How much longer an iteration takes in which all its queries begin and end."""
        rows = self._settings.max_rows

        def whole(turn: Turn) -> int | None:
            return rows if turn.ended and turn.fed == (SHORT,) * rows else None

        asks = [Ask(0.0, SHORT, 1)] * (WAVES * rows)
        seconds = self._means(costs, "orca", asks, whole, [rows])
        return (seconds[rows] - in_passes(costs.fill, rows * SHORT)) / rows

    def _means(
        self,
        costs: MeasuredCosts,
        policy: str,
        asks: Sequence[Ask],
        key: Callable[[Turn], int | None],
        wanted: Sequence[int],
        rows: int | None = None,
    ) -> dict[int, float]:
        """Mean seconds of iterations by `key` (None: skipped), without the costs of columns and of rows' queries.

        If the engine began before all queries were there, some of the `wanted` may be missing; then it is repeated.
        Raises CheckFailed.
        """
        for _ in range(_TRIES):
            by_key: dict[int, list[float]] = defaultdict(list)
            for turn in self._run(policy, asks, rows or self._settings.max_rows):
                if (of := key(turn)) is not None:
                    by_key[of].append(self._rest(turn, costs))
            if all(one in by_key for one in wanted):
                return {of: statistics.fmean(seconds) for of, seconds in by_key.items()}
        longest = max(ask.prompt_tokens + ask.answer_tokens for ask in asks)
        raise CheckFailed(
            f"{len(asks)} queries of up to {longest} tokens did not run side by side as measuring needs it: is there "
            f"memory for {rows or self._settings.max_rows} rows (--kv-memory)?"
        )

    def _run(self, policy: str, asks: Sequence[Ask], rows: int) -> list[Turn]:
        """Runs queries that are all asked at once, on an engine that is warm."""
        turns = Turns()
        room = max(self._settings.max_waiting, len(asks))
        settings = replace(self._settings, policy=policy, max_rows=rows, max_waiting=room)
        client = start(self._loaded, settings, POLICIES[policy](), "calibration", [turns])
        try:
            for some in ([Ask(0.0, SHORT, SHORT)], asks):
                turns.clear()
                prompts = [[_TOKEN] * ask.prompt_tokens for ask in some]
                drive(client, Workload("", tuple(some)), prompts, monotonic)
        finally:
            client.close()
        return turns.turns

    def _rest(self, turn: Turn, costs: MeasuredCosts) -> float:
        """Its seconds without the costs of its columns and its queries."""
        pairs = sum(tokens**2 / 2 for tokens in turn.prompts)
        return turn.seconds - costs.attention_seconds(turn.single_columns, pairs) - costs.token_seconds * turn.live

    # Forwards alone

    def _slopes(self) -> tuple[float, float]:
        """Seconds of a column that a row with one token reads, and of a pair of a prompt's token and a column."""
        loaded, far, rows = self._loaded, self._far, self._settings.max_rows
        rectangle = Rectangle(
            loaded.geometry.shapes,
            capacity=rows,
            columns=self._settings.max_model_len,
            dtype=loaded.dtype,
            device=loaded.device,
        )
        loaded.forward.fill(rectangle, [Span(0, 0, far)], [_TOKEN] * far)[1].commit()
        rectangle.lens[0] = far
        for row in range(1, rows):
            # Columns that were never written are all one page of zeros, which is read from the cache.
            rectangle.write(row, rectangle.view(0), far)

        def slope(spans: Sequence[Span], columns: float, turns: int) -> float:
            moved = [replace(span, start=far) for span in spans]
            pairs = [(self._forward(rectangle, moved), self._forward(rectangle, spans)) for _ in range(turns)]
            return statistics.median(after - before for after, before in pairs) / columns

        column = slope([Span(row, SHORT, 1) for row in range(rows)], rows * (far - SHORT), _MANY)
        size = ATTENTION_CHUNK if far + ATTENTION_CHUNK <= rectangle.columns else SHORT
        return column, slope([Span(0, 0, size)], size * far, _FEW)

    def _forward(self, rectangle: Rectangle, spans: Sequence[Span]) -> float:
        """Seconds of a forward that is not committed."""
        forward = self._loaded.forward
        run = forward.decode if all(span.count == 1 for span in spans) else forward.fill
        began = monotonic()
        run(rectangle, spans, [_TOKEN] * sum(span.count for span in spans))
        return monotonic() - began
