"""Counts of the engine's events: the numbers behind the metrics page."""

from __future__ import annotations

from collections import Counter

from baton.core.events import RESUMED, SLOT_KINDS, Event, IterationDone, QueryEnded, QueryMoved, QueryRejected
from baton.core.query import State
from baton.observe.counters import CounterVec, Histogram, LastMinute
from baton.observe.replicas import Load

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)

_ENDS = (State.FINISHED, State.CANCELLED, State.FAILED, State.EXPIRED, State.MOVED)


class Counted:
    """All counts of events. Not locked; `Metrics` holds the lock."""

    def __init__(self) -> None:
        self._rows: int | None = None
        self.last_minute = LastMinute()
        self.load = Load()
        self._make_tallies()
        self._make_histograms()

    def _make_tallies(self) -> None:
        self.outcomes = CounterVec(*(state.value for state in _ENDS))
        self.reasons: Counter[str] = Counter()
        self.tokens = CounterVec("prompt", "generated")
        self.slots = CounterVec(*SLOT_KINDS)
        self.columns = CounterVec("needed", "padding")
        self.preemptions = CounterVec()
        self.resizes = CounterVec("grow", "shrink")
        self.insertions = 0
        self.stalls = CounterVec("prefill", "insert", "resize", "other")
        self.rejections = CounterVec()
        self.ignored = CounterVec()

    def _make_histograms(self) -> None:
        self.first_token = Histogram(_SLOW)
        self.inter_token = Histogram(_QUICK)
        self.per_token = Histogram(_QUICK)
        self.end_to_end = Histogram(_SLOW)
        self.queued = Histogram(_SLOW)
        self.prefilled = Histogram(_SLOW)
        self.decoded = Histogram(_SLOW)
        self.iterations = {kind: Histogram(_QUICK) for kind in ("decode", "prefill", "both", "none")}
        self.prompt_tokens = Histogram(_TOKENS)
        self.generated_tokens = Histogram(_TOKENS)
        self.occupancy = Histogram(_SHARES)

    def add(self, event: Event) -> None:
        """Counts one event."""
        if isinstance(event, IterationDone):
            self._iterated(event)
        elif isinstance(event, QueryMoved):
            self._moved(event)
        elif isinstance(event, QueryEnded):
            self._ended(event)
        elif isinstance(event, QueryRejected):
            self.rejections.add(event.reason)
            if event.reason == "queue_full":
                self.load.arrived(event.time)

    def _iterated(self, event: IterationDone) -> None:
        slots = event.slots
        for kind, count in slots.by_kind().items():
            self.slots.add(kind, count)
        self.columns.add("needed", slots.columns_needed)
        self.columns.add("padding", slots.columns_padding)
        self.last_minute.add(event.time, slots.useful, slots.idle)
        self.tokens.add("generated", event.generated_tokens)
        self.insertions += len(event.inserted)
        for cause, seconds in event.stall_seconds.items():
            self.stalls.add(cause, seconds)
        self.iterations.setdefault(event.kind, Histogram(_QUICK)).observe(event.seconds)
        if event.rows:
            self.occupancy.observe(event.occupied / event.rows)
        if event.occupied:
            self.load.iterated(event.time, event.kv_bytes_used / event.occupied)
        if event.resized_to is not None and self._rows not in (None, event.resized_to):
            self.resizes.add("grow" if event.resized_to > (self._rows or 0) else "shrink")
        self._rows = event.rows

    def _moved(self, event: QueryMoved) -> None:
        if event.was is None:
            if event.why != RESUMED:
                self.tokens.add("prompt", event.prompt_tokens)
            self.load.arrived(event.time)
        elif event.was is State.RUNNING and event.now.live:
            self.preemptions.add(event.why)

    def _ended(self, event: QueryEnded) -> None:
        usage = event.usage
        self.outcomes.add(event.outcome.value)
        if event.outcome is State.MOVED:
            return  # the engine that ends the query tells how long it took in all
        # A client's own error ends its query as cancelled; nothing has failed.
        self.reasons["cancelled" if event.outcome is State.CANCELLED else event.finish_reason] += 1
        self.load.ended(event.time, usage.prefill_seconds + usage.decode_seconds)
        self.queued.observe(usage.queue_seconds)
        self.prefilled.observe(usage.prefill_seconds)
        self.decoded.observe(usage.decode_seconds)
        self.end_to_end.observe(event.end_to_end_seconds)
        self.prompt_tokens.observe(usage.prompt_tokens)
        self.generated_tokens.observe(usage.generated_tokens)
        if usage.first_token_seconds is not None:
            self.first_token.observe(usage.first_token_seconds)
        for gap in event.inter_token_seconds:
            self.inter_token.observe(gap)
        if event.inter_token_seconds:
            self.per_token.observe(sum(event.inter_token_seconds) / len(event.inter_token_seconds))
