"""The drive without threads: which query is asked when, with which prompt, and on which clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from baton.bench.drive import TURN_BEFORE_FAILED, Run
from baton.bench.interleave import NO_TURNS, OwnTime
from baton.bench.lockstep import drive_in_turn
from baton.bench.workload import make_workload
from baton.core.events import Update
from baton.core.query import Query
from baton.testing.clock import ManualClock


class Counting:
    """An engine that says 1, 2, 3, ... to each query, a second a token; `fails`: names of those that have an error."""

    def __init__(self, clock: ManualClock, fails: str = "") -> None:
        self._clock = clock
        self._fails = fails
        self._live: dict[str, tuple[Query, Callable[[list[Update]], None], int]] = {}
        self.asked: list[Query] = []
        self.most = 0

    @property
    def busy(self) -> bool:
        return bool(self._live)

    def accept(self, query: Query, deliver: Callable[[list[Update]], None]) -> None:
        self.asked.append(query)
        self._live[query.id] = (query, deliver, 0)
        self.most = max(self.most, len(self._live))

    def iterate(self) -> bool:
        self._clock.advance(1.0)
        return True

    def flush(self) -> None:
        for name, (query, deliver, said) in list(self._live.items()):
            if name in self._fails:
                deliver([Update(name, finish_reason="error", error="broken")])
                del self._live[name]
                continue
            ends = said + 1 == query.limit_tokens
            self._live[name] = (query, deliver, said + 1)
            if ends:
                del self._live[name]
            deliver([Update(name, token_ids=(said + 1,), finish_reason="length" if ends else None)])


def driven(
    engine: Counting, clock: ManualClock, *, at_once: int, queries: int, turns: int = 1
) -> tuple[Run, list[list[int]]]:
    workload = make_workload(queries, prompt="2", answer="3", turns=turns)
    prompts = workload.prompts(100)
    some: Any = engine
    return drive_in_turn(some, workload, prompts, OwnTime(clock), NO_TURNS, at_once=at_once), prompts


def test_so_many_at_a_time_and_the_next_when_one_has_ended() -> None:
    clock = ManualClock()
    engine = Counting(clock)
    run, _ = driven(engine, clock, at_once=2, queries=5)
    assert engine.most == 2 and run.seconds == 9.0
    assert [one.asked for one in run.responses] == [0, 0, 3, 3, 6]
    assert all(one.tokens == [1, 2, 3] and one.first == 1 and one.whole == 3 for one in run.responses)


def test_a_turn_is_asked_with_all_that_was_said() -> None:
    clock = ManualClock()
    engine = Counting(clock)
    run, prompts = driven(engine, clock, at_once=1, queries=1, turns=3)
    said: list[int] = []
    for number, query in enumerate(engine.asked):
        assert list(query.prompt) == [*said, *prompts[number]]
        said = [*query.prompt, 1, 2, 3]
    assert len(engine.asked) == 3 and [one.prompt_tokens for one in run.responses] == [2, 7, 12]


def test_after_a_failed_turn_the_rest_of_its_conversation_is_not_asked() -> None:
    clock = ManualClock()
    engine = Counting(clock, fails="0")
    run, _ = driven(engine, clock, at_once=1, queries=2, turns=2)
    errors = {number: one.error for number, one in enumerate(run.responses)}
    after = next(n for n, one in errors.items() if one == TURN_BEFORE_FAILED)
    assert errors[0] == "broken" and sum(one is None for one in errors.values()) == 2
    assert str(after) not in [query.id for query in engine.asked] and len(engine.asked) == 3
