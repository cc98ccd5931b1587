"""Spans of queries: what they say, whose children they are, and that a collector which is gone costs nothing."""

from __future__ import annotations

import gzip
import http.server
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import baton
from baton.cli import spans as cli_spans
from baton.cli.spans import spans_of
from baton.core.origin import NO_ORIGIN, Origin
from baton.core.query import Query, State
from baton.core.sampling import SamplingParams
from baton.engine.lifecycle import Lifecycle
from baton.observe.spans import TELL_SECONDS, QuerySpans, Sparing, export_spans
from baton.testing.clock import ManualClock
from house import edges_of, reached_over, tree_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PATIENCE_SECONDS = 10.0
DAY_NS = 1_700_000_000 * 10**9
"""The time of day when the engine's clock was at 0."""
PARAMS = SamplingParams(n=2, temperature=0.5, top_k=7, max_tokens=9, seed=3, stop=("x",))


class Engine:
    """Lives of queries whose spans are kept in memory."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self.clock = ManualClock(100.0)
        self.kept = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter or self.kept))
        self.sink = QuerySpans(provider, "m", self.clock, lambda: DAY_NS + int(self.clock() * 1e9))
        self.lives = Lifecycle(self.clock, [self.sink])

    def arrive(self, name: str, origin: Origin = NO_ORIGIN, params: SamplingParams = PARAMS) -> None:
        query = Query(name, (1, 2, 3), params, seed=3, limit_tokens=9, arrived=self.clock(), origin=origin)
        self.lives.arrive(query)

    def live(self, name: str, *moves: State, end: State = State.FINISHED, reason: str = "stop") -> None:
        """Goes through these states, a second in each, and ends with a token."""
        for state in moves:
            self.clock.advance(1.0)
            self.lives.move(name, state, f"why {state}")
        self.clock.advance(0.5)
        self.lives.token(name)
        self.clock.advance(0.5)
        self.lives.end(name, end, reason)

    def spans(self) -> dict[str, list[ReadableSpan]]:
        """By name, in the order in which they ended."""
        self.sink.close()
        spans: dict[str, list[ReadableSpan]] = {}
        for span in self.kept.get_finished_spans():
            spans.setdefault(span.name, []).append(span)
        return spans


ALL = (State.PREFILLING, State.READY, State.RUNNING)


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """When it began and ended, on the engine's clock."""
    assert span.start_time is not None and span.end_time is not None
    return (span.start_time - DAY_NS) / 1e9, (span.end_time - DAY_NS) / 1e9


def test_a_query_is_a_span_with_one_below_it_for_each_stretch_of_its_life() -> None:
    engine = Engine()
    engine.arrive("a", Origin("chat"))
    engine.live("a", *ALL)
    spans = engine.spans()
    (whole,) = spans.pop("chat m")
    assert seconds(whole) == (100.0, 104.0) and whole.parent is None and whole.kind is SpanKind.SERVER
    assert {name: [seconds(span) for span in some] for name, some in spans.items()} == {
        "queue": [(100.0, 101.0), (102.0, 103.0)],
        "prefill": [(101.0, 102.0)],
        "decode": [(103.0, 104.0)],
    }
    for span in (span for some in spans.values() for span in some):
        assert span.parent is not None and span.parent.span_id == whole.context.span_id
        assert span.context.trace_id == whole.context.trace_id
    assert (spans["prefill"][0].attributes or {})["baton.why"] == "why prefilling"
    (first,) = whole.events
    assert (first.name, first.timestamp - DAY_NS) == ("first token", 103_500_000_000)


def test_attributes_have_the_names_of_the_conventions() -> None:
    engine = Engine()
    engine.arrive("a", Origin("chat"))
    engine.live("a", *ALL)
    said = dict(engine.spans()["chat m"][0].attributes or {})
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "baton",
        "gen_ai.request.model": "m",
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 7.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 3,
        "gen_ai.request.stop_sequences": ("x",),
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "baton.query.id": "a",
        "baton.queue_seconds": 2.0,
        "baton.prefill_seconds": 1.0,
        "baton.decode_seconds": 1.0,
        "baton.preemptions": 0,
        "baton.slots.useful": 0,
        "baton.slots.idle": 0,
    }


def test_waiting_to_run_again_is_told_apart_from_the_queue() -> None:
    engine = Engine()
    engine.arrive("a")
    engine.live("a", *ALL, State.READY, State.WAITING, *ALL)
    spans = engine.spans()
    assert [seconds(span) for span in spans["preempted"]] == [(104.0, 105.0), (105.0, 106.0), (107.0, 108.0)]
    assert [seconds(span) for span in spans["decode"]] == [(103.0, 104.0), (108.0, 109.0)]
    assert len(spans["queue"]) == 2 and len(spans["prefill"]) == 2
    assert (spans["text_completion m"][0].attributes or {})["baton.preemptions"] == 1


def test_a_life_without_end_has_a_bounded_number_of_spans() -> None:
    engine = Engine()
    engine.arrive("a")
    engine.live("a", *ALL, *(State.READY, State.RUNNING) * 500)
    spans = engine.spans()
    (whole,) = spans.pop("text_completion m")
    assert sum(map(len, spans.values())) == 128
    assert (whole.attributes or {})["baton.moves_left_out"] == 1004 - 128 and seconds(whole)[1] == 1104.0


def test_the_clients_span_is_the_parent_of_each_choice() -> None:
    engine = Engine()
    for name in ("a", "b"):
        engine.arrive(name, Origin("chat", SAMPLED, "vendor=x"))
        engine.live(name, *ALL)
    whole = engine.spans()["chat m"]
    assert len(whole) == 2 and len({span.context.span_id for span in whole}) == 2
    for span in whole:
        assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT
        assert f"{span.context.trace_id:032x}" == TRACE and span.context.trace_state.get("vendor") == "x"


@pytest.mark.parametrize(
    "sent",
    [
        *("", "00", "x" * 55, f"00-{TRACE}-{PARENT}", f"{SAMPLED}-more", f"ff-{TRACE}-{PARENT}-01"),
        *(f"00-{TRACE.upper()}-{PARENT}-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01"),
    ],
)
def test_a_parent_that_cannot_be_read_is_none(sent: str) -> None:
    engine = Engine()
    engine.arrive("a", Origin("chat", sent, "vendor=x"))
    engine.live("a", *ALL)
    (whole,) = engine.spans()["chat m"]
    assert whole.parent is None and f"{whole.context.trace_id:032x}" != TRACE


def test_what_the_client_does_not_sample_is_not_exported() -> None:
    engine = Engine()
    engine.arrive("a", Origin("chat", NOT_SAMPLED))
    engine.live("a", *ALL)
    assert engine.spans() == {}


@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [(State.FAILED, "error", "failed"), (State.EXPIRED, "expired", "expired"), (State.CANCELLED, "cancelled", None)],
)
def test_a_query_that_failed_is_an_error_and_one_that_was_cancelled_is_none(
    end: State, reason: str, error: str | None
) -> None:
    engine = Engine()
    engine.arrive("a")
    engine.live("a", *ALL, end=end, reason=reason)
    (whole,) = engine.spans()["text_completion m"]
    assert (whole.attributes or {}).get("error.type") == error
    assert whole.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


def test_a_query_that_never_ran_has_waited_alone() -> None:
    engine = Engine()
    engine.arrive("a")
    engine.clock.advance(1.0)
    engine.lives.end("a", State.CANCELLED, "cancelled")
    spans = engine.spans()
    assert set(spans) == {"queue", "text_completion m"} and spans["text_completion m"][0].events == ()


class Stuck(SpanExporter):
    """A collector that never answers."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.freed = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked.set()
        self.freed.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


def test_a_collector_that_never_answers_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.observe.spans.CLOSE_SECONDS", 0.0)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    stuck = Stuck()
    sink = export_spans("m", "1", stuck)
    clock = ManualClock(100.0)
    lives = Lifecycle(clock, [sink])
    try:
        for at in range(2000):
            lives.arrive(Query(str(at), (1,), PARAMS, seed=0, limit_tokens=9, arrived=clock()))
            lives.move(str(at), State.RUNNING, "why")
            lives.end(str(at), State.FINISHED, "stop")
        sink.close()  # returns while the collector has not answered
        assert stuck.asked.wait(PATIENCE_SECONDS) and not stuck.freed.is_set()
    finally:
        stuck.freed.set()


def test_lost_spans_are_told_once_a_minute() -> None:
    clock = ManualClock(0.0)
    sparing = Sparing(clock)
    record = logging.LogRecord("x", logging.WARNING, "", 0, "Transient error", (), None)
    assert [sparing.filter(record) for _ in range(3)] == [True, False, False]
    clock.advance(TELL_SECONDS)
    assert [sparing.filter(record) for _ in range(2)] == [True, False]


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector on a port of its own, and what it was sent."""
    came: list[ExportTraceServiceRequest] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            if self.path == "/v1/traces":
                came.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", came
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("variable", "path"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "/v1/traces")],
)
def test_spans_come_to_the_collector_that_the_variables_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, path: str
) -> None:
    with collector() as (url, came):
        monkeypatch.setenv(variable, url + path)
        sink = spans_of("m", {variable: url + path})
        assert sink is not None
        clock = ManualClock(100.0)
        lives = Lifecycle(clock, [sink])
        lives.arrive(Query("a", (1,), PARAMS, 0, 9, clock(), origin=Origin("chat", SAMPLED)))
        lives.end("a", State.FINISHED, "stop")
        sink.close()
    (one,) = came
    (resource,) = one.resource_spans
    about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert about["service.name"] == "baton" and about["service.version"] == baton.__version__
    spans = {span.name: span for span in resource.scope_spans[0].spans}
    assert set(spans) == {"queue", "chat m"}
    assert spans["chat m"].trace_id.hex() == TRACE and spans["chat m"].parent_span_id.hex() == PARENT
    assert spans["queue"].parent_span_id == spans["chat m"].span_id


def test_the_name_of_the_service_is_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with collector() as (url, came):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        sink = export_spans("m", "1")
        lives = Lifecycle(ManualClock(100.0), [sink])
        lives.arrive(Query("a", (1,), PARAMS, 0, 9, 100.0))
        lives.end("a", State.FINISHED, "stop")
        sink.close()
    attributes = came[0].resource_spans[0].resource.attributes
    assert {pair.key: pair.value.string_value for pair in attributes}["service.name"] == "mine"


ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318"},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_without_the_variables_there_are_no_spans_and_no_word_of_them(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "baton.observe.spans", None)  # importing it would fail
    assert spans_of("m", environment) is None
    assert capsys.readouterr().err == ""


def test_nothing_of_opentelemetry_is_imported_without_the_variables() -> None:
    tree = tree_of(Path(baton.__file__).parent)
    edges = edges_of(tree)
    imports = {name.split(".")[0] for name in reached_over(edges, "baton.cli.serve_engine")}
    assert "fastapi" in imports and "opentelemetry" not in imports
    # What imports it is itself imported by name, where it is asked for, and by nothing else.
    importers = {name for name in tree if "opentelemetry" in {one.split(".")[0] for one in reached_over(edges, name)}}
    assert importers == {"baton.observe.spans"}


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize("missing", ["opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"])
def test_missing_packages_cost_one_line_with_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name == "baton.observe.spans" or name.startswith(missing)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(cli_spans, "errors", type(cli_spans.errors)(stderr=True, highlight=False, soft_wrap=True))
    assert spans_of("m", ENDPOINT) is None
    assert told(capsys) == "no spans are exported: pip install 'baton-llm[otel]'\n"


def test_a_protocol_that_is_not_spoken_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli_spans, "errors", type(cli_spans.errors)(stderr=True, highlight=False, soft_wrap=True))
    assert spans_of("m", {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is None
    assert told(capsys) == "no spans are exported: OTLP's protocol here is http/protobuf (port 4318), not grpc\n"
