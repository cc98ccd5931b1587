"""Spans of queries for OpenTelemetry: one for each query, with one below it for each stretch of its life.

They are made when a query has ended, on a thread of their own, and exported by the SDK on another, from a queue that
drops what is too much: a collector that is slow or gone costs the engine nothing. Nothing else imports OpenTelemetry.
Attributes have the names of its conventions for generative AI, and `baton.*` where it has none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from baton.core.clock import Clock, monotonic
from baton.core.events import Event, QueryEnded, QueryMoved
from baton.core.origin import Origin
from baton.core.query import State
from baton.core.sampling import SamplingParams
from baton.observe.background import BackgroundSink

CLOSE_SECONDS = 3.0
"""How long the end of the process waits for spans that are not exported yet."""
TELL_SECONDS = 60.0
"""How often lost spans are logged."""
_LOGGERS = ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk._shared_internal")
_MOST_QUERIES = 65_536
_MOST_MOVES = 128
_PROPAGATOR = TraceContextTextMapPropagator()
_FAILED = frozenset({State.FAILED, State.EXPIRED})
_STRETCHES = {State.WAITING: "queue", State.PREFILLING: "prefill", State.READY: "queue", State.RUNNING: "decode"}
PREEMPTED = "preempted"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of a query's life, on the engine's clock. `why` it began, as the policy has it."""

    name: str
    began: float
    ended: float
    why: str


@dataclass(slots=True)
class _Life:
    moves: list[QueryMoved] = field(default_factory=list)
    left_out: int = 0

    def take(self, event: QueryMoved) -> None:
        # A query that is preempted over and over has a beginning that tells enough.
        if len(self.moves) < _MOST_MOVES or not event.now.live:
            self.moves.append(event)
        else:
            self.left_out += 1

    def stretches(self, arrived: float) -> Iterator[Stretch]:
        has_run = False
        for move, following in pairwise(self.moves):
            has_run = has_run or move.now is State.RUNNING
            name = _STRETCHES[move.now]
            name = PREEMPTED if has_run and name == "queue" else name
            yield Stretch(name, arrived if move.was is None else move.time, following.time, move.why)


class QuerySpans:
    """A sink. `clock`: the engine's; `wall_ns`: the time of day in nanoseconds, which spans have."""

    def __init__(
        self,
        provider: TracerProvider,
        model: str,
        clock: Clock = monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("baton")
        self._model = model
        self._clock = clock
        self._wall_ns = wall_ns
        self._lives: dict[str, _Life] = {}
        self._background = BackgroundSink(self._take, "spans")

    def __call__(self, event: Event) -> None:
        if isinstance(event, (QueryMoved, QueryEnded)):
            self._background(event)

    def close(self) -> None:
        """Exports what is there, if the collector takes it within some seconds. May be called twice."""
        self._background.close()
        # The SDK waits for half a minute if a collector does not answer.
        ending = threading.Thread(target=self._provider.shutdown, name="baton-spans-end", daemon=True)
        ending.start()
        ending.join(CLOSE_SECONDS)

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, QueryMoved):
                self._lives.setdefault(event.query_id, _Life()).take(event)
                if len(self._lives) > _MOST_QUERIES:  # the ends of some were dropped
                    del self._lives[next(iter(self._lives))]
            elif isinstance(event, QueryEnded):
                self._ended(event, self._lives.pop(event.query_id, _Life()))

    def _ended(self, event: QueryEnded, life: _Life) -> None:
        since_clock_began = self._wall_ns() - int(self._clock() * 1e9)

        def ns(at: float) -> int:
            return since_clock_began + int(at * 1e9)

        arrived, usage = event.time - event.end_to_end_seconds, event.usage
        operation = event.origin.operation or "text_completion"
        span = self._tracer.start_span(
            f"{operation} {self._model}",
            context=_parent(event.origin),
            kind=SpanKind.SERVER,
            attributes={**self._asked(event, operation), **_answered(event, self._model)},
            start_time=ns(arrived),
        )
        if not span.is_recording():  # the client's trace is not sampled
            return
        if life.left_out:
            span.set_attribute("baton.moves_left_out", life.left_out)
        if event.outcome in _FAILED:
            span.set_status(StatusCode.ERROR)
            span.set_attribute("error.type", event.outcome.value)
        if usage.first_token_seconds is not None:
            span.add_event("first token", timestamp=ns(arrived + usage.first_token_seconds))
        inside = set_span_in_context(span)
        for part in life.stretches(arrived):
            child = self._tracer.start_span(
                part.name, context=inside, attributes={"baton.why": part.why}, start_time=ns(part.began)
            )
            child.end(ns(part.ended))
        span.end(ns(event.time))

    def _asked(self, event: QueryEnded, operation: str) -> dict[str, Any]:
        return {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "baton",
            "gen_ai.request.model": self._model,
            "baton.query.id": event.query_id,
            **({} if event.params is None else _sampled(event.params)),
        }


class Sparing(logging.Filter):
    """Lets one line through in a minute, because without a collector each batch logs some."""

    def __init__(self, clock: Clock = monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._until = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if self._clock() < self._until:
            return False
        self._until = self._clock() + TELL_SECONDS
        return True


def export_spans(model: str, version: str, exporter: SpanExporter | None = None) -> QuerySpans:
    """A sink whose spans go where OpenTelemetry's variables say, by OTLP over HTTP, if there is no other exporter."""
    sparing = Sparing()
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(sparing)
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "baton", SERVICE_VERSION: version}))
    # A provider of our own: the global one would have other packages of the process export, too.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    return QuerySpans(provider, model)


def _parent(origin: Origin) -> Context:
    """The client's span; nothing if there is none, or if its header cannot be parsed."""
    headers = {"traceparent": origin.traceparent, "tracestate": origin.tracestate}
    sent = {name: value for name, value in headers.items() if value}
    return _PROPAGATOR.extract(sent, context=Context())


def _sampled(params: SamplingParams) -> Mapping[str, Any]:
    """What was asked for, without what was not."""
    stop = params.stop
    asked = {
        "choice.count": params.n if params.n != 1 else None,
        "seed": params.seed,
        "top_k": float(params.top_k) if params.top_k > 0 else None,
        "max_tokens": params.max_tokens,
        "temperature": float(params.temperature),
        "top_p": float(params.top_p),
        "frequency_penalty": float(params.frequency_penalty) or None,
        "presence_penalty": float(params.presence_penalty) or None,
        "stop_sequences": ([stop] if isinstance(stop, str) else list(stop)) or None,
    }
    return {f"gen_ai.request.{name}": value for name, value in asked.items() if value is not None}


def _answered(event: QueryEnded, model: str) -> Mapping[str, Any]:
    usage = event.usage
    return {
        "gen_ai.response.model": model,
        "gen_ai.response.finish_reasons": [event.finish_reason],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "baton.queue_seconds": usage.queue_seconds,
        "baton.prefill_seconds": usage.prefill_seconds,
        "baton.decode_seconds": usage.decode_seconds,
        "baton.preemptions": usage.preemptions,
        "baton.slots.useful": usage.useful_slots,
        "baton.slots.idle": usage.idle_slots,
    }
