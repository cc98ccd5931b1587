"""What went wrong where two features met: short scenarios, found by tests/test_everything_at_once.py and by reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from baton.batch import feeder
from baton.core.query import Query, State
from baton.kv.budget import SPARE_BYTES, Budget
from baton.kv.prefix import PrefixStore
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Plan
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from families import model_of
from random_batch import RandomBatch, alone, query_of, random_batch
from toy import BYTES_PER_TOKEN, COLUMNS, prompt_of, toy_alone, toy_batch
from turns import Scripted, accept, asked, faulty, is_idle, turn


def choices(count: int, prompt: Sequence[int], limit: int) -> list[Query]:
    return [replace(query_of(f"c{i}", prompt, limit, seed=i), sibling_of="c0") for i in range(count)]


def to_the_end(batch: RandomBatch, most: int = 200) -> int:
    """Returns how many iterations it took."""
    for number in range(most):
        if not batch.engine.busy:
            return number
        turn(batch)
    raise AssertionError(f"not done: {batch.engine.lifecycle.live}")


@pytest.mark.parametrize("fused", [True, False])
def test_a_held_prefix_that_cannot_be_put_together_fails_nobody(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice is planned to be ready after one token, and has to compute its whole prompt instead."""
    store = PrefixStore(0, divisible_tokens=100, block=4)
    batch = toy_batch(Baton(fused=fused), prefix_store=store)
    queries = choices(3, prompt_of(12), 6)
    accept(batch, *queries)
    right, broken = store.find, list[Any]()

    def find(tokens: Sequence[int]) -> Any:
        if store.bytes_held and not broken:
            broken.append(tokens)
            raise MemoryError
        return right(tokens)

    monkeypatch.setattr(store, "find", find)
    to_the_end(batch)
    assert broken
    assert [batch.tokens(query.id) for query in queries] == [toy_alone(query) for query in queries]
    assert is_idle(batch.engine)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_is_held_for_choices_gives_way_where_the_pool_shrinks(policy: str) -> None:
    """Otherwise a query that may need a whole row never begins: held memory counts as used."""
    clock, free = ManualClock(), [2**40]
    batch = toy_batch(
        POLICIES[policy](),
        prefix_store=PrefixStore(0, divisible_tokens=100, block=4),
        clock=clock,
        free_bytes=lambda: free[0] + SPARE_BYTES,
        max_rows=1,
        prefill_chunk=50,
        kv_bytes=4 * COLUMNS * BYTES_PER_TOKEN,
    )
    queries = choices(3, prompt_of(COLUMNS - 10), 10)
    accept(batch, *queries)
    for _ in range(6):
        turn(batch)
    assert batch.engine.queries.prefixes.bytes_held
    free[0] = 0
    for _ in range(60):
        clock.advance(2.0)
        turn(batch)
    assert is_idle(batch.engine)
    assert batch.engine.budget.swap_bytes == 0
    assert [batch.tokens(query.id) for query in queries] == [toy_alone(query) for query in queries]


def test_a_pool_that_shrinks_holds_no_more_than_it_may() -> None:
    """What is swapped out takes less than whole pages: to forget one of two does not free what two take."""
    plans = [Plan(resize=2, insert=("a", "b")), Plan(detach=("a", "b")), Plan()]
    clock, free = ManualClock(), [2**40]
    batch = random_batch("llama", Scripted(plans), rows=2, clock=clock)
    batch.engine.budget = Budget(2**30, 2**30, floor_bytes=2**20, free_bytes=lambda: free[0] + SPARE_BYTES, clock=clock)
    accept(batch, query_of("a", [5, 6], 9), query_of("b", [7, 8], 9))
    for _ in range(2):
        turn(batch)
    assert batch.engine.swap_bytes_used
    free[0] = 0
    clock.advance(2.0)
    turn(batch)
    assert batch.engine.budget.swap_bytes == batch.engine.swap_bytes_used == 0


def test_a_first_choice_that_was_forgotten_is_computed_again_at_once() -> None:
    """It pauses for the others once: mamba's prompts are fed whole, and token by token after a pause."""
    limit = 20
    batch = random_batch("mamba", Forgetting(after=15), rows=2, prefix_cache=True)
    queries = choices(2, prompt_of(30), limit)
    expected = [alone("mamba", query)[0] for query in queries]
    accept(batch, *queries)
    assert to_the_end(batch) <= limit + 6
    assert [batch.tokens(query.id) for query in queries] == expected


class Forgetting(Orca):
    """Orca, but for the first choice, which is forgotten once, when it has generated so many tokens."""

    def __init__(self, after: int) -> None:
        self.after = after

    def plan(self, view: Any) -> Plan:
        plan = super().plan(view)
        if not any(query.id == "c0" and query.generated == self.after for query in view.running):
            return plan
        self.after = -1
        return replace(plan, detach=("c0",), forget=("c0",))


def test_who_is_set_aside_while_it_is_computed_anew_goes_on_in_as_large_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longrope: the text outgrew the first 40 tokens, and its row was taken before all of it was fed again."""
    monkeypatch.setattr(feeder, "_RECOMPUTED_TOKENS", 8)
    query = query_of("q", prompt_of(38), 6)
    expected = alone("phi3_longrope", query)[0]
    into = Plan(insert=("q",), feed=1)
    prompt = [replace(into, feed=100), *[Plan()] * 4]
    batch = random_batch(model_of("phi3_longrope"), Scripted([*prompt, Plan(detach=("q",)), into]), rows=1)
    accept(batch, query)
    for _ in range(5):
        turn(batch)
    assert 0 < batch.engine.batch.lens["q"] < 40 < 38 + batch.engine.lifecycle.live["q"].generated
    assert to_the_end(batch) <= 12
    assert batch.tokens("q") == expected


def test_memory_may_run_out_once_for_a_prompt_and_once_for_the_step_behind_it() -> None:
    """Each is repeated, though there is nothing to free: others may have freed some."""
    batch = toy_batch(Baton())
    query = asked("q", 1, 6)
    faulty(batch, lambda number, rows, tokens: MemoryError() if number in (1, 3) else None)
    accept(batch, query)
    to_the_end(batch)
    assert batch.tokens("q") == toy_alone(query)
    assert batch.engine.lifecycle.ended[State.FINISHED] == 1


def test_a_later_turn_may_have_any_token_of_the_model_in_its_prompt() -> None:
    """The oracle: token 0 is padding to `generate` if it gets no mask."""
    prompt = torch.arange(12).tolist()
    assert alone("llama", query_of("q", prompt, 3))[0] == batch_alone(prompt, 3)


def batch_alone(prompt: Sequence[int], limit: int) -> list[int]:
    batch = random_batch("llama", Orca(), rows=1)
    batch.run([query_of("q", prompt, limit)])
    return batch.tokens("q")
