"""Prometheus metrics of the engine's events, under the names of the contract's section 6.

The numbers are kept here and given to prometheus_client when it asks: its own Counter and Histogram cannot stand
in one registry under the names `baton_prompt_tokens_total` and `baton_prompt_tokens`, which the contract promises.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

from baton.clock import Clock
from baton.engine.client import Stats
from baton.events import SLOT_KINDS, Event, IterationDone, QueryEnded, QueryMoved, QueryRejected
from baton.observe.tally import Histogram, LastMinute, Tally
from baton.query import State

_QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_SLOW = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)

_ENDS = (State.FINISHED, State.CANCELLED, State.FAILED, State.EXPIRED)

GAUGES = {
    "baton_queries_running": ("running", "Queries that have a row of the batch."),
    "baton_queries_waiting": ("waiting", "Queries of which nothing was computed yet."),
    "baton_queries_prefilling": (
        "prefilling",
        "Queries whose prompt is being computed apart from the batch.",
    ),
    "baton_queries_preempted": ("preempted", "Queries that were running and wait to run again."),
    "baton_batch_rows": ("rows", "Rows of the running batch."),
    "baton_batch_columns": ("columns", "Columns of the running batch."),
    "baton_batch_rows_occupied": ("rows_occupied", "Rows of the running batch that have a query."),
    "baton_kv_bytes_used": ("kv_bytes_used", "Bytes of keys and values that all rows take."),
    "baton_kv_bytes_budget": ("kv_bytes_budget", "Bytes that all rows may take now."),
    "baton_pool_bytes_used": ("pool_bytes_used", "Bytes of keys and values kept outside all rows."),
    "baton_prefix_bytes_used": ("prefix_bytes_used", "Bytes of stored prefixes, which give way to those set aside."),
    "baton_pool_bytes_budget": ("pool_bytes_budget", "Bytes that may be kept outside all rows now."),
    "baton_engine_last_iteration_age_seconds": (
        "last_iteration_age_seconds",
        "Seconds since the engine's thread last came round.",
    ),
}
"""Metric name: the field of Stats that it shows, and its help."""


class Metrics:
    """A sink of events, and the page that they add up to. May be called from any thread."""

    def __init__(self, model_name: str, clock: Clock) -> None:
        self._model_name = model_name
        self._clock = clock
        self._lock = threading.Lock()
        self._rows: int | None = None
        self._last_minute = LastMinute()
        self._make_tallies()
        self._make_histograms()

    def _make_tallies(self) -> None:
        self.outcomes = Tally(*(state.value for state in _ENDS))
        self.tokens = Tally("prompt", "generated")
        self.slots = Tally(*SLOT_KINDS)
        self.columns = Tally("needed", "padding")
        self.preemptions = Tally()
        self.resizes = Tally("grow", "shrink")
        self.insertions = 0
        self.stalls = Tally("prefill", "insert", "resize", "other")
        self.rejections = Tally()

    def _make_histograms(self) -> None:
        self.first_token = Histogram(_SLOW)
        self.inter_token = Histogram(_QUICK)
        self.per_token = Histogram(_QUICK)
        self.end_to_end = Histogram(_SLOW)
        self.queued = Histogram(_SLOW)
        self.prefilled = Histogram(_SLOW)
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

    def render(self, stats: Stats) -> tuple[bytes, str]:
        """The metrics page and its content type; gauges are those of `stats`."""
        registry = CollectorRegistry()
        registry.register(_Page(self._families(stats)))
        return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4

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
        if event.resized_to is not None and self._rows not in (None, event.resized_to):
            self.resizes.add("grow" if event.resized_to > (self._rows or 0) else "shrink")
        self._rows = event.rows

    def _moved(self, event: QueryMoved) -> None:
        if event.was is None:
            self.tokens.add("prompt", event.prompt_tokens)
        elif event.was is State.RUNNING and event.now.live:
            self.preemptions.add(event.why)

    def _ended(self, event: QueryEnded) -> None:
        usage = event.usage
        self.outcomes.add(event.outcome.value)
        self.queued.observe(usage.queue_seconds)
        self.prefilled.observe(usage.prefill_seconds)
        self.end_to_end.observe(event.end_to_end_seconds)
        self.prompt_tokens.observe(usage.prompt_tokens)
        self.generated_tokens.observe(usage.generated_tokens)
        if usage.first_token_seconds is not None:
            self.first_token.observe(usage.first_token_seconds)
        for gap in event.inter_token_seconds:
            self.inter_token.observe(gap)
        if event.inter_token_seconds:
            self.per_token.observe(sum(event.inter_token_seconds) / len(event.inter_token_seconds))

    def _families(self, stats: Stats) -> list[Metric]:
        with self._lock:
            return [*self._gauges(stats), *self._counters(stats), *self._histograms()]

    def _gauges(self, stats: Stats) -> Iterator[Metric]:
        found = {name: (float(getattr(stats, field)), help) for name, (field, help) in GAUGES.items()}
        ratio = self._last_minute.idle_ratio(self._clock())
        found["baton_idle_ratio"] = (ratio, "Share of the last minute's token slots that no query needed.")
        for name, (value, help) in found.items():
            family = GaugeMetricFamily(name, help, labels=["model_name"])
            family.add_metric([self._model_name], value)
            yield family

    def _counters(self, stats: Stats) -> Iterator[Metric]:
        yield self._labelled("queries", "Queries that left the engine.", "outcome", self.outcomes)
        yield self._plain("prompt_tokens", "Prompt tokens of admitted queries.", self.tokens.by_label["prompt"])
        yield self._plain("generated_tokens", "Tokens drawn.", self.tokens.by_label["generated"])
        spared = "Tokens that were not computed: an earlier text began with them."
        yield self._plain("prefix_cached_tokens", spared, stats.prefix_cached_tokens)
        recomputed = self.slots.by_label["recomputed"]
        yield self._plain("recomputed_tokens", "Tokens computed again after they were forgotten.", recomputed)
        yield self._labelled("token_slots", "Token positions that forwards computed.", "kind", self.slots)
        yield self._labelled("kv_columns", "Columns of keys and values that attention read.", "kind", self.columns)
        yield self._labelled("preemptions", "Running queries that lost their row.", "reason", self.preemptions)
        yield self._labelled("batch_resizes", "Changes of the batch's rows.", "direction", self.resizes)
        yield self._plain("insertions", "Queries inserted into the running batch.", self.insertions)
        waits = "Time that running rows waited for something else than their own step."
        yield self._labelled("decode_stall_seconds", waits, "cause", self.stalls)
        refused = "Queries that were not admitted."
        yield self._labelled("admission_rejections", refused, "reason", self.rejections)

    def _histograms(self) -> Iterator[Metric]:
        seconds = {
            "time_to_first_token": ("Arrival to first token.", self.first_token),
            "inter_token": ("Between two tokens of a query.", self.inter_token),
            "time_per_output_token": ("A query's mean time between tokens.", self.per_token),
            "end_to_end": ("Arrival to end.", self.end_to_end),
            "queue": ("Time that a query spent waiting or ready.", self.queued),
            "prefill": ("Time that a query spent prefilling.", self.prefilled),
        }
        for name, (help, histogram) in seconds.items():
            yield self._histogram(f"{name}_seconds", help, {"": histogram})
        yield self._histogram("iteration_seconds", "One turn of the engine.", self.iterations, "kind")
        yield self._histogram("prompt_tokens", "Prompt tokens of a query.", {"": self.prompt_tokens})
        yield self._histogram("generated_tokens", "Tokens that a query drew.", {"": self.generated_tokens})
        yield self._histogram("batch_occupancy", "Share of rows that have a query.", {"": self.occupancy})

    def _plain(self, name: str, help: str, value: float) -> Metric:
        family = CounterMetricFamily(f"baton_{name}", help, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _labelled(self, name: str, help: str, label: str, tally: Tally) -> Metric:
        family = CounterMetricFamily(f"baton_{name}", help, labels=["model_name", label])
        for value, amount in tally.by_label.items():
            family.add_metric([self._model_name, value], amount)
        return family

    def _histogram(self, name: str, help: str, each: dict[str, Histogram], label: str = "") -> Metric:
        labels = ["model_name", label] if label else ["model_name"]
        family = HistogramMetricFamily(f"baton_{name}", help, labels=labels)
        for value, histogram in each.items():
            values = [self._model_name, value] if label else [self._model_name]
            family.add_metric(values, histogram.buckets(), histogram.sum)
        return family


class _Page(Collector):
    """Families that were made before, as a registry wants them."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
