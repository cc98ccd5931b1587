"""How long a query may wait and take: in every state, told with the flag, and looked at only when it may be over."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from baton.core.clock import ManualClock
from baton.core.query import Query, State
from baton.policy.baton import Baton
from baton.policy.port import Chunk, Plan, View
from crowd import Crowd, query_of
from toy import prompt_of, toy_alone, toy_crowd


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
"""How a query gets where it is, iteration by iteration."""


def brought(way: str, **limits: float) -> tuple[Crowd, ManualClock]:
    """An engine at time 0 with a query that is there, and a neighbour that runs."""
    clock = ManualClock()
    plans = WAYS[way]
    crowd = toy_crowd(Scripted(Plan(insert=("neighbour",), feed=9), *plans), clock=clock)
    crowd.engine.accept(asked("neighbour"), crowd.hear)
    crowd.engine.accept(asked("a", **limits), crowd.hear)
    for _ in range(len(plans) + 1):
        crowd.engine.iterate()
        crowd.engine.hand_over()
    states = {"preempted": State.READY, "forgotten": State.WAITING}
    assert crowd.engine.lifecycle.live["a"].state is states.get(way, State(way) if way not in states else None)
    return crowd, clock


def settle(crowd: Crowd) -> None:
    crowd.engine._policy = Baton()
    crowd.run([])
    assert crowd.tokens("neighbour") == toy_alone(asked("neighbour"))
    assert crowd.engine.kv_bytes_used == crowd.engine.pool_bytes_used == 0


@pytest.mark.parametrize("way", WAYS)
def test_the_time_in_all_is_over_in_every_state(way: str) -> None:
    crowd, clock = brought(way, end_by=10.0)
    clock.advance(10.0)
    crowd.engine.iterate()
    assert "a" in crowd.engine.lifecycle.live, "it may take that long"
    clock.advance(0.5)
    crowd.engine.iterate()
    crowd.engine.hand_over()
    last = crowd.updates["a"][-1]
    assert last.finish_reason == "expired"
    assert last.error == "the query took 10.5 s, the limit is 10 s (--query-timeout)"
    settle(crowd)


@pytest.mark.parametrize("way", WAYS)
def test_the_time_in_the_queue_counts_until_something_was_computed(way: str) -> None:
    crowd, clock = brought(way, start_by=10.0)
    clock.advance(10.5)
    crowd.engine.iterate()
    crowd.engine.hand_over()
    if way == "waiting":
        last = crowd.updates["a"][-1]
        assert last.finish_reason == "expired"
        assert last.error == "the query waited 10.5 s for a row, the limit is 10 s (--queue-timeout)"
    settle(crowd)
    if way != "waiting":
        assert crowd.tokens("a") == toy_alone(asked("a"))


def test_who_loses_a_place_before_anything_was_computed_has_not_begun() -> None:
    """A query is handed to the prefiller, is not fed, and comes back."""
    clock = ManualClock()
    crowd = toy_crowd(Scripted(), clock=clock)
    engine = crowd.engine
    engine.accept(asked("a", start_by=10.0), crowd.hear)
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
    crowd = toy_crowd(Scripted(), clock=clock)
    for name, end in (("a", 5.0), ("b", 3.0), ("c", 9.0)):
        crowd.engine.accept(asked(name, end_by=end), crowd.hear)
    gone: list[list[str]] = []
    for _ in range(10):
        clock.advance(1.0)
        crowd.engine.iterate()
        gone.append([name for name in "abc" if name not in crowd.engine.lifecycle.live])
    assert gone == [[], [], [], ["b"], ["b"], ["a", "b"], ["a", "b"], ["a", "b"], ["a", "b"], ["a", "b", "c"]]


def test_nobody_is_looked_at_while_nobody_can_be_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    right = Query.overdue

    def overdue(query: Query, now: float, *, begun: bool) -> str | None:
        looks.append(query.id)
        return right(query, now, begun=begun)

    monkeypatch.setattr(Query, "overdue", overdue)
    clock = ManualClock()
    crowd = toy_crowd(Baton(), clock=clock)
    for i in range(256):
        crowd.engine.accept(asked(f"q{i}", start_by=60.0, end_by=600.0), crowd.hear)
    for _ in range(30):
        clock.advance(1.0)
        crowd.engine.iterate()
    assert looks == []
    clock.advance(31.0)
    crowd.engine.iterate()
    assert len(looks) > 200 and crowd.engine.lifecycle.ended[State.EXPIRED] > 200
    looks.clear()
    for _ in range(9):
        crowd.engine.iterate()
    assert looks == []


def test_only_terms_bring_time_limits() -> None:
    query = asked("a")
    assert query.overdue_after(begun=False) == math.inf
    assert query.overdue(1e9, begun=False) is None
    limited = asked("a", start_by=2.0, end_by=9.0)
    assert (limited.overdue_after(begun=False), limited.overdue_after(begun=True)) == (2.0, 9.0)
