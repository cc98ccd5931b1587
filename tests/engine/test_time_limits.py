"""How long a query may wait and take: in every state, reported with the flag, and checked only when it may be over."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from baton.core.query import Query, State
from baton.policy.baton import Baton
from baton.policy.port import Chunk, Plan, View
from baton.testing.clock import ManualClock
from random_batch import RandomBatch, query_of
from toy import prompt_of, toy_alone, toy_batch


class Scripted:
    """Plans from a list, and then nothing but steps."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = list(plans)

    def plan(self, view: View) -> Plan:
        return self.plans.pop(0) if self.plans else Plan(feed=1)


def asked(name: str, limit: int = 12, **more: object) -> Query:
    return replace(query_of(name, prompt_of(4, seed=sum(name.encode())), limit), **more)  # type: ignore[arg-type]


WAYS: dict[str, list[Plan]] = {
    "waiting": [],
    "prefilling": [Plan(prefill=(Chunk("a", 2),))],
    "ready": [Plan(prefill=(Chunk("a", 4),))],
    "running": [Plan(prefill=(Chunk("a", 4),)), Plan(insert=("a",))],
    "preempted": [Plan(prefill=(Chunk("a", 4),)), Plan(insert=("a",)), Plan(detach=("a",))],
    "forgotten": [Plan(prefill=(Chunk("a", 4),)), Plan(insert=("a",)), Plan(detach=("a",), forget=("a",))],
}
"""How a query gets into each state, iteration by iteration."""


def brought(way: str, **limits: Any) -> tuple[RandomBatch, ManualClock]:
    """An engine at time 0 with a query that is there, and a neighbour that runs."""
    clock = ManualClock()
    plans = WAYS[way]
    batch = toy_batch(Scripted(Plan(insert=("neighbour",), feed=9), *plans), clock=clock)
    batch.engine.accept(asked("neighbour"), batch.hear)
    batch.engine.accept(asked("a", **limits), batch.hear)
    for _ in range(len(plans) + 1):
        batch.engine.iterate()
        batch.engine.flush()
    states = {"preempted": State.READY, "forgotten": State.WAITING}
    assert batch.engine.lifecycle.live["a"].state is states.get(way, State(way) if way not in states else None)
    return batch, clock


def settle(batch: RandomBatch) -> None:
    batch.engine._policy = Baton()
    batch.run([])
    assert batch.tokens("neighbour") == toy_alone(asked("neighbour"))
    assert batch.engine.kv_bytes_used == batch.engine.swap_bytes_used == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_time_in_all_is_over_in_every_state(way: str) -> None:
    batch, clock = brought(way, end_by=10.0)
    clock.advance(10.0)
    batch.engine.iterate()
    assert "a" in batch.engine.lifecycle.live, "it may take that long"
    clock.advance(0.5)
    batch.engine.iterate()
    batch.engine.flush()
    last = batch.updates["a"][-1]
    assert last.finish_reason == "expired"
    assert last.error == "the query took 10.5 s, the limit is 10 s (--query-timeout)"
    settle(batch)


@pytest.mark.parametrize("way", WAYS)
def test_the_time_in_the_queue_counts_until_something_was_computed(way: str) -> None:
    batch, clock = brought(way, start_by=10.0)
    clock.advance(10.5)
    batch.engine.iterate()
    batch.engine.flush()
    if way == "waiting":
        last = batch.updates["a"][-1]
        assert last.finish_reason == "expired"
        assert last.error == "the query waited 10.5 s for a row, the limit is 10 s (--queue-timeout)"
    settle(batch)
    if way != "waiting":
        assert batch.tokens("a") == toy_alone(asked("a"))


def test_who_loses_a_place_before_anything_was_computed_has_not_begun() -> None:
    """A query is handed to the prefiller, is not fed, and comes back."""
    clock = ManualClock()
    batch = toy_batch(Scripted(), clock=clock)
    engine = batch.engine
    engine.accept(asked("a", start_by=10.0), batch.hear)
    assert engine.queries.start_prefill("a", "test")
    clock.advance(11.0)
    engine.iterate()
    assert "a" in engine.lifecycle.live, "it has a row"
    engine.queries.forget("a", "test")
    clock.advance(0.1)
    engine.iterate()
    assert engine.lifecycle.ended[State.EXPIRED] == 1


def test_a_deadline_that_comes_after_another_is_kept_too() -> None:
    clock = ManualClock()
    batch = toy_batch(Scripted(), clock=clock)
    for name, end in (("a", 5.0), ("b", 3.0), ("c", 9.0)):
        batch.engine.accept(asked(name, end_by=end), batch.hear)
    gone: list[list[str]] = []
    for _ in range(10):
        clock.advance(1.0)
        batch.engine.iterate()
        gone.append([name for name in "abc" if name not in batch.engine.lifecycle.live])
    assert gone == [[], [], [], ["b"], ["b"], ["a", "b"], ["a", "b"], ["a", "b"], ["a", "b"], ["a", "b", "c"]]


def test_nobody_is_looked_at_while_nobody_can_be_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    right = Query.overdue

    def overdue(query: Query, now: float, *, begun: bool) -> str | None:
        looks.append(query.id)
        return right(query, now, begun=begun)

    monkeypatch.setattr(Query, "overdue", overdue)
    clock = ManualClock()
    batch = toy_batch(Baton(), clock=clock)
    for i in range(256):
        batch.engine.accept(asked(f"q{i}", start_by=60.0, end_by=600.0), batch.hear)
    for _ in range(30):
        clock.advance(1.0)
        batch.engine.iterate()
    assert looks == []
    clock.advance(31.0)
    batch.engine.iterate()
    assert len(looks) > 200 and batch.engine.lifecycle.ended[State.EXPIRED] > 200
    looks.clear()
    for _ in range(9):
        batch.engine.iterate()
    assert looks == []


def test_only_terms_bring_time_limits() -> None:
    query = asked("a")
    assert query.overdue_after(begun=False) == math.inf
    assert query.overdue(1e9, begun=False) is None
    limited = asked("a", start_by=2.0, end_by=9.0)
    assert (limited.overdue_after(begun=False), limited.overdue_after(begun=True)) == (2.0, 9.0)
