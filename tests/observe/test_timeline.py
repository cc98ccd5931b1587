"""The picture of the last minutes: which query was where, and what it cost, from the events."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from typing import Any

import pytest

from baton.core.events import IterationDone, QueryMoved, QueryRejected, Slots
from baton.core.query import State
from baton.observe.bottleneck import Machine, diagnose
from baton.observe.live import Live
from baton.observe.timeline import MOST_INTERVALS, Bucket, Timeline, percentile
from baton.policy.baton import Baton
from baton.policy.port import NO_COSTS, Costs
from baton.testing.clock import ManualClock
from observe.test_metrics import STATS, ended, iteration
from observe.test_metrics import moved_at as moved
from random_batch import Shaken, query_of
from toy import prompt_of, toy_batch


def test_rows_are_the_first_free_ones_and_prompts_have_lanes() -> None:
    line = Timeline()
    for name in "abc":
        line(moved(0.0, name, None, State.WAITING))
        line(moved(1.0, name, State.WAITING, State.PREFILLING))
    for name in "abc":
        line(moved(2.0, name, State.PREFILLING, State.READY))
        line(moved(2.0, name, State.READY, State.RUNNING))
    line(moved(3.0, "b", State.RUNNING, State.FINISHED))
    line(moved(4.0, "d", State.READY, State.RUNNING))
    news = line.since(0, 0.0)
    runs = {s.query: (s.lane, s.began, s.ended, s.how) for s in news.intervals if s.kind == "run"}
    assert runs == {
        "a": (0, 2.0, None, ""),
        "b": (1, 2.0, 3.0, "finished"),
        "c": (2, 2.0, None, ""),
        "d": (1, 4.0, None, ""),
    }
    assert sorted(interval.lane for interval in news.intervals if interval.kind == "prefill") == [0, 1, 2]


def test_a_reader_gets_what_changed_and_nothing_twice() -> None:
    line = Timeline()
    line(moved(0.0, "a", State.READY, State.RUNNING))
    first = line.since(0, 0.0)
    assert len(first.intervals) == 1 and line.since(first.serial, 0.0).intervals == []
    line(iteration(time=1.0, fed={"a": 1}))
    again = line.since(first.serial, 1.0)
    assert [(interval.query, interval.tokens) for interval in again.intervals] == [("a", 1)]
    assert [bucket.at for bucket in again.buckets] == [1.0]
    assert first.intervals[0].tokens == 0, "what was told does not change"


def test_buckets_add_up() -> None:
    line = Timeline()
    line(iteration(time=1.0, seconds=0.1, slots=Slots(useful=6, padding=2), generated_tokens=3))
    line(iteration(time=1.2, seconds=0.05, slots=Slots(useful=4), generated_tokens=4, stall_seconds={"prefill": 0.02}))
    line(iteration(time=1.3, seconds=0.05, slots=Slots(useful=1)))
    line(moved(1.3, "x", State.RUNNING, State.READY))
    line(QueryRejected(1.31, "queue_full"))
    line(ended(time=1.32))
    first, second = line.since(0, 0.0).buckets
    assert (first.iterations, first.generated, first.slots["useful"], first.slots["padding"]) == (2, 7, 10, 2)
    assert first.busy_seconds == pytest.approx(0.15) and first.stall_seconds == 0.02
    assert (second.preempted, second.rejected, second.first_tokens) == (1, 1, [0.06])
    assert second.gaps == [0.02, 0.06]


def test_it_keeps_so_many_seconds_and_no_more() -> None:
    line = Timeline(seconds=10)
    for second in range(1000):
        name = str(second)
        line(moved(float(second), name, State.READY, State.RUNNING))
        line(iteration(time=second + 0.1, fed={name: 1}))
        line(moved(second + 0.2, name, State.RUNNING, State.FINISHED))
    news = line.since(0, 0.0)
    assert len(news.buckets) <= 12 and len(news.intervals) <= 12 and news.complete_from < 1000 - 10
    assert not line._now


def test_of_too_many_queries_the_last_are_kept_and_it_says_since_when() -> None:
    line = Timeline()
    for number in range(MOST_INTERVALS + 5):
        at = number / 100
        line(moved(at, f"q{number}", State.READY, State.RUNNING))
        line(moved(at + 0.005, f"q{number}", State.RUNNING, State.FINISHED))
        line(iteration(time=at + 0.006))
    news = line.since(0, 0.0)
    assert len(news.intervals) <= MOST_INTERVALS + 1
    assert 0 < news.complete_from <= min(interval.began for interval in news.intervals)


def test_a_prompt_is_told_apart_from_what_follows() -> None:
    line = Timeline()
    line(QueryMoved(1.0, "a", State.WAITING, State.PREFILLING, "", 40, 0))
    line(iteration(time=1.1, fed={"a": 30}))
    line(QueryMoved(1.2, "a", State.PREFILLING, State.READY, "", 40, 1))
    line(QueryMoved(1.2, "a", State.READY, State.RUNNING, "", 40, 1))
    line(QueryMoved(1.3, "b", State.READY, State.RUNNING, "", 7, 0))
    line(iteration(time=1.3, fed={"a": 11, "b": 7}))
    line(iteration(time=1.4, fed={"a": 1, "b": 1}))
    line(QueryMoved(1.5, "a", State.RUNNING, State.READY, "memory", 40, 4))
    line(iteration(time=1.5, fed={"a": 1, "b": 1}))
    intervals = {(interval.query, interval.kind): interval for interval in line.since(0, 0.0).intervals}
    prompt, row, whole = intervals["a", "prefill"], intervals["a", "run"], intervals["b", "run"]
    assert (prompt.prompt, prompt.tokens, prompt.how, prompt.filled) == (40, 40, "ready", 1.3)
    assert (row.tokens, row.generated, row.how, row.filled) == (3, 4, "ready", None)
    assert (whole.tokens, whole.generated, whole.filled) == (9, 3, 1.3)
    assert line.since(0, 0.0).buckets[-1].preempted == 1


def test_rows_that_hold_what_is_done_are_counted_apart() -> None:
    line = Timeline()
    for name in "ab":
        line(moved(0.0, name, State.READY, State.RUNNING))
    line(moved(0.1, "b", State.RUNNING, State.FINISHED))
    line(iteration(time=0.1, rows=4, occupied=2))
    (bucket,) = line.since(0, 0.0).buckets
    assert (bucket.rows, bucket.occupied, bucket.held) == (4, 2, 1)


def test_all_tokens_of_a_lively_engine_are_in_its_stays() -> None:
    line, fed = Timeline(), dict[str, int]()

    def count(event: Any) -> None:
        if isinstance(event, IterationDone):
            for name, tokens in event.fed.items():
                fed[name] = fed.get(name, 0) + tokens

    dice = random.Random(4)
    batch = toy_batch(Shaken(Baton(), dice), sinks=[line, count], max_rows=3)
    for number in range(10):
        batch.engine.accept(query_of(f"q{number}", prompt_of(6, number), 8, seed=number), batch.hear)
    while batch.engine.busy:
        batch.engine.iterate()
    intervals = line.since(0, 0.0).intervals
    told = {name: sum(interval.tokens for interval in intervals if interval.query == name) for name in fed}
    assert told == fed and len(fed) == 10
    assert all(interval.ended is not None for interval in intervals)
    assert max(interval.lane for interval in intervals if interval.kind == "run") < 3
    for interval in intervals:
        for other in intervals:
            if interval is not other and (interval.kind, interval.lane) == (other.kind, other.lane):
                ends = interval.ended or 0.0, other.ended or 0.0
                assert ends[0] <= other.began or ends[1] <= interval.began, "two in one row"


def test_who_reads_now_and_then_has_in_the_end_what_who_reads_once_has() -> None:
    line, dice, ticks = Timeline(), random.Random(7), itertools.count()
    batch = toy_batch(Shaken(Baton(), dice), sinks=[lambda e: line(replace(e, time=next(ticks) / 100))], max_rows=3)
    for number in range(10):
        batch.engine.accept(query_of(f"q{number}", prompt_of(6, number), 8, seed=number), batch.hear)
    seen: dict[Any, Any] = {}
    serial = 0
    while batch.engine.busy:
        batch.engine.iterate()
        if dice.random() < 0.4:
            news = line.since(serial, 0.0)
            serial = news.serial
            seen |= {(interval.query, interval.kind, interval.began): interval for interval in news.intervals}
    seen |= {
        (interval.query, interval.kind, interval.began): interval for interval in line.since(serial, 0.0).intervals
    }
    assert seen == {
        (interval.query, interval.kind, interval.began): interval for interval in line.since(0, 0.0).intervals
    }


MACHINE = Machine(read_bytes=10e9, weight_bytes=100_000_000, kv_token_bytes=1000)
COSTS = Costs(step_seconds=0.012, step_seconds_by_rows=((4, 0.011), (8, 0.012)))


def buckets(**changes: Any) -> list[Bucket]:
    """Five busy seconds of 8 full rows, steps at 83 % of the bandwidth."""
    usual: dict[str, Any] = {
        "iterations": 20,
        "steps": 20,
        "busy_seconds": 0.25,
        "step_seconds": 0.24,
        "columns": 20 * 100,
        "slots": {"useful": 160, "padding": 0},
        "rows": 8,
        "occupied": 8,
        "waiting": 5,
        "kv_bytes": 50,
        "kv_budget": 100,
    }
    return [Bucket(at / 4, **{**usual, **changes}) for at in range(21)]


@pytest.mark.parametrize(
    ("some", "limit", "words"),
    [
        (buckets(), "bandwidth", "at 83 % of this machine's measured limit"),
        (buckets(step_seconds=0.6), "queue", "8 rows, and 5 queries wait"),
        (buckets(step_seconds=0.6, waiting=0), "compute", "33 %"),
        (buckets(stall_seconds=0.1), "prefill", "40 %"),
        (buckets(slots={"useful": 70, "padding": 20, "finished_row": 10}), "idle", "most of it padding"),
        (buckets(kv_bytes=95, occupied=5), "memory", "95 %"),
        (buckets(kv_bytes=60, occupied=5), "memory", "5 queries wait with 3 rows free"),
        (buckets(step_seconds=0.001), "queue", "the batch is full"),
        ([*buckets(step_seconds=0.6), Bucket(5.25, occupied=7, waiting=5)], "queue", "8 rows, and 5 queries wait"),
        (buckets(busy_seconds=0.1, step_seconds=0.09, waiting=0), "nothing", "the load"),
        (buckets(busy_seconds=0.0, iterations=0, steps=0, step_seconds=0.0), "nothing", "waits for queries"),
        ([], "nothing", "waits for queries"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_bottleneck_by_name(some: list[Bucket], limit: str, words: str) -> None:
    diagnosis = diagnose(some, COSTS, MACHINE, max_rows=8)
    assert diagnosis.limit == limit and words.lower() in diagnosis.sentence.lower()


def test_more_rows_are_advised_by_measured_steps_alone() -> None:
    diagnosis = diagnose(buckets(), COSTS, MACHINE, max_rows=8)
    assert diagnosis.change == "--max-batch-size 12 would add about 38 % throughput and 1 ms per token"
    flat = replace(COSTS, step_seconds_by_rows=((4, 0.006), (8, 0.012)))
    assert "bring nothing" in diagnose(buckets(), flat, MACHINE, max_rows=8).change
    assert diagnose(buckets(), NO_COSTS, MACHINE, max_rows=8).change == ""
    assert "bandwidth" not in diagnose(buckets(), COSTS, replace(MACHINE, read_bytes=0), max_rows=8).sentence


def test_the_live_view_is_json_of_all_that() -> None:
    clock = ManualClock()
    line = Timeline()
    live = Live(line, clock, model_name="m", machine=MACHINE, max_rows=8, settings={"policy": "baton"})
    line(moved(0.0, "a", State.READY, State.RUNNING))
    line(iteration(time=0.5, fed={"a": 1}))
    line(ended(time=0.6))
    clock.advance(1)
    data = json.loads(live.data(STATS, 0, 0.0))
    assert data["figures"]["tokens_per_second"] == 6 and data["figures"]["first_token"]["p50"] == 0.06
    assert data["figures"]["idle_ratio"] == 0.25 and data["engine"]["waiting"] == 4
    assert data["diagnosis"]["sentence"] and data["settings"] == {"policy": "baton"}
    assert data["buckets"]["at"] == [0.5] and data["buckets"]["generated"] == [6]
    (interval,) = data["stays"]
    assert dict(zip(data["stay_fields"], interval, strict=True))["query"] == "a"
    later = json.loads(live.data(STATS, data["serial"], data["now"]))
    assert later["stays"] == [] and later["buckets"]["at"] == [] and later["run"] == data["run"]


def test_a_full_window_fits_one_answer() -> None:
    """The bound is in bytes, which are the same everywhere; benchmarks say how long it takes."""
    clock, line = ManualClock(38_000.123456), Timeline()
    live = Live(line, clock, model_name="m", machine=MACHINE, max_rows=8, settings={"policy": "baton"})
    full = {"slots": Slots(useful=3211, padding=1234), "fed": {}, "rows": 128, "occupied": 120, "waiting": 250}
    sizes = {"kv_bytes_used": 123_456_789_000, "kv_bytes_budget": 234_567_890_000}
    for number in range(1600):
        now, name = clock() + 0.0123456, f"1a2b3c4d-{number}"
        line(QueryMoved(now, name, State.WAITING, State.PREFILLING, "", 1234, 0))
        line(QueryMoved(now + 0.02345, name, State.PREFILLING, State.RUNNING, "", 1234, 1))
        line(
            iteration(time=now + 0.03, seconds=0.0234567, generated_tokens=120, prefilled_tokens=1234, **full, **sizes)
        )
        line(QueryMoved(now + 0.06, name, State.RUNNING, State.FINISHED, "", 1234, 456))
        line(ended(time=now + 0.06, inter_token_seconds=(0.0123456,) * 400))
        clock.advance(0.075)
    body = live.data(STATS, 0, 0.0)
    data = json.loads(body)
    assert len(data["stays"]) >= MOST_INTERVALS and len(data["buckets"]["at"]) >= 470
    assert len(body) < 100_000
    assert len(live.data(STATS, data["serial"], data["buckets"]["at"][-1])) < 5_000


@pytest.mark.parametrize("many", [1, 200])
def test_two_readers_do_not_disturb_each_other(many: int) -> None:
    clock, line = ManualClock(), Timeline()
    live = Live(line, clock, model_name="m", machine=MACHINE, max_rows=8, settings={})
    for number in range(many):
        line(moved(0.0, str(number), State.READY, State.RUNNING))
    assert len(json.loads(live.data(STATS, 0, 0.0))["stays"]) == many
    assert len(json.loads(live.data(STATS, 0, 0.0))["stays"]) == many


def test_percentiles() -> None:
    assert percentile([], 0.5) is None and percentile([3.0], 0.95) == 3.0
    assert percentile(iter([1.0, 2.0, 3.0, 4.0]), 0.5) == 3.0
