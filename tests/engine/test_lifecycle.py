"""Every legal move works and every other raises; times, counts and the ledger follow."""

from __future__ import annotations

import random

import pytest

from baton.core.events import Event, QueryEnded, QueryMoved
from baton.core.footprint import Columns, Footprint
from baton.core.query import Query, State
from baton.engine.lifecycle import MOVES, IllegalMove, Lifecycle
from baton.policy.port import QueryView
from baton.testing.clock import ManualClock
from random_batch import query_of

LIVE = [state for state in State if state.live]
ENDS = [state for state in State if not state.live]
# The way to each live state, and the moves that ARCHITECTURE.md draws.
WAYS = {
    State.WAITING: [],
    State.PREFILLING: [State.PREFILLING],
    State.READY: [State.PREFILLING, State.READY],
    State.RUNNING: [State.PREFILLING, State.READY, State.RUNNING],
}
LEGAL = {
    (State.WAITING, State.PREFILLING),
    (State.WAITING, State.RUNNING),  # fed inside the batch, without a prefill apart
    (State.PREFILLING, State.READY),
    (State.PREFILLING, State.WAITING),
    (State.READY, State.RUNNING),
    (State.READY, State.WAITING),
    (State.RUNNING, State.READY),
}


class Ledger:
    """A life cycle with a clock to move and all its events."""

    def __init__(self) -> None:
        self.clock = ManualClock(100.0)
        self.told: list[Event] = []
        self.lives = Lifecycle(self.clock, [self.told.append], Footprint((Columns(10),)))

    def arrive(self, name: str = "a", state: State = State.WAITING, prompt_tokens: int = 3) -> Query:
        query = query_of(name, range(3, 3 + prompt_tokens), 5)
        query = Query(query.id, query.prompt, query.params, query.seed, query.limit_tokens, arrived=self.clock())
        self.lives.arrive(query)
        for step in WAYS[state]:
            self.lives.move(name, step, "test")
        return query

    def balance(self) -> tuple[int, int]:
        return self.lives.submitted, sum(self.lives.ended.values()) + len(self.lives.live)


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("was", LIVE)
def test_a_move_works_exactly_where_the_table_has_it(was: State, now: State) -> None:
    ledger = Ledger()
    ledger.arrive(state=was)
    before = len(ledger.told)
    if (was, now) in LEGAL:
        ledger.lives.move("a", now, "why")
        assert ledger.lives.live["a"].state is now
        assert ledger.told[-1] == QueryMoved(100.0, "a", was, now, "why", 3, 0)
    else:
        with pytest.raises(IllegalMove):
            ledger.lives.move("a", now, "why")
        assert ledger.lives.live["a"].state is was
        assert len(ledger.told) == before
    assert ledger.balance() == (1, 1)


@pytest.mark.parametrize("end", State)
@pytest.mark.parametrize("was", LIVE)
def test_any_live_query_may_end_and_only_in_a_state_that_is_an_end(was: State, end: State) -> None:
    ledger = Ledger()
    ledger.arrive(state=was)
    if end in ENDS:
        ledger.lives.end("a", end, "reason")
        assert ledger.lives.ended[end] == 1
        assert "a" not in ledger.lives.live
    else:
        with pytest.raises(IllegalMove):
            ledger.lives.end("a", end, "reason")
        assert ledger.lives.live["a"].state is was
    assert ledger.balance() == (1, 1)


@pytest.mark.parametrize("now", State)
@pytest.mark.parametrize("end", ENDS)
def test_what_has_ended_moves_no_more(end: State, now: State) -> None:
    ledger = Ledger()
    ledger.arrive()
    ledger.lives.end("a", end, "reason")
    for again in (ledger.lives.move, ledger.lives.end):
        with pytest.raises((IllegalMove, KeyError)):
            again("a", now, "why")
    assert ledger.balance() == (1, 1)


def test_a_query_that_is_here_may_not_arrive_again() -> None:
    ledger = Ledger()
    query = ledger.arrive()
    with pytest.raises(IllegalMove):
        ledger.lives.arrive(query)
    assert ledger.balance() == (1, 1)


def test_the_usage_says_how_long_each_part_of_a_life_took() -> None:
    ledger = Ledger()
    ledger.arrive()
    for seconds, state in ((1, State.PREFILLING), (2, State.READY), (4, State.RUNNING)):
        ledger.clock.advance(seconds)
        ledger.lives.move("a", state, "test")
    ledger.lives.token("a")
    ledger.clock.advance(8)
    ledger.lives.move("a", State.READY, "preempted")
    ledger.clock.advance(16)
    ledger.lives.move("a", State.RUNNING, "resumed")
    ledger.clock.advance(32)
    ledger.lives.token("a")
    ledger.lives.fed("a", 4, useful=3, idle=1)
    ledger.lives.fed("a", 5, useful=1, idle=0)
    usage = ledger.lives.end("a", State.FINISHED, "stop")
    assert (usage.queue_seconds, usage.prefill_seconds, usage.decode_seconds) == (1 + 4 + 16, 2, 8 + 32)
    assert (usage.first_token_seconds, usage.preemptions) == (7, 1)
    assert (usage.prompt_tokens, usage.generated_tokens) == (3, 2)
    assert (usage.useful_slots, usage.idle_slots, usage.idle_ratio) == (4, 1, 0.2)
    ended = ledger.told[-1]
    assert isinstance(ended, QueryEnded)
    assert (ended.outcome, ended.finish_reason, ended.usage) == (State.FINISHED, "stop", usage)
    assert (ended.end_to_end_seconds, ended.inter_token_seconds) == (63, (56.0,))


def test_a_query_that_drew_nothing_has_no_first_token() -> None:
    ledger = Ledger()
    ledger.arrive()
    assert ledger.lives.end("a", State.CANCELLED, "cancelled").first_token_seconds is None


def test_preempted_are_those_that_ran_and_wait_to_run_again() -> None:
    ledger = Ledger()
    ledger.arrive("a", State.RUNNING)
    ledger.arrive("b", State.READY)
    assert (ledger.lives.preempted, ledger.lives.preemptions) == (0, 0)
    ledger.lives.move("a", State.READY, "preempted")
    assert (ledger.lives.preempted, ledger.lives.preemptions) == (1, 1)
    ledger.lives.move("a", State.WAITING, "forgotten")
    ledger.lives.move("a", State.PREFILLING, "again")
    assert ledger.lives.preempted == 1
    ledger.lives.move("a", State.READY, "again")
    ledger.lives.move("a", State.RUNNING, "again")
    assert (ledger.lives.preempted, ledger.lives.preemptions) == (0, 1)


def test_standings_are_frozen_counts_in_the_order_of_arrival() -> None:
    ledger = Ledger()
    ledger.arrive("a", State.RUNNING)
    ledger.clock.advance(3)
    ledger.arrive("b", State.RUNNING, prompt_tokens=4)
    ledger.arrive("c")
    ledger.lives.fed("b", 4, 4, 0)
    ledger.lives.token("b")
    first, second = ledger.lives.views(State.RUNNING)
    assert (first.id, first.arrived, first.pending) == ("a", 100.0, 3)
    assert second.arrived == 103.0
    assert (second.id, second.cached, second.generated, second.pending) == ("b", 4, 1, 1)
    # 4 prompt tokens, and the 5 that it may generate.
    assert second.bytes_reserved == 90
    assert [s.id for s in ledger.lives.views(State.WAITING)] == ["c"]
    ledger.lives.forgot("b")
    assert second.cached == 4
    assert ledger.lives.views(State.RUNNING)[1].pending == 5


def told_anew(lives: Lifecycle, state: State) -> tuple[QueryView, ...]:
    """What `views` would say had it never said anything."""
    for life in lives.live.values():
        life.view = None
    return lives.views(state)


@pytest.mark.parametrize("seed", range(20))
def test_standings_and_counts_are_never_those_of_a_moment_before(seed: int) -> None:
    dice, ledger = random.Random(seed), Ledger()
    lives = ledger.lives
    for turn in range(120):
        if not lives.live or dice.random() < 0.2:
            ledger.arrive(f"q{turn}", dice.choice(LIVE))
        name = dice.choice(list(lives.live))
        was = lives.live[name].state
        changes = [
            lambda name=name: lives.fed(name, dice.randrange(9), 1, 0),
            lambda name=name: lives.began_with(name, dice.randrange(9)),
            lambda name=name: lives.forgot(name),
            lambda name=name: lives.token(name),
            lambda name=name, was=was: lives.move(name, dice.choice(sorted(MOVES[was])), "test"),
            lambda name=name: lives.end(name, dice.choice(ENDS), "test"),
        ]
        said = {state: lives.views(state) for state in LIVE}
        dice.choices(changes, weights=[4, 2, 2, 4, 6, 1])[0]()
        views = {state: lives.views(state) for state in LIVE}
        assert views == {state: told_anew(lives, state) for state in LIVE}
        others = {query.id: query for state in LIVE for query in said[state] if query.id != name}
        assert all(others.get(query.id, query) is query for state in LIVE for query in views[state]), "told again"
        everyone = [life.state for life in lives.live.values()]
        assert {state: lives.count(state) for state in LIVE} == {state: everyone.count(state) for state in LIVE}
        assert lives.preempted == sum(life.preempted for life in lives.live.values())


def test_the_ledger_balances_at_every_instant() -> None:
    ledger = Ledger()
    for i, end in enumerate([*ENDS, *ENDS]):
        ledger.arrive(f"q{i}", LIVE[i % 4])
        ledger.arrive(f"stays{i}")
        ledger.lives.end(f"q{i}", end, "reason")
        assert ledger.balance() == (2 * i + 2, 2 * i + 2)
    assert set(ledger.lives.ended.values()) == {2}
