"""Prometheus metrics of the engine's events, under their public names (docs/metrics.md)."""

from __future__ import annotations

import threading
from collections import Counter

from baton.core.clock import Clock
from baton.core.events import SLOT_KINDS, Event, IterationDone, QueryEnded, QueryMoved, QueryRejected
from baton.core.query import State
from baton.engine.client import Stats
from baton.observe.catalog import FAMILIES
from baton.observe.compat import vllm
from baton.observe.counters import CounterVec, Histogram, LastMinute
from baton.observe.exposition import Values, page
from baton.observe.replicas import Load

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)

_ENDS = (State.FINISHED, State.CANCELLED, State.FAILED, State.EXPIRED)

GAUGES = {
    "baton_queries_running": "running",
    "baton_queries_waiting": "waiting",
    "baton_queries_prefilling": "prefilling",
    "baton_queries_preempted": "preempted",
    "baton_batch_rows": "rows",
    "baton_batch_columns": "columns",
    "baton_batch_rows_occupied": "rows_occupied",
    "baton_kv_bytes_used": "kv_bytes_used",
    "baton_kv_bytes_budget": "kv_bytes_budget",
    "baton_pool_bytes_used": "pool_bytes_used",
    "baton_prefix_bytes_used": "prefix_bytes_used",
    "baton_pool_bytes_budget": "pool_bytes_budget",
    "baton_engine_last_iteration_age_seconds": "last_iteration_age_seconds",
}
"""Metric name: the field of Stats that it shows."""


class Metrics:
    """A sink of events, and the page that they add up to. May be called from any thread."""

    def __init__(self, model_name: str, clock: Clock, *, max_rows: int = 1, compat: bool = False) -> None:
        """`max_rows`: most rows of the batch. `compat`: vLLM's names beside baton's."""
        self._model_name = model_name
        self._clock = clock
        self._compat = compat
        self._lock = threading.Lock()
        self._rows: int | None = None
        self._last_minute = LastMinute()
        self.load = Load()
        self.max_rows = max_rows
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

    def __call__(self, event: Event) -> None:
        """Counts one event. Quick: additions under a lock that is only held for such."""
        with self._lock:
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

    def render(self, stats: Stats) -> tuple[bytes, str]:
        """The metrics page and its content type; gauges are those of `stats`."""
        with self._lock:
            ours = self._values(stats)
            families = [(family, ours[family.name]) for family in FAMILIES]
            if self._compat:
                families += vllm(stats, ours, self.reasons)
            return page(self._model_name, families)

    def _iterated(self, event: IterationDone) -> None:
        slots = event.slots
        for kind, count in slots.by_kind().items():
            self.slots.add(kind, count)
        self.columns.add("needed", slots.columns_needed)
        self.columns.add("padding", slots.columns_padding)
        self._last_minute.add(event.time, slots.useful, slots.idle)
        self.tokens.add("generated", event.generated_tokens)
        self.insertions += len(event.inserted)
        for cause, seconds in event.stall_seconds.items():
            self.stalls.add(cause, seconds)
        self.iterations.setdefault(event.kind, Histogram(_QUICK)).observe(event.seconds)
        if event.rows:
            self.occupancy.observe(event.occupied / event.rows)
        if event.occupied:
            self.load.looked(event.time, event.kv_bytes_used / event.occupied)
        if event.resized_to is not None and self._rows not in (None, event.resized_to):
            self.resizes.add("grow" if event.resized_to > (self._rows or 0) else "shrink")
        self._rows = event.rows

    def _moved(self, event: QueryMoved) -> None:
        if event.was is None:
            self.tokens.add("prompt", event.prompt_tokens)
            self.load.arrived(event.time)
        elif event.was is State.RUNNING and event.now.live:
            self.preemptions.add(event.why)

    def _ended(self, event: QueryEnded) -> None:
        usage = event.usage
        self.outcomes.add(event.outcome.value)
        # Who is told of an error of its own making is called off, and nothing has failed.
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

    def _values(self, stats: Stats) -> dict[str, Values]:
        """All values, by the names of the catalog."""
        now = self._clock()
        wanted = self.load.wanted(
            now, waiting=stats.waiting, max_rows=self.max_rows, kv_bytes_budget=stats.kv_bytes_budget
        )
        single: dict[str, float | Histogram] = {
            **{name: float(getattr(stats, field)) for name, field in GAUGES.items()},
            "baton_idle_ratio": self._last_minute.idle_ratio(now),
            "baton_wanted_replicas": float(wanted.replicas),
            "baton_prompt_tokens_total": self.tokens.by_label["prompt"],
            "baton_generated_tokens_total": self.tokens.by_label["generated"],
            "baton_prefix_cached_tokens_total": float(stats.prefix_cached_tokens),
            "baton_recomputed_tokens_total": self.slots.by_label["recomputed"],
            "baton_insertions_total": float(self.insertions),
            "baton_time_to_first_token_seconds": self.first_token,
            "baton_inter_token_seconds": self.inter_token,
            "baton_time_per_output_token_seconds": self.per_token,
            "baton_end_to_end_seconds": self.end_to_end,
            "baton_queue_seconds": self.queued,
            "baton_prefill_seconds": self.prefilled,
            "baton_decode_seconds": self.decoded,
            "baton_prompt_tokens": self.prompt_tokens,
            "baton_generated_tokens": self.generated_tokens,
            "baton_batch_occupancy": self.occupancy,
        }
        return {
            **{name: {"": value} for name, value in single.items()},
            "baton_wanted_replicas_by": wanted._asdict(),
            "baton_queries_total": self.outcomes.by_label,
            "baton_token_slots_total": self.slots.by_label,
            "baton_kv_columns_total": self.columns.by_label,
            "baton_preemptions_total": self.preemptions.by_label,
            "baton_batch_resizes_total": self.resizes.by_label,
            "baton_decode_stall_seconds_total": self.stalls.by_label,
            "baton_admission_rejections_total": self.rejections.by_label,
            "baton_iteration_seconds": self.iterations,
        }
