"""Rows that leave for the host's memory and come back late: everyone gives what it gives alone, and nothing is lost."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from baton.batch.rows import Rows
from baton.core.query import Query
from baton.core.step import Feeding
from baton.cuda import offload as moving
from baton.cuda.offload import HostOffload
from baton.kv.segment import KVSegment, arrived
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from baton.testing.late_lane import LateLane
from families import CONTEXT, VOCABULARY, model_of
from random_batch import RandomBatch, Shaken, Spoiled, alone, late_offload, query_of, random_batch, some_queries

# Windows, rings with and without layers that keep all, states, latents, experts.
AHEAD = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")
PLAIN = ("llama", "gemma3", "mistral_window", "mamba", "jamba", "qwen3_next", "deepseek_v3", "phi3_longrope")


def kindred(count: int, dice: random.Random) -> list[Query]:
    """Queries that begin alike, some with several choices of an answer."""
    stems = [[dice.randrange(3, VOCABULARY) for _ in range(dice.randint(6, 40))] for _ in range(3)]
    queries: list[Query] = []
    for i in range(count):
        more = [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(1, 20))]
        one = query_of(f"k{i}", [*dice.choice(stems), *more][: CONTEXT - 20], dice.randint(1, 16), seed=10 * i)
        queries.append(one)
        if i % 4 == 0:
            queries[-1:] = [
                replace(one, id=f"{one.id}.{n}", seed=10 * i + n, sibling_of=f"{one.id}.0") for n in range(3)
            ]
    return queries


def is_empty(batch: RandomBatch, offload: HostOffload) -> bool:
    """Nothing is in rows, and of the host's memory no more is in use than what is stored of prefixes."""
    stored = batch.engine.queries.prefixes.bytes_used
    return batch.engine.kv_bytes_used == batch.engine.swap_bytes_used == 0 and offload.host.used_bytes == stored


def batch_apart(family: str, policy: Any, offload: HostOffload, **more: Any) -> RandomBatch:
    return random_batch(
        model_of(family), policy, native=False, offload=offload, prefix_cache=True, prefix_block=4, **more
    )


def queries_of(family: str) -> tuple[list[Query], dict[str, list[int]]]:
    """Some that have nothing in common, and some that have; and what each gives alone."""
    queries = [*some_queries(7, random.Random(3)), *kindred(5, random.Random(4))]
    return queries, {query.id: alone(family, query)[0] for query in queries}


CASES = [*((family, True, "baton") for family in AHEAD), *((family, False, "baton") for family in PLAIN)]
CASES += [("llama", True, "priority"), ("gemma3", True, "orca"), ("jamba", False, "slo")]
CASES += [("llama", True, "run_to_completion"), ("llama", False, "run_to_completion")]


@pytest.mark.parametrize(("family", "ahead", "policy"), CASES)
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str, ahead: bool, policy: str) -> None:
    queries, expected = queries_of(family)
    dice = random.Random(f"{family} {policy} {ahead}")
    offload, shaken = late_offload(dice.choice([0, 1, 3])), Shaken(POLICIES[policy](), dice)
    batch = batch_apart(family, shaken, offload, ahead=ahead)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert min(shaken.moves.values()) > 0
    assert is_empty(batch, offload)


def test_the_comparison_notices_rows_that_are_read_before_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.testing.late_lane._LateMark.join", lambda self: None)
    monkeypatch.setattr("baton.testing.late_lane._LateMark.done", lambda self: True)
    queries, expected = queries_of("llama")
    dice = random.Random(1)
    batch = batch_apart("llama", Shaken(Baton(), dice), late_offload())
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} != expected


@pytest.mark.parametrize("ahead", [True, False])
def test_little_memory_everywhere_changes_nobody_s_tokens(ahead: bool) -> None:
    """Rows, pool and what copies take of the device are scarce; some of the host's memory is not pinned."""
    queries, expected = queries_of("gemma3")
    dice = random.Random(7)
    lane = LateLane(2)
    offload = HostOffload(lane, Spoiled(lane, 2**14), 2**13)
    batch = batch_apart("gemma3", Shaken(Baton(), dice), offload, ahead=ahead, kv_bytes=2**18, swap_bytes=2**15)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert offload.host.unpinned_pieces > 0
    assert batch.engine.kv_bytes_used == batch.engine.swap_bytes_used == 0


def test_nothing_is_copied_that_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, expected = queries_of("llama")
    dice = random.Random(7)
    monkeypatch.setattr(HostOffload, "out", None)
    batch = batch_apart("llama", Shaken(Baton(), dice), late_offload(), swap_bytes=0)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected


def test_what_is_stored_elsewhere_does_not_go_where_rows_gain_nothing_by_it() -> None:
    batch = batch_apart("llama", Baton(), late_offload())
    batch.run([query_of("a", range(5, 25), 3)])
    prefixes = batch.engine.queries.prefixes
    before = prefixes.bytes_used
    assert not prefixes.let_go() and prefixes.bytes_used == before > 0


def placed(polls: int, *queries: Query, ahead: bool = False) -> tuple[RandomBatch, Rows]:
    batch = batch_apart("llama", Baton(), late_offload(polls), ahead=ahead)
    assert batch.rows is not None
    for query in queries:
        batch.rows.place(arrived(query, "tiny"), range(4))
    return batch, batch.rows


FIRST, SECOND = query_of("a", range(5, 17), 20), query_of("b", range(50, 57), 20)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_row_on_its_way_is_fed_nothing_and_one_that_is_alone_is_waited_for(ahead: bool) -> None:
    _, rows = placed(2, FIRST, SECOND, ahead=ahead)
    rows.feed({"a": 20, "b": 20}, Feeding.RAGGED)
    rows.place(rows.lift("b", copy=True), range(4))
    turns = [set(rows.feed({"a": 1, "b": 1}, Feeding.RAGGED).shares) for _ in range(3)]
    assert turns[:2] == [{"a"}, {"a"}] and "a" in turns[2]
    rows.place(rows.lift("b", copy=True), range(4))
    assert set(rows.feed({"b": 1}, Feeding.RAGGED).shares) == {"b"}
    assert rows.feed({"b": 1}, Feeding.RAGGED).tokens


def fed_alone_after_first(rows: Rows) -> KVSegment:
    """What a newcomer beside the first one computes: in a call of its own, since company may change the last bits."""
    rows.place(arrived(replace(SECOND, id="c"), "tiny"), range(2, 4))
    rows.feed({"c": 20}, Feeding.RAGGED)
    return rows.peek("c")


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("what", ["drop", "lift", "lend", "give back", "peek", "pack"])
def test_a_row_on_its_way_may_be_dropped_lifted_looked_at_and_moved(what: str, ahead: bool) -> None:
    _, rows = placed(100, FIRST, SECOND, ahead=ahead)
    rows.feed({"a": 20, "b": 20}, Feeding.RAGGED)
    expected = [part.clone() for part in rows.peek("b").parts]
    rows.place(rows.lift("b", copy=True), range(2, 4))
    if what in ("drop", "give back"):
        if what == "drop":
            rows.drop("b")
        else:
            rows.lift("b", copy=False).release()
        _, untouched = placed(100, FIRST, ahead=ahead)
        untouched.feed({"a": 20}, Feeding.RAGGED)
        expected = list(fed_alone_after_first(untouched).parts)
        segment = fed_alone_after_first(rows)
    elif what == "pack":
        rows.pack(range(4), 2)
        segment = rows.peek("b")
    elif what == "lend":
        # As the prefiller's rows go into the batch.
        rows.place(rows.lift("b", copy=False), range(2))
        assert len(rows.free(range(4))) == 2
        segment = rows.peek("b")
    else:
        segment = rows.peek("b") if what == "peek" else rows.lift("b", copy=True)
    assert all(map(torch.equal, segment.parts, expected))


def test_where_there_is_no_memory_to_copy_a_row_stays_or_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = placed(0, FIRST)
    rows.feed({"a": 20}, Feeding.RAGGED)
    expected = [part.clone() for part in rows.peek("a").parts]
    short = torch.OutOfMemoryError("no")
    with monkeypatch.context() as patched:
        patched.setattr("baton.cuda.offload.gather", Mock(side_effect=short))
        with pytest.raises(torch.OutOfMemoryError):
            rows.lift("a", copy=True)
    assert all(map(torch.equal, rows.peek("a").parts, expected))
    segment = rows.lift("a", copy=True)
    with monkeypatch.context() as patched:
        patched.setattr(LateLane, "empty", Mock(side_effect=short))
        with pytest.raises(torch.OutOfMemoryError):
            rows.place(segment, range(4))
    assert not rows.rectangle.lens[0] and rows.free(range(4)) == [0, 1, 2, 3]
    rows.place(segment, range(4))
    assert all(map(torch.equal, rows.peek("a").parts, expected))


@pytest.mark.parametrize("ahead", [True, False])
def test_a_row_that_could_not_land_lands_when_it_is_fed_again(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = placed(0, FIRST, ahead=ahead)
    rows.feed({"a": 20}, Feeding.RAGGED)
    expected = [part.clone() for part in rows.peek("a").parts]
    rows.place(rows.lift("a", copy=True), range(4))
    with monkeypatch.context() as patched:
        patched.setattr(moving, "scatter", Mock(side_effect=torch.OutOfMemoryError("no")))
        for verb in (lambda: rows.feed({"a": 1}, Feeding.RAGGED), lambda: rows.lift("a", copy=True)):
            with pytest.raises(torch.OutOfMemoryError):
                verb()
    assert rows.feed({"a": 1}, Feeding.RAGGED).tokens
    assert all(torch.equal(new[:12], old) for new, old in zip(rows.peek("a").parts, expected, strict=True))


@pytest.mark.parametrize("ahead", [True, False])
def test_queries_go_on_where_there_is_often_no_memory_to_copy(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, expected = queries_of("llama")
    dice, often = random.Random(5), random.Random(6)

    def short(lane: LateLane, size: int) -> torch.Tensor:
        if often.random() < 0.4:
            raise torch.OutOfMemoryError("no")
        return torch.empty(size, dtype=torch.uint8)

    gather = moving.gather

    def short_too(*given: Any) -> None:
        if often.random() < 0.4:
            raise torch.OutOfMemoryError("no")
        gather(*given)

    scatter = moving.scatter

    def shorter(*given: Any) -> None:
        if often.random() < 0.2:
            raise torch.OutOfMemoryError("no")
        scatter(*given)

    monkeypatch.setattr(LateLane, "empty", short)
    monkeypatch.setattr(moving, "gather", short_too)
    monkeypatch.setattr(moving, "scatter", shorter)
    offload = late_offload()
    batch = batch_apart("llama", Shaken(Baton(), dice), offload, ahead=ahead)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert is_empty(batch, offload)
