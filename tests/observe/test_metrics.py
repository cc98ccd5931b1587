"""The metrics page: what events add up to, under their public names."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from baton.core.events import IterationDone, QueryEnded, QueryMoved, QueryRejected, Slots, Usage
from baton.core.query import State
from baton.engine.client import Stats
from baton.observe.counters import LastMinute
from baton.observe.metrics import Metrics
from baton.testing.clock import ManualClock

STATS = Stats(
    running=3,
    waiting=4,
    prefilling=1,
    ready=2,
    preempted=5,
    rows=8,
    rows_occupied=6,
    columns=64,
    kv_bytes_used=1000,
    kv_bytes_budget=4000,
    iterations=7,
    prompt_tokens=11,
    generated_tokens=13,
    insertions=3,
    preemptions=0,
    slots=Slots(),
    outcomes={},
    last_iteration_age_seconds=0.25,
    swap_bytes_used=500,
    swap_bytes_budget=2000,
    prefix_bytes_used=300,
    prefix_cached_tokens=70,
)


def iteration(**changes: Any) -> IterationDone:
    fields: dict[str, Any] = {
        "index": 0,
        "time": 0.0,
        "seconds": 0.02,
        "kind": "decode",
        "why": "",
        "rows": 8,
        "occupied": 6,
        "columns": 64,
        "slots": Slots(useful=6, empty_row=2, columns_needed=30, columns_padding=4),
        "generated_tokens": 6,
        "prefilled_tokens": 0,
        "inserted": (),
        "detached": (),
        "resized_to": None,
        "waiting": 0,
        "prefilling": 0,
        "ready": 0,
        "preempted": 0,
        "kv_bytes_used": 0,
        "step_seconds": 0.02,
    }
    return IterationDone(**{**fields, **changes})


def ended(**changes: Any) -> QueryEnded:
    usage = Usage(
        prompt_tokens=12,
        generated_tokens=3,
        useful_slots=14,
        idle_slots=1,
        queue_seconds=0.02,
        prefill_seconds=0.03,
        decode_seconds=0.2,
        first_token_seconds=0.06,
        preemptions=0,
    )
    fields: dict[str, Any] = {
        "time": 1.0,
        "query_id": "q",
        "outcome": State.FINISHED,
        "finish_reason": "stop",
        "usage": usage,
        "end_to_end_seconds": 0.3,
        "inter_token_seconds": (0.02, 0.06),
    }
    return QueryEnded(**{**fields, **changes})


def moved_at(time: float, query: str, was: State | None, now: State) -> QueryMoved:
    return QueryMoved(time, query, was, now, "", 1, 0)


def moved(was: State | None, now: State, why: str = "") -> QueryMoved:
    return QueryMoved(0.0, "q", was, now, why, prompt_tokens=12, generated_tokens=0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def metrics(clock: ManualClock) -> Metrics:
    return Metrics('lab/"m"', clock)


def samples(metrics: Metrics) -> Mapping[tuple[str, ...], float]:
    """Every sample of the page by its name and the values of its labels but for the model's."""
    body, kind = metrics.render(STATS)
    assert kind.startswith("text/plain; version=0.0.4")
    values = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("model_name") == 'lab/"m"', "every metric says whose it is"
            key = (sample.name, *labels.values())
            assert key not in values
            values[key] = sample.value
    return values


def test_gauges_are_those_of_the_stats(metrics: Metrics) -> None:
    values = samples(metrics)
    assert values[("baton_queries_running",)] == 3
    assert values[("baton_queries_waiting",)] == 4
    assert values[("baton_queries_prefilling",)] == 1
    assert values[("baton_queries_preempted",)] == 5
    assert values[("baton_batch_rows",)] == 8
    assert values[("baton_batch_columns",)] == 64
    assert values[("baton_batch_rows_occupied",)] == 6
    assert values[("baton_kv_bytes_used",)] == 1000
    assert values[("baton_kv_bytes_budget",)] == 4000
    assert values[("baton_swap_bytes_used",)] == 500
    assert values[("baton_swap_bytes_budget",)] == 2000
    assert values[("baton_prefix_bytes_used",)] == 300
    assert values[("baton_prefix_cached_tokens_total",)] == 70
    assert values[("baton_engine_last_iteration_age_seconds",)] == 0.25


def test_iterations_add_up(metrics: Metrics) -> None:
    metrics(iteration())
    slots = Slots(useful=20, padding=3, finished_row=4, recomputed=5)
    stalls = {"prefill": 0.5, "insert": 0.25}
    metrics(iteration(kind="both", slots=slots, inserted=("a", "b"), stall_seconds=stalls, generated_tokens=1))
    values = samples(metrics)
    kinds = ("useful", "empty_row", "finished_row", "padding", "recomputed")
    assert [values[("baton_token_slots_total", kind)] for kind in kinds] == [26, 2, 4, 3, 5]
    assert values[("baton_kv_columns_total", "needed")] == 30 and values[("baton_kv_columns_total", "padding")] == 4
    assert values[("baton_generated_tokens_total",)] == 7
    assert values[("baton_recomputed_tokens_total",)] == 5
    assert values[("baton_insertions_total",)] == 2
    assert values[("baton_decode_stall_seconds_total", "prefill")] == 0.5
    assert values[("baton_decode_stall_seconds_total", "insert")] == 0.25
    assert values[("baton_decode_stall_seconds_total", "resize")] == 0
    assert values[("baton_iteration_seconds_count", "decode")] == 1
    assert values[("baton_iteration_seconds_sum", "both")] == 0.02
    assert values[("baton_batch_occupancy_sum",)] == 1.5


def test_queries_add_up(metrics: Metrics) -> None:
    metrics(moved(None, State.WAITING))
    metrics(moved(State.WAITING, State.RUNNING))
    metrics(moved(State.RUNNING, State.READY, "memory"))
    metrics(moved(State.RUNNING, State.FINISHED, "stop"))
    metrics(ended())
    metrics(ended(outcome=State.CANCELLED, inter_token_seconds=()))
    metrics(QueryRejected(0.0, "queue_full"))
    values = samples(metrics)
    assert values[("baton_prompt_tokens_total",)] == 12, "counted once, when it came"
    assert {key: value for key, value in values.items() if key[0] == "baton_preemptions_total"} == {
        ("baton_preemptions_total", "memory"): 1
    }
    outcomes = ("finished", "cancelled", "failed", "expired")
    assert [values[("baton_queries_total", outcome)] for outcome in outcomes] == [1, 1, 0, 0]
    assert values[("baton_admission_rejections_total", "queue_full")] == 1
    assert values[("baton_time_to_first_token_seconds_sum",)] == 0.12
    assert values[("baton_end_to_end_seconds_count",)] == 2
    assert values[("baton_queue_seconds_sum",)] == 0.04
    assert values[("baton_prefill_seconds_sum",)] == 0.06
    assert values[("baton_inter_token_seconds_count",)] == 2
    assert values[("baton_time_per_output_token_seconds_sum",)] == 0.04
    assert values[("baton_prompt_tokens_sum",)] == 24
    assert values[("baton_generated_tokens_bucket", "2.0")] == 0
    assert values[("baton_generated_tokens_bucket", "5.0")] == 2
    assert values[("baton_generated_tokens_bucket", "+Inf")] == 2


def test_who_asked_for_the_impossible_has_not_failed_under_any_name() -> None:
    metrics = Metrics("model", lambda: 0.0, compat=True)
    metrics(ended(outcome=State.CANCELLED, finish_reason="error"))
    metrics(ended(outcome=State.FAILED, finish_reason="error"))
    assert metrics.counted.reasons == {"cancelled": 1, "error": 1}
    assert (metrics.counted.outcomes.by_label["cancelled"], metrics.counted.outcomes.by_label["failed"]) == (1, 1)


def test_bounds_belong_to_their_bucket(metrics: Metrics) -> None:
    metrics(ended(end_to_end_seconds=0.25))
    values = samples(metrics)
    assert values[("baton_end_to_end_seconds_bucket", "0.1")] == 0
    assert values[("baton_end_to_end_seconds_bucket", "0.25")] == 1


def test_resizes(metrics: Metrics) -> None:
    metrics(iteration(rows=8, resized_to=8))
    metrics(iteration(rows=16, resized_to=16))
    metrics(iteration(rows=16))
    metrics(iteration(rows=4, resized_to=4))
    values = samples(metrics)
    assert values[("baton_batch_resizes_total", "grow")] == 1
    assert values[("baton_batch_resizes_total", "shrink")] == 1


def test_idle_ratio_is_of_the_last_minute(metrics: Metrics, clock: ManualClock) -> None:
    assert samples(metrics)[("baton_idle_ratio",)] == 0
    metrics(iteration(time=0.0, slots=Slots(useful=0, padding=10)))
    metrics(iteration(time=30.0, slots=Slots(useful=30)))
    clock.advance(30)
    assert samples(metrics)[("baton_idle_ratio",)] == 0.25
    clock.advance(31)
    assert samples(metrics)[("baton_idle_ratio",)] == 0.0
    metrics(iteration(time=61.0, slots=Slots(useful=10, empty_row=10)))
    assert samples(metrics)[("baton_idle_ratio",)] == 0.2
    clock.advance(3600)
    assert samples(metrics)[("baton_idle_ratio",)] == 0


def test_names_are_the_contracts(metrics: Metrics) -> None:
    """A counter and a histogram may share a stem, as vLLM has it; the page must still say which is which."""
    body = metrics.render(STATS)[0].decode()
    kinds = dict(line.split()[2:] for line in body.splitlines() if line.startswith("# TYPE"))
    assert kinds["baton_prompt_tokens_total"] == "counter" and kinds["baton_prompt_tokens"] == "histogram"
    assert all(name.endswith("_total") for name, kind in kinds.items() if kind == "counter")
    assert not any(name.endswith("_created") for name in kinds)
    assert len(kinds) == body.count("# TYPE"), "each family once"


def test_events_and_pages_at_once(metrics: Metrics) -> None:
    """The engine's thread counts while others read and reject: nothing is lost, nothing raises."""
    errors: list[BaseException] = []

    def run(work: Any) -> None:
        try:
            for _ in range(200):
                work()
        except BaseException as error:
            errors.append(error)

    works = [
        lambda: metrics(iteration()),
        lambda: metrics(QueryRejected(0.0, "queue_full")),
        lambda: metrics.render(STATS),
        lambda: metrics(QueryRejected(0.0, "queue_full")),
    ]
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    values = samples(metrics)
    assert values[("baton_token_slots_total", "useful")] == 1200
    assert values[("baton_admission_rejections_total", "queue_full")] == 400


def test_last_minute_keeps_a_minute_though_nobody_looks() -> None:
    window = LastMinute()
    for second in range(600):
        window.add(float(second), 1, 0)
    assert len(window._seconds) <= 61
