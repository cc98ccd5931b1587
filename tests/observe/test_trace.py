"""Traces: what is written is read again as it was, figures come out the same, and trouble with the disk stays there."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from baton.core.errors import InvalidValue, SettingError
from baton.core.events import Event, QueryRejected
from baton.observe.background import BackgroundSink
from baton.observe.explain import explain, find, queries_of, run_explain
from baton.observe.metrics import Metrics
from baton.observe.trace import TraceFile, read_trace
from baton.policy.baton import Baton
from baton.policy.priority import Priority
from observe.test_metrics import STATS
from random_batch import Shaken, query_of
from toy import prompt_of, toy_batch


def lively(sinks: Sequence[Any], seed: int = 3) -> None:
    """Queries that are preempted, forgotten, finished and cancelled."""
    dice = random.Random(seed)
    batch = toy_batch(Shaken(Baton(), dice), sinks=sinks, max_rows=3)
    queries = [query_of(f"q{n}", prompt_of(dice.randint(1, 15), n), dice.randint(2, 12), seed=n) for n in range(12)]
    for query in queries:
        batch.engine.accept(query, batch.hear)
    for turn in range(2000):
        if turn == 4:
            batch.engine.cancel("q5")
        if not batch.engine.busy:
            return
        batch.engine.iterate()
        batch.engine.flush()
    raise AssertionError("not done")


def traced(path: Path, seed: int = 3) -> list[Event]:
    """Writes a trace of a lively engine. Returns the events as they were emitted."""
    told: list[Event] = []
    trace = TraceFile(path)
    trace.begin({"model": "toy", "settings": {"max_rows": 3}})
    lively([told.append, trace], seed)
    trace(QueryRejected(1.0, "queue_full"))
    trace.close()
    trace.close()
    return [*told, QueryRejected(1.0, "queue_full")]


def test_what_is_read_is_what_was_told(tmp_path: Path) -> None:
    told = traced(tmp_path / "trace.jsonl")
    trace = read_trace(tmp_path / "trace.jsonl")
    assert list(trace.events) == told
    assert trace.about["settings"] == {"max_rows": 3} and trace.dropped == 0
    assert {type(event).__name__ for event in told} == {"QueryMoved", "QueryEnded", "IterationDone", "QueryRejected"}


def test_the_same_figures_come_of_a_trace(tmp_path: Path) -> None:
    live, again = Metrics("toy", lambda: 0.0), Metrics("toy", lambda: 0.0)
    for event in traced(tmp_path / "trace.jsonl"):
        live(event)
    for event in read_trace(tmp_path / "trace.jsonl").events:
        again(event)
    assert live.render(STATS) == again.render(STATS)
    assert live.counted.slots.by_label["useful"] > 0 and live.counted.preemptions.by_label


def test_every_token_slot_is_in_what_was_fed(tmp_path: Path) -> None:
    for event in traced(tmp_path / "trace.jsonl"):
        if hasattr(event, "fed"):
            assert sum(event.fed.values()) == event.slots.useful + event.slots.padding + event.slots.recomputed


def test_a_trace_that_was_cut_off_is_read_to_there(tmp_path: Path) -> None:
    told = traced(tmp_path / "trace.jsonl")
    text = (tmp_path / "trace.jsonl").read_text()
    (tmp_path / "cut.jsonl").write_text(text[: len(text) * 2 // 3])
    trace = read_trace(tmp_path / "cut.jsonl")
    assert trace.dropped is None
    assert list(trace.events) == told[: len(trace.events)] and trace.events


@pytest.mark.parametrize(
    "text", ["", "{}\n", "[1]\n", "\x00\n", '{"baton_trace": 99}\n', '{"baton_trace": 1}\nno\n{}\n']
)
def test_what_is_no_trace_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(SettingError, match=r"other\.jsonl"):
        read_trace(path)


def test_a_file_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="--trace"):
        TraceFile(tmp_path / "no" / "such.jsonl")


def test_a_full_disk_costs_the_trace_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trace = TraceFile("/dev/full")
    trace._file.reconfigure(write_through=True)  # type: ignore[attr-defined]
    lively([trace])
    trace.close()
    assert trace.dropped > 0
    assert len([record for record in caplog.records if "dropped" in record.message]) == 1


def test_a_slow_sink_keeps_so_many_and_drops_the_rest() -> None:
    go, seen = threading.Event(), list[Event]()

    def slow(events: Sequence[Event]) -> None:
        go.wait(20)
        seen.extend(events)

    sink = BackgroundSink(slow, "slow", most=10)
    for number in range(1000):
        sink(QueryRejected(float(number), "queue_full"))
    go.set()
    sink.close()
    assert len(seen) + sink.dropped == 1000
    assert 10 <= len(seen) <= 20, "what is being handed on, and what is kept meanwhile"
    assert [event.time for event in seen] == sorted(event.time for event in seen)


def test_a_story_has_what_happened_in_order(tmp_path: Path) -> None:
    traced(tmp_path / "trace.jsonl")
    trace = read_trace(tmp_path / "trace.jsonl")
    fed = {
        name: sum(event.fed.get(name, 0) for event in trace.events if hasattr(event, "fed"))
        for name in queries_of(trace)
    }
    for name in queries_of(trace):
        every = list(explain(trace, name, every=True))
        assert [step.seconds for step in every] == sorted(step.seconds for step in every)
        assert every[0].what.startswith("arrived, ")
        computed = [int(step.what.split()[0]) for step in every if " computed in " in step.what]
        assert sum(computed) == fed[name]
        assert len(list(explain(trace, name))) <= len(every)
    assert any("swapped out" in step.what for name in queries_of(trace) for step in explain(trace, name))
    assert "cancelled" in [step.what for step in explain(trace, "q5")]


def test_a_query_is_found_by_what_means_it_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    traced(path)
    trace = read_trace(path)
    assert (find(trace, "q1"), find(trace, "chatcmpl-q11"), find(trace, "10")) == ("q1", "q11", "q10")
    with pytest.raises(InvalidValue, match="0 queries"):
        find(trace, "nobody")
    with pytest.raises(InvalidValue, match="12 queries"):
        find(trace, "q")
    run_explain(str(path), None, every=False, as_json=True)
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["query"] for entry in listed] == queries_of(trace)
    run_explain(str(path), "q3", every=False, as_json=False)
    assert "arrived" in capsys.readouterr().out


def test_the_scheduler_says_why(tmp_path: Path) -> None:
    told: list[Event] = []
    batch = toy_batch(Priority(), sinks=[told.append], max_rows=1)
    slow = query_of("slow", [5, 6], 20)
    batch.engine.accept(slow, batch.hear)
    for _ in range(4):
        batch.engine.iterate()
    urgent = query_of("urgent", [7], 2)
    object.__setattr__(urgent, "priority", -1)
    batch.engine.accept(urgent, batch.hear)
    while batch.engine.busy:
        batch.engine.iterate()
    path = tmp_path / "trace.jsonl"
    trace = TraceFile(path)
    trace.begin({})
    for event in told:
        trace(event)
    trace.close()
    reasons = {step.what: step.why for step in explain(read_trace(path), "slow")}
    assert reasons["swapped out, with what was computed"] == "priority"
