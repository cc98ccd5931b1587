"""What is in the background waits for all others, under every policy, and takes no place in their queue."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton.core.errors import QueueFull
from baton.core.events import Event, QueryMoved
from baton.core.query import BACKGROUND, Query, State, in_background
from baton.policy.table import POLICIES
from engine.test_lifecycle import Ledger
from engine.test_loop import PATIENCE_SECONDS, Asker, Gate, Opens, open_loop  # noqa: F401  (a fixture)
from engine.test_urgency import asked, turn
from random_batch import RandomBatch
from toy import toy_alone, toy_batch


def behind(name: str, **terms: object) -> Query:
    return in_background(asked(name, **terms))  # type: ignore[arg-type]


def run(batch: RandomBatch, *names: str) -> None:
    for _ in range(400):
        if not {*names} & {*batch.engine.lifecycle.live}:
            return
        turn(batch)
    raise AssertionError(f"{names} did not all end")


def test_it_waits_as_long_as_it_takes_and_is_below_what_may_be_asked_for() -> None:
    query = in_background(replace(asked("a"), start_by=1.0, end_by=2.0, deadline=3.0, priority=5))
    assert query.background and query.priority == BACKGROUND > 2**31 - 1
    assert query.overdue(2.5, begun=False) is None and query.overdue(4.0, begun=False)
    assert not asked("a").background and not replace(asked("a"), priority=2**31 - 1).background


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_others_that_came_later_begin_before_it(policy: str) -> None:
    """One row: what runs goes on, and then all others come first."""
    told: list[Event] = []
    batch = toy_batch(POLICIES[policy](), max_rows=1, sinks=[told.append])
    early = [behind(name) for name in ("b1", "b2", "b3")]
    turn(batch, *early, times=2)
    late = [asked(name) for name in ("a1", "a2")]
    turn(batch, *late)
    run(batch, *(query.id for query in (*early, *late)))
    ran = [event.query_id for event in told if isinstance(event, QueryMoved) and event.now is State.RUNNING]
    assert ran[0] == "b1" and ran.index("a1") < ran.index("a2") < ran.index("b3")
    assert ran.index("a2") < ran.index("b2")
    for query in (*early, *late):
        assert batch.tokens(query.id) == toy_alone(query)


@pytest.mark.parametrize("state", [State.WAITING, State.PREFILLING, State.READY])
def test_it_stands_behind_others_wherever_it_is(state: State) -> None:
    ledger = Ledger()
    ledger.lives.arrive(in_background(replace(asked("b"), arrived=ledger.clock())))
    for step in {State.WAITING: [], State.PREFILLING: [state], State.READY: [State.PREFILLING, state]}[state]:
        ledger.lives.move("b", step, "test")
    ledger.arrive("a", state)
    ledger.arrive("c", state)
    assert [one.id for one in ledger.lives.views(state)] == ["a", "c", "b"]
    assert ledger.lives.queued() == 2
    ledger.lives.end("b", State.CANCELLED, "cancelled")
    ledger.arrive("d", state)
    assert [one.id for one in ledger.lives.views(state)] == ["a", "c", "d"] and ledger.lives.queued() == 3


def test_it_is_taken_by_a_full_queue_and_fills_none(open_loop: Opens) -> None:  # noqa: F811
    gate = Gate()
    loop, asker = open_loop(say=gate, max_rows=1, max_waiting=2), Asker()
    loop.submit([asked("a")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    many = [behind(f"b{number}") for number in range(9)]
    loop.submit(many, asker)
    loop.submit([asked("c"), asked("d")], asker)
    with pytest.raises(QueueFull):
        loop.submit([asked("e")], asker)
    loop.submit([behind("f")], asker)
    assert loop.not_ready() is None or "waiting" in str(loop.not_ready())
    gate.open.set()
    asker.wait_for("a", "c", "d", "f", *(query.id for query in many))
    assert set(asker.reasons.values()) == {"length"}
