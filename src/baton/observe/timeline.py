"""The last minutes of the running batch, for a picture: which query was in which row when, and what it cost.

A sink of events. Rows are numbered for people: a query gets the first free one. Where its keys and values really lie
changes when rows are packed, and is not shown. Prompts that are computed apart have lanes of their own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from baton.core.events import SLOT_KINDS, Event, IterationDone, QueryEnded, QueryMoved, QueryRejected
from baton.core.query import State

WINDOW_SECONDS = 120.0
BUCKET_SECONDS = 0.25
MOST_INTERVALS = 600
"""How many ended intervals are kept, the last ones: as many as a picture can show, and one response carry."""
_MOST_SAMPLES = 64  # of latencies in a bucket
_SAMPLES_OF_A_QUERY = 16
_LANES = {State.PREFILLING: "prefill", State.RUNNING: "run"}


@dataclass(slots=True)
class RowInterval:
    """One query in one row of the batch ("run") or lane of prompts ("prefill"). Times of the engine's clock.

    `how`: why it left: the next state, or how it ended; "" while it is there. `prompt`: tokens of the whole prompt;
    `tokens`: tokens computed for it there; `generated`: tokens of its answer so far. `filled`: when its prompt was
    computed there, None if it was not. `serial` grows with each change, so that a reader can ask for what is new.
    """

    query: str
    kind: str
    lane: int
    began: float
    prompt: int = 0
    ended: float | None = None
    how: str = ""
    tokens: int = 0
    generated: int = 0
    filled: float | None = None
    serial: int = 0


@dataclass(slots=True)
class Bucket:
    """What happened in a quarter of a second, and the state at its end.

    `occupied`: rows with a query, including rows whose query is done and that are `held`.
    """

    at: float
    iterations: int = 0
    busy_seconds: float = 0.0
    step_seconds: float = 0.0
    stall_seconds: float = 0.0
    slots: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SLOT_KINDS, 0))
    steps: int = 0
    columns: int = 0
    generated: int = 0
    prefilled: int = 0
    inserted: int = 0
    preempted: int = 0
    resized: int = 0
    rejected: int = 0
    rows: int = 0
    occupied: int = 0
    held: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    kv_budget: int = 0
    first_tokens: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class News:
    """What changed, as copies.

    `complete_from`: intervals before this time were dropped, because there were too many.
    """

    serial: int
    intervals: Sequence[RowInterval]
    buckets: Sequence[Bucket]
    complete_from: float


class Timeline:
    """Keeps the last `seconds`.

    May be read from any thread, which holds up the engine's thread for some microseconds.
    """

    def __init__(self, seconds: float = WINDOW_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._serial = 0
        self._now: dict[str, RowInterval] = {}
        # queries that left since the last iteration event, which will say what was computed for them
        self._left: list[RowInterval] = []
        self._past: deque[RowInterval] = deque()
        self._complete_from = 0.0
        self._buckets: deque[Bucket] = deque()

    def __call__(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, QueryMoved):
                self._moved(event)
            elif isinstance(event, IterationDone):
                self._iterated(event)
            elif isinstance(event, QueryEnded):
                self._ended(event)
            elif isinstance(event, QueryRejected):
                self._bucket(event.time).rejected += 1

    def since(self, serial: int, time: float) -> News:
        """Returns what is new: intervals changed after this serial, buckets from `time` on, and the next serial."""
        with self._lock:
            intervals = [replace(interval) for interval in self._now.values() if interval.serial > serial]
            for interval in reversed(self._past):
                if interval.serial <= serial:  # the ones that left earlier have not changed since either
                    break
                intervals.append(replace(interval))
            buckets = [bucket for bucket in self._buckets if bucket.at >= time]
            if buckets:
                buckets[-1] = replace(buckets[-1], slots=dict(buckets[-1].slots))
            return News(self._serial, intervals, buckets, self._complete_from)

    def last(self, seconds: float, now: float) -> list[Bucket]:
        """Buckets of the last so many seconds."""
        with self._lock:
            return [bucket for bucket in self._buckets if bucket.at > now - seconds]

    def _moved(self, event: QueryMoved) -> None:
        self._leave(event)
        kind = _LANES.get(event.now)
        if kind is not None:
            taken = {interval.lane for interval in self._now.values() if interval.kind == kind}
            lane = next(lane for lane in range(len(taken) + 1) if lane not in taken)
            interval = RowInterval(event.query_id, kind, lane, event.time, event.prompt_tokens)
            interval.generated = event.generated_tokens
            self._now[event.query_id] = self._changed(interval)
        if event.was is State.RUNNING and event.now.live:
            self._bucket(event.time).preempted += 1

    def _leave(self, event: QueryMoved) -> None:
        interval = self._now.pop(event.query_id, None)
        if interval is not None:
            interval.ended, interval.how = event.time, event.now.value
            interval.generated = event.generated_tokens
            self._past.append(self._changed(interval))
            self._left.append(interval)
            self._forget(event.time)

    def _fed(self, event: IterationDone) -> None:
        here = [*self._left, *self._now.values()]
        prompts, rows = ({interval.query for interval in here if interval.kind == kind} for kind in ("prefill", "run"))
        for interval in here:
            tokens = event.fed.get(interval.query, 0)
            # It came into its row in this iteration, with one token to feed.
            if tokens and interval.query in prompts & rows:
                tokens = tokens - 1 if interval.kind == "prefill" else 1
            if tokens or interval.ended is not None:
                self._changed(interval).tokens += tokens
            if tokens > 1:
                interval.filled = event.time
            if tokens and interval.kind == "run" and interval.ended is None:
                interval.generated += 1
        self._left.clear()

    def _iterated(self, event: IterationDone) -> None:
        self._fed(event)
        bucket = self._bucket(event.time)
        bucket.iterations += 1
        bucket.busy_seconds += event.seconds
        bucket.step_seconds += event.step_seconds
        bucket.stall_seconds += sum(event.stall_seconds.values())
        for kind, count in event.slots.by_kind().items():
            bucket.slots[kind] += count
        if event.step_seconds:
            bucket.steps += 1
            bucket.columns += event.slots.columns_needed + event.slots.columns_padding
        bucket.generated += event.generated_tokens
        bucket.prefilled += event.prefilled_tokens
        bucket.inserted += len(event.inserted)
        bucket.resized += event.resized_to is not None and event.resized_to != bucket.rows and bucket.rows > 0
        bucket.rows, bucket.occupied, bucket.waiting = event.rows, event.occupied, event.waiting
        bucket.held = max(0, event.occupied - sum(interval.kind == "run" for interval in self._now.values()))
        bucket.kv_bytes, bucket.kv_budget = event.kv_bytes_used, event.kv_bytes_budget

    def _ended(self, event: QueryEnded) -> None:
        bucket = self._bucket(event.time)
        if event.usage.first_token_seconds is not None and len(bucket.first_tokens) < _MOST_SAMPLES:
            bucket.first_tokens.append(event.usage.first_token_seconds)
        gaps = event.inter_token_seconds
        some = gaps[:: -(-len(gaps) // _SAMPLES_OF_A_QUERY) or 1]
        bucket.gaps += some[: _MOST_SAMPLES - len(bucket.gaps)]

    def _changed(self, interval: RowInterval) -> RowInterval:
        self._serial += 1
        interval.serial = self._serial
        return interval

    def _bucket(self, time: float) -> Bucket:
        at = time - time % BUCKET_SECONDS
        if not self._buckets or self._buckets[-1].at < at:
            before = self._buckets[-1] if self._buckets else None
            self._buckets.append(_after(before, at))
            self._forget(time)
        return self._buckets[-1]

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0].at < now - self._seconds:
            self._buckets.popleft()
        while self._past and ((self._past[0].ended or 0.0) < now - self._seconds or len(self._past) > MOST_INTERVALS):
            self._complete_from = self._past.popleft().ended or 0.0


def _after(before: Bucket | None, at: float) -> Bucket:
    """A new bucket that begins with the state of the one before."""
    if before is None:
        return Bucket(at)
    bucket = Bucket(at, rows=before.rows, occupied=before.occupied, held=before.held, waiting=before.waiting)
    bucket.kv_bytes, bucket.kv_budget = before.kv_bytes, before.kv_budget
    return bucket


def percentile(values: Iterable[float], share: float) -> float | None:
    """The nearest-rank percentile; None if there are no values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
