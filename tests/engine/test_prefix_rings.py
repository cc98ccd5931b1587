"""Prefixes of models with rings: cut while no ring is full, whole beyond; everyone gets what it gets alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from baton.core.events import Event, IterationDone
from baton.core.query import Query
from baton.kv.prefix import PrefixStore
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from families import VOCABULARY, WINDOW
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch

BLOCK = 4
CHUNK = 5
TOLERANCE = 1e-4
RINGED = pytest.mark.parametrize("family", ["gemma3", "mistral_window"])
ONE_TOKEN_OFF, OVERWRITTEN = "one token off", "overwritten"


def some(count: int, seed: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(3, VOCABULARY) for _ in range(count)]


STEM = some(10, seed=1)
SHARED = 8
"""Tokens of the stem's whole blocks."""


def batch_with(family: str, policy: Any = None, *, busy: bool = True, **more: Any) -> RandomBatch:
    """An engine; `busy`: a query runs in it all the time, so that prompts are fed in chunks of CHUNK."""
    batch = random_batch(family, policy or Baton(), chunk=CHUNK, prefix_cache=True, prefix_block=BLOCK, **more)
    if busy:
        batch.engine.accept(query_of("busy", [5], 180, seed=99), batch.hear)
        for _ in range(2):
            batch.engine.iterate()
    return batch


def run(batch: RandomBatch, *queries: Query) -> None:
    """One query after the other."""
    for query in queries:
        batch.engine.accept(query, batch.hear)
        while query.id in batch.engine.lifecycle.live:
            batch.engine.iterate()
            batch.engine.flush()


def begun(batch: RandomBatch, *queries: Query) -> list[int]:
    """The reported number of tokens that each began with."""
    usages = [batch.updates[query.id][-1].usage for query in queries]
    return [usage.cached_tokens for usage in usages if usage is not None]


def worst_difference(batch: RandomBatch, query: Query, logits: Tensor) -> float:
    mine = torch.stack([batch.recorder.logits[query.seed, len(query.prompt) + i] for i in range(len(logits))])
    return float((mine - logits).abs().max() / logits.abs().max())


def is_as_alone(family: str, batch: RandomBatch, *queries: Query) -> bool:
    for query in queries:
        tokens, logits = alone(family, query)
        if batch.tokens(query.id) != tokens or worst_difference(batch, query, logits) > TOLERANCE:
            return False
    return True


def store_in(batch: RandomBatch) -> PrefixStore:
    store = batch.engine.queries.prefixes._store
    assert store is not None
    return store


# Within the window, and on the way beyond it


@RINGED
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("ends", [(2, 2), (2, 30), (30, 2), (30, 40)])
def test_prompts_that_begin_alike_share_the_beginning(family: str, ends: tuple[int, int], fused: bool) -> None:
    first = query_of("a", [*STEM, *some(ends[0], seed=2)], 6, seed=1)
    second = query_of("b", [*STEM, *some(ends[1], seed=3)], 6, seed=2)
    batch = batch_with(family, Baton(fused=fused))
    run(batch, first)
    useful = batch.engine.totals.slots.useful
    iterations = batch.engine.totals.iterations
    run(batch, second)
    assert begun(batch, first, second) == [0, SHARED]
    # Beside the one that is busy: what is left of the prompt, and all tokens of the answer but the last.
    others = batch.engine.totals.iterations - iterations
    assert batch.engine.totals.slots.useful - useful == len(second.prompt) - SHARED + 5 + others
    assert is_as_alone(family, batch, first, second)


@RINGED
def test_a_long_prompts_beginning_is_there_before_the_prompt_is_complete(family: str) -> None:
    long = query_of("long", [*STEM, *some(40, seed=2)], 6, seed=1)
    batch = batch_with(family)
    batch.engine.accept(long, batch.hear)
    kept: list[tuple[int, int]] = []
    for _ in range(4):
        batch.engine.iterate()
        prefix = store_in(batch).find([*STEM, 0])
        kept.append((batch.engine.lifecycle.live["long"].cached, prefix[0] if prefix else 0))
    assert kept == [(5, 4), (10, 8), (15, 8), (20, 8)]


@RINGED
def test_the_same_beginning_is_stored_once(family: str) -> None:
    batch = batch_with(family)
    stored: list[int] = []
    for at, end in enumerate(([7], [8, 9], [7, 9])):
        # Its first token is its last: it ends before its rings are full.
        run(batch, query_of(f"q{at}", [*STEM, *end], 1))
        stored.append(store_in(batch).bytes_used)
    token_bytes = sum(part[0].numel() * part.element_size() for part in batch.engine.batch.peek("busy").parts)
    # The prompts of 12 tokens have a third block each.
    assert stored == [8 * token_bytes, 12 * token_bytes, 16 * token_bytes]


@RINGED
def test_where_one_chunk_crosses_the_window_nothing_is_lost_but_reuse(family: str) -> None:
    first, second = query_of("a", [*STEM, *some(30, seed=2)], 6, seed=1), query_of("b", [*STEM, 7], 6, seed=2)
    batch = batch_with(family, busy=False)  # one chunk of 40
    run(batch, first, second)
    assert begun(batch, first, second) == [0, 0]
    assert is_as_alone(family, batch, first, second)


# Beyond the window


@RINGED
def test_beyond_the_window_a_text_is_begun_with_whole_or_up_to_its_first_blocks(family: str) -> None:
    first = query_of("a", [*STEM, *some(20, seed=2)], 6, seed=1)
    batch = batch_with(family)
    run(batch, first)
    answer = batch.tokens("a")
    following = query_of("b", [*first.prompt, *answer, *some(9, seed=3)], 6, seed=2)
    beside = query_of("c", [*first.prompt[:-1], *some(9, seed=4)], 6, seed=3)
    after_prompt = query_of("d", [*first.prompt, *some(9, seed=5)], 6, seed=4)
    run(batch, following, beside, after_prompt)
    # The last token of an answer was drawn and never fed. The stem goes on in `first` to a third block.
    assert begun(batch, following, beside, after_prompt) == [30 + 5, 8, 30]
    assert is_as_alone(family, batch, first, following, beside, after_prompt)


@RINGED
@pytest.mark.parametrize("length", [9, 12, 13, 30])
def test_choices_of_a_prompt_begin_at_its_last_token_however_long_it_is(family: str, length: int) -> None:
    one = query_of("g0", [*STEM, *some(20, seed=2)][:length], 6, seed=1)
    group = [replace(one, id=f"g{i}", seed=1 + i, sibling_of="g0") for i in range(3)]
    batch = batch_with(family)
    for query in group:
        batch.engine.accept(query, batch.hear)
    while len(batch.engine.lifecycle.live) > 1:
        batch.engine.iterate()
        batch.engine.flush()
    assert begun(batch, *group) == [0, length - 1, length - 1]
    assert is_as_alone(family, batch, *group)


class Once(Baton):
    """Takes "b" out of its row when it has generated so many tokens, and forgets it if that is asked for."""

    def __init__(self, generated: int, forget: bool) -> None:
        super().__init__()
        self.generated, self.forget = generated, forget

    def plan(self, view: Any) -> Any:
        plan = super().plan(view)
        gone = tuple(query.id for query in view.running if query.id == "b" and query.generated == self.generated)
        return plan if not gone else type(plan)(detach=gone, forget=gone if self.forget else (), feed=plan.feed)


@RINGED
@pytest.mark.parametrize("forget", [True, False])
@pytest.mark.parametrize("end", [1, 30])
def test_who_began_with_blocks_is_taken_out_and_comes_back(family: str, end: int, forget: bool) -> None:
    first = query_of("a", [*STEM, 7], 6, seed=1)
    second = query_of("b", [*STEM, *some(end, seed=3)], 12, seed=2)
    batch = batch_with(family, Once(4, forget))
    run(batch, first, second)
    usage = batch.updates["b"][-1].usage
    assert usage is not None
    assert usage.preemptions == 1
    assert (batch.engine.totals.slots.recomputed > 0) is forget
    assert usage.cached_tokens >= SHARED
    assert is_as_alone(family, batch, first, second)


@RINGED
@pytest.mark.parametrize("policy", ["baton", "orca"])
@pytest.mark.parametrize("room", [2**30, 120_000])
def test_a_shaken_batch_that_shares_beginnings_gives_what_each_gives_alone(
    family: str, policy: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(f"{family} {policy}")
    lengths: list[int] = []
    seen: list[int] = []
    find = PrefixStore.find

    def look(store: PrefixStore, tokens: Sequence[int]) -> Any:
        answer = find(store, tokens)
        lengths.append(answer[0] if answer else 0)
        return answer

    def listen(event: Event) -> None:
        if isinstance(event, IterationDone):
            queries = batch.engine.queries
            seen.append(queries.pool.bytes_used + queries.prefixes.bytes_used)

    monkeypatch.setattr(PrefixStore, "find", look)
    shaken = Shaken(POLICIES[policy](), dice)
    batch = batch_with(family, shaken, busy=False, swap_bytes=room, sinks=[listen])
    stems = [some(length, seed=length) for length in (6, 9, 11, 25)]
    queries = [
        query_of(f"q{i}", [*dice.choice(stems), *some(dice.choice([1, 2, 20]), seed=i)], dice.randint(1, 12), seed=i)
        for i in range(24)
    ]
    batch.run(queries, dice)
    assert is_as_alone(family, batch, *queries)
    assert shaken.moves["detach"] > 0
    assert shaken.moves["forget"] > 0
    assert any(0 < count <= WINDOW for count in lengths)
    assert any(count > WINDOW for count in lengths)
    assert max(seen) <= room
    assert room == 2**30 or max(seen) > room // 2
    assert not (batch.engine.kv_bytes_used or batch.engine.swap_bytes_used or store_in(batch).bytes_held)


# Controls


@RINGED
@pytest.mark.parametrize("wrong", [None, ONE_TOKEN_OFF, OVERWRITTEN])
def test_a_wrong_cut_is_noticed(family: str, wrong: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_with(family, busy=False)
    cut = PrefixStore._cut
    if wrong == ONE_TOKEN_OFF:
        monkeypatch.setattr(
            PrefixStore,
            "_cut",
            lambda store, parts, start, length: cut(store, [part.roll(1, 0) for part in parts], start, length),
        )
    elif wrong == OVERWRITTEN:
        store_in(batch)._tree.divisible = WINDOW + BLOCK
    # A row whose ring is not full, and one that has overwritten its first tokens.
    first = query_of("a", [*STEM, *some(5 if wrong == OVERWRITTEN else 2, seed=2)], 1, seed=1)
    second = query_of("b", [*STEM, *some(2, seed=3)], 6, seed=2)
    run(batch, first, second)
    assert begun(batch, first, second) == [0, SHARED]
    assert is_as_alone(family, batch, second) is (wrong is None)
    if wrong is not None:
        _, logits = alone(family, second)
        # The first token drawn, before anything else differs.
        assert worst_difference(batch, second, logits[:1]) > 100 * TOLERANCE
