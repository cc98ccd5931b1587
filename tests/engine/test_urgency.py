"""Urgent queries in a full batch, what the displaced lose by it, shares of users, deadlines: policies in an engine."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch.test_fake import fake_batch
from baton.core.events import Event, QueryEnded, QueryMoved
from baton.core.query import Query, State
from baton.policy.baton import Baton
from baton.policy.port import Policy
from baton.policy.priority import Priority
from baton.policy.slo import Slo
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from baton.testing.fake_batch import CostModel
from random_batch import RandomBatch, query_of
from toy import COLUMNS, prompt_of, toy_alone, toy_batch

EVEN = CostModel(fixed_seconds=1.0)
PER_ROW = CostModel(row_seconds=1.0)
EVERY_POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))


def asked(name: str, prompt: int = 4, limit: int = 6, **options: object) -> Query:
    return replace(query_of(name, prompt_of(prompt, seed=sum(name.encode())), limit), **options)  # type: ignore[arg-type]


def turn(batch: RandomBatch, *queries: Query, times: int = 1) -> None:
    for query in queries:
        batch.engine.accept(query, batch.hear)
    for _ in range(times):
        batch.engine.iterate()
        batch.engine.flush()


def turns_until(batch: RandomBatch, name: str) -> int:
    """Iterations until the query has said a token."""
    for turns in range(100):
        if batch.tokens(name):
            return turns
        turn(batch)
    raise AssertionError(f"{name} said nothing")


def kinds(told: Sequence[Event], name: str) -> list[State]:
    return [event.now for event in told if isinstance(event, QueryMoved) and event.query_id == name]


# Priority


@pytest.mark.parametrize("policy", [Priority, Slo])
def test_an_urgent_query_runs_at_once_in_a_full_batch_and_the_displaced_lose_nothing(policy: type[Policy]) -> None:
    told: list[Event] = []
    batch = toy_batch(policy(), sinks=[told.append], max_rows=3, prefill_chunk=8)
    low = [asked(f"low{i}", limit=20, priority=5) for i in range(5)]
    turn(batch, *low, times=6)
    assert len(batch.engine.batch.lens) == 3
    urgent = asked("urgent", 8, 5)
    turn(batch, urgent)
    assert turns_until(batch, "urgent") <= 1, "its prompt is one chunk"
    turn(batch)
    assert "urgent" in batch.engine.batch.lens
    (victim,) = [name for name, life in batch.engine.lifecycle.live.items() if life.preempted]
    assert victim == "low2", "the latest to arrive of those that ran"
    said = len(batch.tokens(victim))
    turn(batch, times=2)
    assert len(batch.tokens(victim)) == said
    batch.run([])
    assert all(batch.tokens(query.id) == toy_alone(query) for query in [*low, urgent])
    assert batch.engine.totals.slots.recomputed == 0
    assert batch.engine.lifecycle.preemptions == 1
    assert kinds(told, victim)[-4:] == [State.RUNNING, State.READY, State.RUNNING, State.FINISHED]
    reasons = [event.why for event in told if isinstance(event, QueryMoved) and event.was is State.RUNNING]
    assert reasons.count("priority" if policy is Priority else "deadline") == 1


def test_without_priorities_it_waits_for_a_row() -> None:
    """The control of the test above."""
    batch = toy_batch(Baton(), max_rows=3, prefill_chunk=8)
    turn(batch, *(asked(f"low{i}", limit=20, priority=5) for i in range(5)), times=6)
    turn(batch, asked("urgent", 8, 5))
    assert turns_until(batch, "urgent") > 10


def test_an_urgent_prompt_overtakes_a_long_one_that_is_being_prefilled() -> None:
    batch = toy_batch(Priority(), max_rows=1, prefill_chunk=3)
    turn(batch, asked("runs", limit=30, priority=5), times=3)
    turn(batch, asked("long", 30, priority=3), times=2)
    assert batch.engine.lifecycle.live["long"].cached == 6
    turn(batch, asked("urgent", 3, 2), times=1)
    assert batch.tokens("urgent")
    assert batch.engine.lifecycle.live["long"].cached == 6
    batch.run([])
    assert batch.engine.totals.slots.recomputed == 0


def test_where_every_place_of_the_prefiller_is_taken_by_less_urgent_ones_the_urgent_gets_in() -> None:
    """One row: two places. Each prompt is begun, and overtaken by the next, more urgent one."""
    batch = toy_batch(Priority(), max_rows=1, prefill_chunk=2)
    turn(batch, asked("runs", limit=30, priority=9), times=3)
    for priority, name in ((8, "third"), (7, "second")):
        turn(batch, asked(name, 20, 3, priority=priority))
    assert batch.engine.prefiller.room == 0
    turn(batch, asked("first", 2, 2))
    turn(batch)
    assert batch.tokens("first")
    assert batch.engine.lifecycle.live["third"].state is State.WAITING
    batch.run([])
    assert all(batch.reason(name) == "length" for name in ("runs", "first", "second", "third"))
    assert batch.engine.totals.slots.recomputed == 2, "what had been prefilled of the third"


def test_equals_do_not_displace_each_other_however_many_come() -> None:
    batch = toy_batch(Priority(), max_rows=2)
    batch.run([asked(f"q{i}", limit=8, priority=3, user=str(i % 3)) for i in range(12)], random.Random(1))
    assert batch.engine.lifecycle.preemptions == 0


def test_a_row_changes_hands_at_most_once_for_each_urgent_query() -> None:
    batch = toy_batch(Priority(), max_rows=2)
    low = [asked(f"low{i}", limit=20, priority=5) for i in range(4)]
    urgent = [asked(f"urgent{i}", limit=3) for i in range(6)]
    batch.run([*low, *urgent], random.Random(2))
    assert 0 < batch.engine.lifecycle.preemptions <= len(urgent)
    assert all(batch.tokens(query.id) == toy_alone(query) for query in [*low, *urgent])
    assert batch.engine.totals.slots.recomputed == 0


def test_where_the_pool_is_too_small_the_displaced_are_recomputed_and_say_the_same() -> None:
    batch = toy_batch(Priority(), max_rows=2, prefill_chunk=8, swap_bytes=0)
    low = [asked(f"low{i}", limit=12, priority=5) for i in range(2)]
    turn(batch, *low, times=6)
    urgent = asked("urgent")
    batch.run([urgent])
    assert all(batch.tokens(query.id) == toy_alone(query) for query in [*low, urgent])
    assert batch.engine.totals.slots.recomputed > 0


# Users


@pytest.mark.parametrize(("policy", "place"), [(Priority, 2), (Slo, 2), (Baton, 9)])
def test_a_user_with_one_query_does_not_wait_for_the_many_of_another(policy: type[Policy], place: int) -> None:
    told: list[Event] = []
    batch = toy_batch(policy(), sinks=[told.append], max_rows=1, prefill_chunk=50)
    turn(batch, *(asked(f"many{i}", user="many") for i in range(9)), times=2)
    batch.run([asked("one", user="one")])
    order = [event.query_id for event in told if isinstance(event, QueryEnded)]
    assert order.index("one") <= place
    assert (order.index("one") == 9) == (policy is Baton)


# Deadlines


def outcomes(policy: Policy) -> tuple[dict[str, str | None], RandomBatch]:
    """Two long queries have the rows; one comes that has 15 seconds for its 8 tokens of about a second each."""
    batch = fake_batch(policy, costs=EVEN, max_rows=2, prefill_chunk=50)
    long = [asked("a", limit=30), asked("b", limit=30)]
    turn(batch, *long, times=11)
    now = batch.engine._clock()
    batch.run([asked("short", limit=8, arrived=now, deadline=now + 15.0)])
    assert all(batch.tokens(query.id) == toy_alone(query) for query in long)
    return {name: batch.reason(name) for name in ("a", "b", "short")}, batch


def test_slo_saves_a_deadline_that_arrival_order_misses() -> None:
    missed, _ = outcomes(Baton())
    assert missed == {"a": "length", "b": "length", "short": "expired"}
    saved, batch = outcomes(Slo())
    assert saved == {"a": "length", "b": "length", "short": "length"}
    assert (batch.engine.lifecycle.preemptions, batch.engine.totals.slots.recomputed) == (1, 0)


def test_slo_runs_no_more_rows_than_the_pace_of_a_deadline_allows() -> None:
    """A step takes a second for each row: 20 tokens in 50 seconds are 2.5 each."""
    batch = fake_batch(Slo(), costs=PER_ROW, max_rows=4, prefill_chunk=50)
    turn(batch, *(asked(f"free{i}", limit=25) for i in range(4)), times=12)
    assert len(batch.engine.batch.lens) == 4
    now = batch.engine._clock()
    turn(batch, asked("paced", limit=20, arrived=now, deadline=now + 55.0), times=6)
    assert len(batch.engine.batch.lens) == 2
    batch.run([])
    assert batch.reason("paced") == "length"
    assert batch.engine.totals.slots.recomputed == 0


@EVERY_POLICY
def test_a_query_that_expires_is_told_so_and_frees_everything(policy: str) -> None:
    clock = ManualClock()
    batch = toy_batch(POLICIES[policy](), clock=clock, max_rows=2)
    stays = [asked("stay0", limit=20), asked("stay1", limit=20)]
    late = [asked(f"late{i}", limit=20, deadline=2.0) for i in range(3)]
    turn(batch, stays[0], *late, stays[1], times=4)
    assert any(batch.tokens(query.id) for query in late)
    clock.advance(2.5)
    turn(batch)
    assert [batch.reason(query.id) for query in late] == ["expired"] * 3
    assert all("deadline" in (batch.updates[query.id][-1].error or "") for query in late)
    assert batch.engine.lifecycle.ended[State.EXPIRED] == 3
    assert not {query.id for query in late} & set(batch.engine.lifecycle.live)
    batch.run([])
    assert all(batch.tokens(query.id) == toy_alone(query) for query in stays)
    assert (batch.engine.kv_bytes_used, batch.engine.swap_bytes_used, batch.engine.busy) == (0, 0, False)


# Anything

mixes = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.integers(0, 3),
        st.sampled_from(["", "a", "b"]),
        st.one_of(st.none(), st.integers(5, 400)),
        st.integers(1, 18),
        st.integers(1, 18),
    ),
    min_size=1,
    max_size=14,
)


@pytest.mark.parametrize("policy", [Priority, Slo])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(mixes, st.integers(1, 4), st.sampled_from([None, 2, 50]), st.integers(COLUMNS, 4 * COLUMNS), st.booleans())
def test_any_mix_of_arrivals_and_terms_ends_with_the_tokens_of_each_query_alone(
    policy: type[Policy],
    mix: list[tuple[int, int, str, int | None, int, int]],
    rows: int,
    chunk: int | None,
    budget: int,
    fused: bool,
) -> None:
    """Deadlines are planned by, and no query is given up when they pass."""
    batch = fake_batch(
        policy(fused=fused),  # type: ignore[call-arg]
        max_rows=rows,
        prefill_chunk=chunk,
        kv_bytes=budget * 8,
        swap_bytes=budget * 8,
    )
    batch.engine._expire = lambda: None  # type: ignore[method-assign]
    later = [
        (at, asked(f"q{i}", prompt, limit, priority=priority, user=user, deadline=due and float(due)))
        for i, (at, priority, user, due, prompt, limit) in enumerate(mix)
    ]
    for now in range(3000):
        arrived = [query for at, query in later if at == now]
        if now > 40 and not batch.engine.busy:
            break
        turn(batch, *arrived)
    assert all(batch.tokens(query.id) == toy_alone(query) for _, query in later)
    assert (batch.engine.kv_bytes_used, batch.engine.swap_bytes_used, batch.engine.busy) == (0, 0, False)
