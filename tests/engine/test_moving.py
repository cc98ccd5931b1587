"""A live query leaves its engine and goes on in another: tokens, log-probabilities and ends are those of the uncut run.

A seed draws a crowd on a tiny model of one kind of cache. Each query leaves at random moments, wherever it is, and goes
on in the other engine: with its keys and values, from its tokens alone, or from what its asker was told, as after its
engine was killed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from baton.core.constraint import OutputFormat
from baton.core.events import QueryMoved
from baton.core.query import Query, State
from baton.kv.parcel import Parcel, pack, resumed, unpack
from baton.kv.segment import KVSegment
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from random_batch import RandomBatch, Shaken, late_offload, random_batch
from scenario import FAMILIES, Picky, some_params, some_tokens
from turns import asked, is_idle, turn

PICKY = OutputFormat("grammar", "picky", "grammar")
WAYS = ("with keys and values", "tokens alone", "killed")


def crowd(dice: random.Random, count: int) -> list[Query]:
    queries = []
    for at in range(count):
        prompt = some_tokens(dice, dice.choice([1, 5, 13, 40, 90]))
        limit = dice.choice([1, 6, 20, 40])
        picky = dice.random() < 0.3
        queries.append(
            Query(
                id=f"q{at}",
                prompt=tuple(prompt),
                params=some_params(dice, limit),
                seed=1000 * at,
                limit_tokens=limit,
                arrived=0.0,
                constraint=Picky() if picky else None,
                form=PICKY if picky else None,
            )
        )
    return queries


def as_bytes(segment: KVSegment) -> Parcel:
    """A parcel as it arrives in another process: its header as text, its parts as bytes of nobody's."""
    parcel = pack(segment, now=0.0)
    travelled = Parcel(json.loads(json.dumps(parcel.header)), [part.copy() for part in parcel.parts])
    segment.release()
    return travelled


def arrives(parcel: Parcel) -> KVSegment:
    def compiled(form: OutputFormat) -> Picky:
        assert form == PICKY
        return Picky()

    return unpack(parcel, 0.0, compiled)


class Moving:
    """Two engines, what their clients were told together, and how queries go from one to the other."""

    def __init__(self, family: str, dice: random.Random, **settings: Any) -> None:
        self.dice = dice
        policy = POLICIES[dice.choice(sorted(POLICIES))]
        given = {"rows": dice.randint(1, 4), "chunk": dice.choice([None, 3, 20]), "prefix_cache": False, **settings}
        self.make = partial(random_batch, family, rows=given.pop("rows"), chunk=given.pop("chunk"), **given)
        self.ends = [self.make(Shaken(policy(), dice)), self.make(Shaken(policy(), dice))]
        self.told = self.ends[0]
        self.recomputed = 0

    def move(self, name: str, way: str) -> None:
        here = next(at for at, end in enumerate(self.ends) if name in end.engine.lifecycle.live)
        there = self.ends[1 - here].engine
        if way == "killed":
            query = self.ends[here].engine.lifecycle.live[name].query
            there.resume(resumed(query, self.told.tokens(name), "tiny"), self.told.hear)
            # What the other one still does is heard by nobody.
            self.ends[here].engine.cancel(name)
            self.ends[here].engine.queries.outputs._out.clear()
            return
        segment = self.ends[here].engine.give(name)
        self.ends[here].engine.flush()
        assert segment is not None
        parcel = as_bytes(segment)
        there.resume(arrives(parcel if way == WAYS[0] else parcel.without_parts()), self.told.hear)

    def run(self, queries: list[Query], ways: Sequence[str]) -> None:
        for query in queries:
            self.ends[0].engine.accept(query, self.told.hear)
        for _ in range(3000):
            if not any(end.engine.busy for end in self.ends):
                break
            live = [name for end in self.ends for name in end.engine.lifecycle.live]
            if live and ways and self.dice.random() < 0.3:
                self.move(self.dice.choice(live), self.dice.choice(ways))
            for end in self.ends:
                if end.engine.busy:
                    turn(end)
        assert all(is_idle(end.engine) for end in self.ends)


def heard(batch: RandomBatch, name: str) -> dict[str, Any]:
    updates = batch.updates[name]
    reasons = [update.finish_reason for update in updates if update.finish_reason not in (None, "moved")]
    assert len(reasons) == 1
    usage = updates[-1].usage
    assert usage is not None
    return {
        "tokens": batch.tokens(name),
        "reason": reasons[0],
        "stopped_by": updates[-1].stopped_by,
        "generated": usage.generated_tokens,
        "logprobs": [one for update in updates for one in update.logprobs],
        "prompt_logprobs": [one for update in updates for one in update.prompt_logprobs],
    }


def close(numbers_of_one: dict[str, Any], right: dict[str, Any]) -> bool:
    """Equal but for the last digits of log-probabilities."""

    def same(a: Any, b: Any) -> bool:
        ranked = [token for token, _ in a.best] == [token for token, _ in b.best]
        near = all(abs(x - y) < 1e-4 for (_, x), (_, y) in zip(a.best, b.best, strict=True))
        return a.token_id == b.token_id and abs(a.logprob - b.logprob) < 1e-4 and ranked and near

    numbers = ("logprobs", "prompt_logprobs")
    plain = all(numbers_of_one[name] == right[name] for name in numbers_of_one if name not in numbers)
    return plain and all(
        len(numbers_of_one[name]) == len(right[name]) and all(map(same, numbers_of_one[name], right[name]))
        for name in numbers
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_crowd_that_moves_between_engines_hears_what_it_would_have_heard(family: str) -> None:
    dice = random.Random(family)
    queries = crowd(dice, 5)
    uncut = Moving(family, random.Random(1))
    uncut.run(queries, ())
    moving = Moving(family, dice)
    moving.run(queries, WAYS)
    for query in queries:
        assert close(heard(moving.told, query.id), heard(uncut.told, query.id)), query
    assert sum(end.engine.lifecycle.ended[State.MOVED] for end in moving.ends) > 0
    assert sum(end.engine.totals.slots.recomputed for end in moving.ends) > 0


def test_rows_whose_keys_and_values_are_in_other_memory_move() -> None:
    dice = random.Random(5)
    queries = crowd(dice, 5)
    uncut, moving = Moving("llama", random.Random(1)), Moving("llama", dice)
    uncut.run(queries, ())
    moving.ends = [random_batch("llama", Shaken(Baton(), dice), offload=late_offload()) for _ in range(2)]
    moving.told = moving.ends[0]
    moving.run(queries, WAYS[:1])
    assert all(close(heard(moving.told, query.id), heard(uncut.told, query.id)) for query in queries)


def given(batch: RandomBatch, name: str) -> KVSegment:
    segment = batch.engine.give(name)
    batch.engine.flush()
    assert segment is not None
    return segment


@pytest.fixture
def two() -> tuple[RandomBatch, RandomBatch]:
    return random_batch("llama", Baton()), random_batch("llama", Baton())


def running(batch: RandomBatch, query: Query, tokens: int = 3) -> None:
    batch.engine.accept(query, batch.hear)
    while len(batch.tokens(query.id)) < tokens:
        turn(batch)


def rest(batch: RandomBatch) -> None:
    while batch.engine.busy:
        turn(batch)


def test_with_its_keys_and_values_nothing_is_computed_again(two: tuple[RandomBatch, RandomBatch]) -> None:
    first, second = two
    running(first, asked("q", 20, 12))
    second.engine.resume(arrives(as_bytes(given(first, "q"))), first.hear)
    assert second.engine.lifecycle.live["q"].state is State.READY and second.engine.lifecycle.preempted == 1
    rest(second)
    assert second.engine.totals.slots.recomputed == 0 and second.engine.totals.slots.useful < 12
    assert first.engine.lifecycle.ended[State.MOVED] == 1 and is_idle(first.engine) and is_idle(second.engine)


@pytest.mark.parametrize("trouble", ["a foreign stamp", "no memory"])
def test_what_cannot_be_inserted_is_computed_again(two: tuple[RandomBatch, RandomBatch], trouble: str) -> None:
    first, second = two
    running(first, asked("q", 20, 12))
    segment = arrives(as_bytes(given(first, "q")))
    if trouble == "no memory":
        second.engine.queries.pool.bytes_most = 8
    else:
        segment.stamp = "another model's"
    second.engine.resume(segment, first.hear)
    rest(second)
    uncut = random_batch("llama", Baton())
    uncut.run([asked("q", 20, 12)])
    assert first.tokens("q") == uncut.tokens("q")
    # The last token was drawn and never fed.
    assert second.engine.totals.slots.recomputed == 20 + 3 - 1


def test_a_query_that_comes_back_to_where_it_still_is_holds(two: tuple[RandomBatch, RandomBatch]) -> None:
    """Its asker lost the connection and not the engine."""
    first, _ = two
    query = asked("q", 20, 12)
    running(first, query)
    lost, first.updates = first.updates, {}
    first.engine.resume(resumed(query, [t for update in lost["q"] for t in update.token_ids], "tiny"), first.hear)
    first.engine.flush()
    assert [update.finish_reason for update in first.updates.pop("q")] == ["cancelled"]
    rest(first)
    uncut = random_batch("llama", Baton())
    uncut.run([query])
    assert [t for update in lost["q"] for t in update.token_ids] + first.tokens("q") == uncut.tokens("q")
    assert is_idle(first.engine)


def test_choices_of_a_prompt_go_on_each_by_itself(two: tuple[RandomBatch, RandomBatch]) -> None:
    first, second = two
    queries = [replace(asked("q", 20, 12, temperature=0.8), id=f"q{at}", seed=at, sibling_of="q0") for at in range(3)]
    first, second = (random_batch("llama", Baton(), prefix_cache=True) for _ in range(2))
    for query in queries:
        first.engine.accept(query, first.hear)
    turn(first)
    second.engine.resume(arrives(as_bytes(given(first, "q0"))), first.hear)
    rest(first)
    rest(second)
    uncut = random_batch("llama", Baton())
    uncut.run([replace(query, sibling_of="") for query in queries])
    assert all(first.tokens(query.id) == uncut.tokens(query.id) for query in queries)


def test_what_is_told_of_moves() -> None:
    told: list[object] = []
    first, second = (random_batch("llama", Baton(), sinks=[told.append]) for _ in range(2))
    running(first, asked("q", 5, 8))
    second.engine.resume(arrives(as_bytes(given(first, "q"))), first.hear)
    moves = [(move.was, move.now, move.why) for move in told if isinstance(move, QueryMoved)]
    assert moves[-2:] == [(State.RUNNING, State.MOVED, "moved"), (None, State.READY, "resumed")]
    assert first.updates["q"][-1].finish_reason == "moved"


def test_nobody_is_given_who_is_not_live(two: tuple[RandomBatch, RandomBatch]) -> None:
    first, _ = two
    assert first.engine.give("q") is None
    first.run([asked("q")])
    assert first.engine.give("q") is None
