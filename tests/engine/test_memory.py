"""Memory never overflows and no query is lost for it: pressure, a machine that has less, and forwards that run out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from baton.core.events import Event, IterationDone, QueryMoved
from baton.core.query import Query, State
from baton.engine.executor import GOOD_STEPS
from baton.kv.budget import SPARE_BYTES
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Plan
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from families import CONTEXT
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch
from toy import BYTES_PER_TOKEN, COLUMNS, FOOTPRINT, hashed, prompt_of, toy_alone, toy_batch
from turns import Scripted, accept, asked, done, faulty, is_idle, turn

EVERY_POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))


def bytes_for(tokens: int) -> int:
    return tokens * BYTES_PER_TOKEN


def all_right(batch: RandomBatch, queries: Sequence[Query]) -> None:
    for query in queries:
        assert (batch.reason(query.id), batch.tokens(query.id)) == ("length", toy_alone(query))
    assert is_idle(batch.engine)


@dataclass
class Watch:
    """A sink that keeps the most bytes ever reported, and which queries lost a row and why."""

    rows: int = 0
    pool: int = 0
    over: int = 0
    most_running: int = 0
    lost: list[tuple[str, str]] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationDone):
            self.rows = max(self.rows, event.kv_bytes_used)
            self.pool = max(self.pool, event.swap_bytes_used)
            self.over = max(self.over, event.kv_bytes_used - event.kv_bytes_budget)
            self.most_running = max(self.most_running, event.occupied)
        elif isinstance(event, QueryMoved) and event.was is State.RUNNING and event.now.live:
            self.lost.append((event.query_id, event.why))


# Pressure


@pytest.mark.parametrize("arrive", ["at once", "one after the other"])
def test_queries_that_need_four_times_the_budget_all_finish_and_hardly_anything_is_computed_twice(arrive: str) -> None:
    dice, watch = random.Random(7), Watch()
    queries = [asked(f"q{i}", dice.randint(2, 12), dice.randint(5, 28)) for i in range(60)]
    need = sum(len(query.prompt) + query.limit_tokens for query in queries)
    budget, pool = bytes_for(need) // 4, bytes_for(need) // 8
    batch = toy_batch(
        Baton(), kv_bytes=budget, swap_bytes=pool, max_rows=40, sinks=[watch], prefill_chunk=200, guaranteed_tokens=3
    )
    batch.run(queries, dice if arrive == "one after the other" else None)
    all_right(batch, queries)
    totals = batch.engine.totals
    assert 0.8 * budget < watch.rows <= budget
    assert watch.pool <= pool
    assert totals.slots.recomputed <= 0.02 * totals.generated_tokens
    assert {why for _, why in watch.lost} == ({"memory"} if arrive == "at once" else set()), "they outgrew it"


@EVERY_POLICY
@pytest.mark.parametrize("pool", [0, 12, 1000])
@pytest.mark.parametrize("sure", [1, 5])
def test_in_any_budget_and_pool_every_query_gives_what_it_gives_alone(policy: str, pool: int, sure: int) -> None:
    dice, watch = random.Random(f"{policy} {pool} {sure}"), Watch()
    batch = toy_batch(
        Shaken(POLICIES[policy](), dice),
        kv_bytes=bytes_for(COLUMNS + 20),
        swap_bytes=bytes_for(pool),
        max_rows=6,
        guaranteed_tokens=sure,
        sinks=[watch],
    )
    queries = [asked(f"q{i}", dice.randint(1, 15), dice.randint(1, 25)) for i in range(25)]
    batch.run(queries, dice)
    all_right(batch, queries)
    assert watch.over <= 0
    assert watch.pool <= bytes_for(pool)
    assert (batch.engine.totals.slots.recomputed > 0) or pool == 1000


def ends_early(tokens: list[int]) -> int:
    """Any text ends after a few tokens: 1 is the end."""
    said = hashed(tokens)
    return 1 if said % 5 == 0 else said


def test_where_answers_usually_end_early_more_run_at_once_and_where_they_do_not_nothing_is_forgotten_for_good() -> None:
    most_running = {}
    for say in (hashed, ends_early):
        watch = Watch()
        batch = toy_batch(
            Baton(),
            say=say,
            end_ids=(1,),
            kv_bytes=bytes_for(4 * COLUMNS),
            swap_bytes=0,
            max_rows=30,
            guaranteed_tokens=2,
            sinks=[watch],
        )
        batch.run([query_of(f"q{i}", prompt_of(4, i), 36, ignore_eos=False) for i in range(80)])
        assert is_idle(batch.engine)
        assert watch.over <= 0
        most_running[say] = watch.most_running
    assert most_running[hashed] == 4
    assert most_running[ends_early] > 7


def test_each_query_makes_its_sure_progress_before_it_loses_its_row_for_memory() -> None:
    told: list[Event] = []
    batch = toy_batch(
        Baton(), kv_bytes=bytes_for(60), swap_bytes=bytes_for(60), max_rows=8, guaranteed_tokens=5, sinks=[told.append]
    )
    queries = [asked(f"q{i}", 3, 30) for i in range(12)]
    batch.run(queries)
    all_right(batch, queries)
    began: dict[str, int] = {}
    stints = []
    for event in told:
        if isinstance(event, QueryMoved) and event.now is State.RUNNING:
            began[event.query_id] = event.generated_tokens
        elif isinstance(event, QueryMoved) and event.was is State.RUNNING and event.now.live:
            stints.append(event.generated_tokens - began[event.query_id])
    assert stints
    assert min(stints) >= 5


def test_those_that_lost_their_rows_come_back_in_the_order_of_arrival_before_others_begin() -> None:
    told: list[Event] = []
    batch = toy_batch(
        Baton(), kv_bytes=bytes_for(50), swap_bytes=bytes_for(50), max_rows=8, guaranteed_tokens=4, sinks=[told.append]
    )
    queries = [asked(f"q{i}", 2, 30) for i in range(8)]
    batch.run(queries)
    all_right(batch, queries)
    aside: list[str] = []
    began = False
    for event in told:
        if isinstance(event, IterationDone):
            assert not (aside and began), "nobody begins while one that lost its row waits for memory"
            began = False
        elif not isinstance(event, QueryMoved):
            continue
        elif event.was is State.RUNNING and event.now is State.READY:
            aside = sorted([*aside, event.query_id])
        elif event.was is State.READY and event.query_id in aside:
            assert event.query_id == aside.pop(0), "who came first comes back first"
        began = began or (isinstance(event, QueryMoved) and event.now is State.PREFILLING)
    ends = [e.query_id for e in told if isinstance(e, QueryMoved) and e.now is State.FINISHED]
    assert ends[0] == "q0", "the oldest always finishes"


def test_a_query_of_the_whole_budget_runs_by_itself() -> None:
    batch = toy_batch(Baton(), kv_bytes=bytes_for(COLUMNS), swap_bytes=0, guaranteed_tokens=2)
    queries = [asked("small"), asked("large", 20, 20), asked("last")]
    batch.run(queries)
    all_right(batch, queries)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize("pool_rows", [0, 3])
def test_a_real_model_under_pressure_gives_what_each_query_gives_alone(family: str, pool_rows: int) -> None:
    """Whole rows, rings and states are swapped out and come back, or are computed again."""
    dice, watch = random.Random(family), Watch()
    queries = [
        query_of(f"q{i}", [dice.randrange(3, 99) for _ in range(dice.randint(1, 30))], dice.randint(30, 90), seed=i)
        for i in range(8)
    ]
    expected = {query.id: alone(family, query)[0] for query in queries}
    row = random_batch(family, Baton()).engine._footprint.of(CONTEXT)
    batch = random_batch(
        family,
        # Without a pool baton begins no query that may have to be forgotten, and a state never grows.
        Baton() if pool_rows and family != "mamba" else Shaken(Baton(), dice),
        rows=6,
        chunk=40,
        kv_bytes=row * 5 // 4,
        swap_bytes=row * pool_rows,
        guaranteed_tokens=2,
        sinks=[watch],
    )
    batch.run(queries, dice)
    assert {query.id: batch.tokens(query.id) for query in queries} == expected
    assert watch.over <= 0 and watch.rows > row // 2 and watch.pool <= row * pool_rows
    assert watch.lost
    assert (batch.engine.totals.slots.recomputed > 0) == (pool_rows == 0) or family == "mamba"
    assert batch.engine.kv_bytes_used == batch.engine.swap_bytes_used == 0


# A machine that has less


@EVERY_POLICY
def test_memory_that_others_take_while_queries_run_is_given_up_and_taken_back(policy: str) -> None:
    clock, watch = ManualClock(), Watch()
    machine = {"free": 2**40}
    batch = toy_batch(
        POLICIES[policy](),
        clock=clock,
        kv_bytes=bytes_for(160),
        swap_bytes=bytes_for(40),
        max_rows=8,
        guaranteed_tokens=4,
        free_bytes=lambda: machine["free"] + SPARE_BYTES,
        sinks=[watch],
    )
    queries = [asked(f"q{i}", 5, 30) for i in range(16)]
    accept(batch, *queries)
    engine = batch.engine
    for _ in range(8):
        turn(batch)
    assert engine.kv_bytes_used > bytes_for(COLUMNS)
    machine["free"] = -engine.kv_bytes_used  # others take all there is, and what we have
    clock.advance(2)
    turn(batch)
    assert engine.kv_bytes_used <= engine.budget.rows_bytes == bytes_for(COLUMNS)
    assert engine.swap_bytes_used == engine.budget.swap_bytes == 0, "the pool gave way first"
    assert {why for _, why in watch.lost} == {"memory"}
    for _ in range(5):
        turn(batch)
    assert engine.lifecycle.count(State.RUNNING) >= 1, "the first in line goes on"
    machine["free"] = 2**40
    clock.advance(2)
    batch.run([])
    assert engine.budget.rows_bytes == bytes_for(160)
    all_right(batch, queries)


# Executor that run out of memory


ALLOCATOR = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


@EVERY_POLICY
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 13])
def test_memory_that_runs_out_in_one_forward_loses_no_query(policy: str, at: int) -> None:
    batch = toy_batch(POLICIES[policy](), max_rows=4)
    faulty(batch, lambda number, rows, tokens: MemoryError() if number == at else None)
    queries = [asked(f"q{i}", 3 + i, 8) for i in range(7)]
    batch.run(queries)
    all_right(batch, queries)


@EVERY_POLICY
def test_memory_that_runs_out_now_and_then_loses_no_query(policy: str) -> None:
    dice = random.Random(policy)
    batch = toy_batch(Shaken(POLICIES[policy](), dice), max_rows=5, guaranteed_tokens=3, kv_bytes=bytes_for(100))
    fails = faulty(batch, lambda number, rows, tokens: ALLOCATOR if rows > 1 and dice.random() < 0.3 else None)
    queries = [asked(f"q{i}", dice.randint(1, 15), dice.randint(1, 20)) for i in range(20)]
    batch.run(queries, dice)
    all_right(batch, queries)
    assert fails.number > 100


def test_the_batch_shrinks_to_half_and_the_step_is_repeated_in_the_same_iteration() -> None:
    told: list[Event] = []
    batch = toy_batch(Baton(), max_rows=6, prefill_chunk=50, sinks=[told.append])
    queries = [asked(f"q{i}", 3, 30) for i in range(5)]
    accept(batch, *queries)
    turn(batch)
    faulty(batch, lambda number, rows, tokens: MemoryError() if number == 1 else None)
    turn(batch)
    last = done(told)[-1]
    assert (last.detached, last.generated_tokens, last.occupied) == (("q4", "q3", "q2"), 2, 2)
    assert batch.engine.totals.slots.recomputed == 0
    batch.run([])
    all_right(batch, queries)


def test_after_memory_ran_out_there_are_fewer_rows_for_a_while() -> None:
    rows_seen = []
    batch = toy_batch(Baton(), max_rows=4, prefill_chunk=50, sinks=[lambda event: rows_seen.append(event)])
    faulty(batch, lambda number, rows, tokens: MemoryError() if number == 2 else None)
    queries = [asked(f"q{i}", 2, 20) for i in range(16)]
    batch.run(queries)
    all_right(batch, queries)
    occupied = [event.occupied for event in done(rows_seen)]
    assert occupied[0] == 2, "four began, two were left"
    assert max(occupied[:GOOD_STEPS]) == 2
    assert max(occupied) == 4, "they grew back"


def test_where_only_small_batches_fit_small_batches_run() -> None:
    batch = toy_batch(Baton(fused=False), max_rows=8, prefill_chunk=50)
    faulty(batch, lambda number, rows, tokens: MemoryError() if rows > 2 else None)
    queries = [asked(f"q{i}", 4, 12) for i in range(12)]
    batch.run(queries)
    all_right(batch, queries)


@EVERY_POLICY
def test_a_query_that_cannot_run_even_by_itself_fails_alone_and_says_why(policy: str) -> None:
    def say(tokens: list[int]) -> int:
        if tokens[:4] == list(asked("b").prompt) and len(tokens) > 6:
            raise MemoryError
        return hashed(tokens)

    batch = toy_batch(POLICIES[policy](), say=say)
    queries = [asked("a"), asked("b"), asked("c"), asked("d")]
    batch.run(queries)
    assert batch.reason("b") == "error"
    assert "out of memory" in (batch.updates["b"][-1].error or "")
    assert batch.tokens("b") == toy_alone(queries[1])[:3]
    all_right(batch, [queries[0], *queries[2:]])


def test_a_chunk_for_which_there_is_no_memory_is_halved() -> None:
    batch = toy_batch(Baton(fused=False), prefill_chunk=16)
    fails = faulty(batch, lambda number, rows, tokens: MemoryError() if tokens > 4 else None)
    queries = [asked("a", 20, 5), asked("b", 17, 5)]
    batch.run(queries)
    all_right(batch, queries)
    assert fails.number < 60


def test_a_prompt_for_which_there_is_no_memory_waits_while_others_run() -> None:
    told: list[Event] = []
    long = asked("long", 9, 3)

    def say(tokens: list[int]) -> int:
        if tokens == list(long.prompt[: len(tokens)]) and len(batch.engine.batch.lens) == 1:
            raise MemoryError
        return hashed(tokens)

    batch = toy_batch(Baton(), say=say, sinks=[told.append])
    queries = [asked("a", 1, 10), long]
    accept(batch, queries[0])
    turn(batch)
    accept(batch, long)
    batch.run([])
    all_right(batch, queries)
    moves = [(e.was, e.now, e.why) for e in told if isinstance(e, QueryMoved) and e.query_id == "long"]
    assert (State.PREFILLING, State.WAITING, "memory") in moves


def test_where_there_is_no_memory_to_set_a_row_aside_it_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = toy_batch(Scripted([Plan(insert=("a",), feed=9), Plan(detach=("a",))]))
    accept(batch, asked("a", 4, 9))
    turn(batch)
    rows = batch.engine.batch._rows  # type: ignore[attr-defined]
    right = rows.lift

    def lift(query_id: str, *, copy: bool) -> Any:
        if copy:
            raise MemoryError
        return right(query_id, copy=copy)

    monkeypatch.setattr(rows, "lift", lift)
    turn(batch)
    life = batch.engine.lifecycle.live["a"]
    assert (life.state, life.cached, batch.engine.kv_bytes_used) == (State.WAITING, 0, 0)
    batch.engine._policy = Baton()
    batch.run([])
    all_right(batch, [asked("a", 4, 9)])
    assert batch.engine.totals.slots.recomputed == 4


@pytest.mark.parametrize("verb", ["insert", "start", "resize"])
def test_memory_that_runs_out_while_rows_are_moved_loses_no_query(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(verb)
    batch = toy_batch(Shaken(Baton(), dice), max_rows=4)
    place: Any = batch.engine.prefiller if verb == "start" else batch.engine.batch
    right = getattr(place, verb)

    def sometimes(*args: Any) -> None:
        nonlocal failed
        if dice.random() < 0.3:
            failed += 1
            raise MemoryError
        right(*args)

    failed = 0
    monkeypatch.setattr(place, verb, sometimes)
    queries = [asked(f"q{i}", dice.randint(1, 15), dice.randint(1, 12)) for i in range(15)]
    batch.run(queries, dice)
    all_right(batch, queries)
    assert failed > 3


def test_who_finds_no_row_because_there_was_no_memory_for_it_is_inserted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch arrives at once, is to have rows of its own at once, and the batch cannot grow just then."""
    batch = toy_batch(Orca(), max_rows=4)
    queries = [asked(name, 3, 6) for name in "abcd"]
    batch.engine.batch.resize(1)
    right, tries = batch.engine.batch.resize, []

    def once(rows: int) -> None:
        tries.append(rows)
        if len(tries) == 1:
            raise MemoryError
        right(rows)

    monkeypatch.setattr(batch.engine.batch, "resize", once)
    accept(batch, *queries)
    turn(batch)
    assert (set(batch.engine.batch.lens), tries) == ({"a"}, [4])
    batch.run([])
    all_right(batch, queries)
    assert tries == [4, 4]


def test_the_budget_bounds_what_rows_take_at_any_moment_of_an_iteration() -> None:
    """Also in the middle of a step, rows have grown no further than the plan assumed."""
    budget = bytes_for(60)
    batch = toy_batch(Baton(), kv_bytes=budget, swap_bytes=bytes_for(30), max_rows=8, guaranteed_tokens=3)
    most = 0

    def look(number: int, rows: int, tokens: int) -> None:
        nonlocal most
        most = max(most, batch.engine.kv_bytes_used + bytes_for(tokens))

    faulty(batch, look)
    queries = [asked(f"q{i}", 5, 25) for i in range(14)]
    batch.run(queries)
    all_right(batch, queries)
    assert budget - FOOTPRINT.of(8) <= most <= budget


def test_a_query_that_expires_while_it_is_set_aside_leaves_nothing() -> None:
    clock = ManualClock()
    batch = toy_batch(Baton(), clock=clock, kv_bytes=bytes_for(40), swap_bytes=bytes_for(40), guaranteed_tokens=2)
    accept(batch, *(replace(asked(f"q{i}", 4, 30), deadline=5.0 if i else None) for i in range(3)))
    while not batch.engine.lifecycle.preempted:
        turn(batch)
    assert batch.engine.swap_bytes_used > 0
    clock.advance(6.0)
    turn(batch)
    assert batch.engine.swap_bytes_used == 0
    batch.run([])
    assert batch.tokens("q0") == toy_alone(asked("q0", 4, 30))
    assert is_idle(batch.engine)


@pytest.mark.parametrize("verb", ["start", "advance"])
def test_a_prompt_for_which_there_was_no_memory_is_not_fed_token_by_token_in_the_batch(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    batch = toy_batch(Baton(fused=False), prefill_chunk=50, sinks=[told.append])
    accept(batch, asked("a", 4, 12))
    turn(batch)
    accept(batch, asked("b", 9, 3))

    def fails(*args: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(batch.engine.prefiller, verb, fails)
        turn(batch)
    assert batch.engine.lifecycle.live["b"].state is State.WAITING
    assert done(told)[-1].inserted == ()
    batch.run([])
    all_right(batch, [asked("a", 4, 12), asked("b", 9, 3)])
