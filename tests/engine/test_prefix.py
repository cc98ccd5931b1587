"""Prefixes and choices in the engine: what is computed once, and that no query's tokens change for it."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.core.events import Event, IterationDone, QueryEnded
from baton.core.query import Query, RequestOptions, SamplingParams, State
from baton.engine.client import Client
from baton.kv.prefix import PrefixStore
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from families import VOCABULARY as TINY_VOCABULARY
from families import model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch
from toy import BYTES_PER_TOKEN, NAN, VOCABULARY, hashed, prompt_of, toy_alone, toy_batch, toy_settings

BLOCK = 4
TOLERANCE = 1e-4
ALWAYS = sys.maxsize
KINDS = (ALWAYS, 8, 0)
"""How long a row may be to be cut: of any length, while its rings of 8 columns are not full, never."""
EVERY_KIND = pytest.mark.parametrize("divisible_tokens", KINDS)
EVERY_POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))


def store_of(*, divisible_tokens: int = ALWAYS) -> PrefixStore:
    return PrefixStore(0, divisible_tokens=divisible_tokens, block=BLOCK)


def batch_with(store: PrefixStore | None = None, policy: Any = None, **more: Any) -> RandomBatch:
    return toy_batch(policy or Baton(), prefix_store=store or store_of(), **more)


def usage_of(batch: RandomBatch, name: str) -> Any:
    return batch.updates[name][-1].usage


def choices(name: str, prompt: Sequence[int], count: int, limit: int = 6, **params: Any) -> list[Query]:
    """Queries as the client makes them of one prompt."""
    one = query_of(name, prompt, limit, **params)
    return [replace(one, id=f"{name}{i}", seed=one.seed + i, sibling_of=f"{name}0") for i in range(count)]


def accept(batch: RandomBatch, *queries: Query) -> None:
    for query in queries:
        batch.engine.accept(query, batch.hear)


def turn(batch: RandomBatch, times: int = 1) -> None:
    for _ in range(times):
        batch.engine.iterate()
        batch.engine.flush()


def finish(batch: RandomBatch) -> None:
    batch.run([])


def is_right(batch: RandomBatch, *queries: Query) -> bool:
    return all(batch.tokens(query.id) == toy_alone(query) for query in queries)


def is_released(batch: RandomBatch) -> bool:
    """Whether nothing is left in rows and pool, no query waits for another, and nothing is held in the store."""
    prefixes = batch.engine.queries.prefixes
    waits = prefixes.waiting or prefixes._taking or prefixes._guaranteed or prefixes._awaiting
    return not (waits or prefixes.bytes_held or batch.engine.kv_bytes_used or batch.engine.swap_bytes_used)


def worst_difference(batch: RandomBatch, query: Query, logits: Tensor) -> float:
    """Largest difference from the oracle's logits, relative to the largest logit, over all tokens of the query."""
    mine = torch.stack([batch.recorder.logits[query.seed, len(query.prompt) + i] for i in range(len(logits))])
    return float((mine - logits).abs().max() / logits.abs().max())


# Prefixes


@EVERY_POLICY
def test_a_prompt_that_begins_as_another_did_is_computed_from_there(policy: str) -> None:
    system = prompt_of(10, seed=1)
    first, second = query_of("a", [*system, 5, 6], 6), query_of("b", [*system, 7, 8, 9], 6)
    batch = batch_with(policy=POLICIES[policy]())
    batch.run([first])
    useful = batch.engine.totals.slots.useful
    batch.run([second])
    assert is_right(batch, first, second)
    assert usage_of(batch, "a").cached_tokens == 0
    assert usage_of(batch, "b").cached_tokens == 8
    assert batch.engine.totals.slots.useful - useful == len(second.prompt) - 8 + 5
    assert batch.engine.lifecycle.prefix_cached_tokens == 8
    assert is_released(batch)


@EVERY_KIND
def test_the_next_turn_of_a_chat_begins_where_the_last_one_ended(divisible_tokens: int) -> None:
    first = query_of("a", prompt_of(9), 6)
    batch = batch_with(store_of(divisible_tokens=divisible_tokens))
    batch.run([first])
    second = query_of("b", [*first.prompt, *batch.tokens("a"), 5, 6], 6)
    batch.run([second])
    assert is_right(batch, second)
    # The last token was drawn and never fed.
    assert usage_of(batch, "b").cached_tokens == (12 if divisible_tokens == ALWAYS else 14)


def test_the_same_prompt_again_has_a_token_left_to_feed() -> None:
    query = query_of("a", prompt_of(2 * BLOCK), 6)
    batch = batch_with()
    batch.run([query])
    batch.run([replace(query, id="b")])
    assert batch.tokens("b") == toy_alone(query)
    assert usage_of(batch, "b").cached_tokens == BLOCK


def test_an_engine_without_a_store_computes_every_prompt() -> None:
    query = query_of("a", prompt_of(12), 6)
    batch = toy_batch(Baton())
    batch.run([query])
    batch.run([replace(query, id="b")])
    assert usage_of(batch, "b").cached_tokens == batch.engine.lifecycle.prefix_cached_tokens == 0


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed() -> None:
    query = query_of("a", prompt_of(12), 6, prompt_logprobs=1)
    batch = batch_with()
    batch.run([query])
    batch.run([replace(query, id="b")])
    assert batch.tokens("b") == toy_alone(query)
    assert usage_of(batch, "b").cached_tokens == 0


def test_chunks_are_planned_from_where_the_prefix_ends() -> None:
    told: list[Event] = []
    first = query_of("a", prompt_of(30), 2)
    batch = batch_with(sinks=[told.append], prefill_chunk=5)
    runs = query_of("runs", [3], 30)
    batch.run([first])
    accept(batch, runs)
    turn(batch, 3)
    told.clear()
    accept(batch, replace(first, id="b"))
    finish(batch)
    assert is_right(batch, runs)
    assert sum(event.prefilled_tokens for event in told if isinstance(event, IterationDone)) == 30 - 28


def test_what_a_broken_forward_computed_is_not_kept() -> None:
    broken: list[bool] = [True]

    def say(tokens: list[int]) -> int:
        return NAN if broken and len(tokens) == 12 else hashed(tokens)

    query = query_of("a", prompt_of(12), 6)
    batch = batch_with(say=say)
    batch.run([query])
    assert batch.reason("a") == "error"
    broken.clear()
    batch.run([replace(query, id="b")])
    assert batch.tokens("b") == toy_alone(query)
    assert usage_of(batch, "b").cached_tokens == 0


@EVERY_KIND
@EVERY_POLICY
def test_a_shaken_batch_that_shares_prefixes_gives_what_each_gives_alone(policy: str, divisible_tokens: int) -> None:
    dice = random.Random(f"{policy} {divisible_tokens}")
    batch = batch_with(store_of(divisible_tokens=divisible_tokens), Shaken(POLICIES[policy](), dice))
    stems = [prompt_of(dice.randint(4, 14), seed=i) for i in range(3)]
    queries = [
        query_of(f"q{i}", [*dice.choice(stems), *prompt_of(dice.randint(1, 6), seed=i)], dice.randint(1, 12), seed=i)
        for i in range(30)
    ]
    groups = [choices(f"g{i}", dice.choice(stems), 3, limit=5) for i in range(4)]
    queries += [query for group in groups for query in group]
    batch.run(queries, dice)
    assert is_right(batch, *queries)
    assert batch.engine.lifecycle.prefix_cached_tokens > 0
    assert is_released(batch)


# Tokens that b, c and the choices of g begin with. bamba's states cannot be cut, nor gemma3's rings, which are shorter
# than a block here.
CUT, WHOLE, NEVER = (32, 32, 42), (0, 52, 42), (0, 0, 0)


@pytest.mark.parametrize(
    ("family", "begins"),
    # The texts are longer than the original context of phi3_longrope.
    [
        ("llama", CUT),
        ("gemma3", WHOLE),
        ("bamba", WHOLE),
        ("mamba2", WHOLE),
        ("phi3_longrope", NEVER),
        # In torch mamba's prompts are fed at once: it uses a prefix only if one token is left.
        ("mamba", (0, 0, 42)),
    ],
)
def test_a_stock_model_gives_with_prefixes_what_it_gives_alone(family: str, begins: tuple[int, int, int]) -> None:
    dice = random.Random(family)

    def some(count: int) -> list[int]:
        return [dice.randrange(3, TINY_VOCABULARY) for _ in range(count)]

    stem = some(40)
    first = query_of("a", [*stem, *some(5)], 8, seed=1)
    answer, _ = alone(family, first)
    queries = {
        "a": first,
        "b": query_of("b", [*stem, *some(9)], 8, seed=2),
        "c": query_of("c", [*first.prompt, *answer, *some(7)], 8, seed=3),
    }
    group = choices("g", [*stem, *some(3)], 3, limit=8, seed=10)
    expected = {name: alone(family, query) for name, query in queries.items()}
    expected |= dict.fromkeys([query.id for query in group], alone(family, group[0]))
    batch = random_batch(family, Baton(), prefix_cache=True, native=family != "mamba")
    for query in queries.values():
        batch.run([query])
    batch.run(group)
    for query in [*queries.values(), *group]:
        tokens, logits = expected[query.id]
        assert batch.tokens(query.id) == tokens
        assert worst_difference(batch, query, logits) <= TOLERANCE
    cached = {name: usage_of(batch, name).cached_tokens for name in ("a", "b", "c", "g1", "g2")}
    assert cached == dict(zip(("a", "b", "c", "g1", "g2"), (0, *begins, begins[2]), strict=True))


def test_a_text_that_outgrows_its_original_context_may_have_begun_with_a_prefix() -> None:
    stem = [3 + i % 50 for i in range(33)]
    first, second = query_of("a", [*stem, 5], 2, seed=1), query_of("b", [*stem, 9, 8], 12, seed=2)
    tokens, logits = alone("phi3_longrope", second)
    batch = random_batch(model_of("phi3_longrope"), Baton(), prefix_cache=True)
    batch.run([first])
    batch.run([second])
    assert usage_of(batch, "b").cached_tokens == 32
    assert batch.tokens("b") == tokens
    assert worst_difference(batch, second, logits) <= TOLERANCE


# Choices of one prompt


def flat(tokens: list[int]) -> Tensor:
    """Logits that leave a choice, and change with every token before."""
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(hashed(tokens)))


@EVERY_KIND
@pytest.mark.parametrize("policy", ["baton", "orca"])
def test_choices_compute_their_prompt_once_and_each_draws_its_own(policy: str, divisible_tokens: int) -> None:
    prompt, limit = prompt_of(11), 6
    group = choices("g", prompt, 4, limit, temperature=1, seed=7)
    batch = batch_with(store_of(divisible_tokens=divisible_tokens), POLICIES[policy](), say=flat)
    batch.run(group)
    assert batch.engine.totals.slots.useful == len(prompt) - 1 + len(group) * limit
    assert batch.engine.totals.slots.recomputed == 0
    assert [usage_of(batch, query.id).cached_tokens for query in group] == [0, 10, 10, 10]
    apart = toy_batch(Baton(), say=flat)
    apart.run([replace(query, sibling_of="") for query in group])
    answers = [batch.tokens(query.id) for query in group]
    assert answers == [apart.tokens(query.id) for query in group]
    assert len({tuple(answer) for answer in answers}) == len(group)
    assert is_released(batch)


def test_choices_after_the_same_prompt_compute_only_its_last_token() -> None:
    prompt = prompt_of(11)
    batch = batch_with(store_of(divisible_tokens=0))
    batch.run(choices("g", prompt, 3))
    useful = batch.engine.totals.slots.useful
    again = choices("h", prompt, 3)
    batch.run(again)
    assert is_right(batch, *again)
    assert batch.engine.totals.slots.useful - useful == 3 * 6
    assert is_released(batch)


def test_choices_of_one_token_wait_for_nobody() -> None:
    group = choices("g", [5], 3)
    batch = batch_with()
    accept(batch, *group)
    assert not batch.engine.queries.prefixes.waiting
    finish(batch)
    assert is_right(batch, *group)


@pytest.mark.parametrize("fused", [True, False])
def test_all_choices_are_fed_the_last_token_of_their_prompt_together(fused: bool) -> None:
    told: list[Event] = []
    group = choices("g", prompt_of(11), 3)
    batch = batch_with(policy=Baton(fused=fused), sinks=[told.append])
    batch.run(group)
    assert [event.prefilled_tokens for event in told if isinstance(event, IterationDone)][:2] == [10, 3]
    assert is_right(batch, *group)
    assert batch.engine.totals.insertions == 3


def test_choices_begin_together_though_chunks_are_small() -> None:
    told: list[Event] = []
    group = choices("g", prompt_of(12), 4)
    runs = query_of("runs", [3], 20)
    batch = batch_with(sinks=[told.append], prefill_chunk=4, max_rows=6)
    accept(batch, runs)
    turn(batch, 2)
    accept(batch, *group)
    finish(batch)
    assert is_right(batch, runs, *group)
    # Eleven tokens of the first, which is fed its last beside the others' last ones.
    fed = [event.prefilled_tokens for event in told if isinstance(event, IterationDone)][2:]
    assert fed[:4] == [4, 4, 3, 4]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("who", [0, 1])
def test_choices_go_on_when_one_of_them_is_cancelled(turns: int, who: int) -> None:
    group = choices("g", prompt_of(12), 3)
    other = query_of("other", prompt_of(3), 20)
    batch = batch_with(max_rows=2, prefill_chunk=5)
    accept(batch, other)
    turn(batch, 2)
    accept(batch, *group)
    turn(batch, turns)
    batch.engine.cancel(f"g{who}")
    finish(batch)
    left = [query for query in group if query.id != f"g{who}"]
    assert batch.reason(f"g{who}") == "cancelled"
    assert is_right(batch, other, *left)
    assert is_released(batch)


def test_choices_go_on_when_the_first_one_fails() -> None:
    group = choices("g", prompt_of(12), 3)
    fails = [True, True]

    def say(tokens: list[int]) -> int:
        if len(tokens) == 11 and fails and fails.pop():
            raise ValueError("no")
        return hashed(tokens)

    batch = batch_with(say=say)
    accept(batch, *group)
    turn(batch)
    fails.clear()
    finish(batch)
    assert batch.reason("g0") == "error"
    assert is_right(batch, *group[1:])
    assert is_released(batch)


def test_choices_that_come_after_the_first_has_gone_wait_for_nobody() -> None:
    first, *others = choices("g", prompt_of(12), 3)
    batch = batch_with()
    batch.run([first])
    batch.run(others)
    assert is_right(batch, first, *others)
    assert is_released(batch)


def test_the_prompt_of_choices_stays_until_all_have_begun() -> None:
    """Two rows, so that choices wait long; meanwhile others fill the store."""
    group = choices("g", prompt_of(12, seed=5), 6, limit=12)
    others = [query_of(f"o{i}", prompt_of(12, seed=20 + i), 3) for i in range(8)]
    batch = batch_with(max_rows=2, swap_bytes=24 * BYTES_PER_TOKEN)
    accept(batch, *group)
    turn(batch, 3)
    accept(batch, *others)
    finish(batch)
    assert is_right(batch, *group, *others)
    assert [usage_of(batch, query.id).cached_tokens for query in group] == [0, *[11] * 5]
    assert is_released(batch)


def test_the_prompt_of_choices_is_held_no_longer_than_until_all_have_begun() -> None:
    batch = batch_with()
    accept(batch, *choices("g", prompt_of(12), 3, limit=20))
    turn(batch)
    prefixes = batch.engine.queries.prefixes
    assert prefixes.bytes_held == 11 * BYTES_PER_TOKEN
    turn(batch)
    assert prefixes.bytes_held == 0
    assert prefixes.bytes_used > 0
    finish(batch)


def test_a_first_choice_that_was_forgotten_goes_on() -> None:
    class Once(Baton):
        def plan(self, view: Any) -> Any:
            plan = super().plan(view)
            gone = tuple(query.id for query in view.running if query.generated == 4 and query.id == "g0")
            return replace(plan, detach=gone, forget=gone)

    group = choices("g", prompt_of(11), 3)
    batch = batch_with(policy=Once(fused=False), swap_bytes=0)
    batch.run(group)
    assert is_right(batch, *group)
    assert usage_of(batch, "g0").preemptions == 1


def test_choices_for_which_there_is_no_room_compute_their_prompt_themselves() -> None:
    group = choices("g", prompt_of(12), 3)
    batch = batch_with(swap_bytes=0)
    accept(batch, *group)
    turn(batch)
    prefixes = batch.engine.queries.prefixes
    assert not prefixes.waiting
    assert [prefixes.guaranteed(query.id) for query in group] == [0, 0, 0]
    finish(batch)
    assert is_right(batch, *group)
    assert batch.engine.totals.slots.useful == 3 * (12 + 5)
    assert batch.engine.lifecycle.prefix_cached_tokens == 0


def client_of(batch: RandomBatch, **settings: Any) -> Client:
    return Client(
        model_name="toy",
        settings=toy_settings(**settings),
        tokenizer=type("NoWords", (), {"vocabulary": VOCABULARY})(),
        loop=None,  # type: ignore[arg-type]
        clock=lambda: 0.0,
    )


@pytest.mark.parametrize(
    ("params", "settings", "shared"),
    [
        ({"n": 3}, {}, True),
        ({"n": 1}, {}, False),
        ({"n": 3, "prompt_logprobs": 0}, {}, False),
        ({"n": 3}, {"prefix_cache": False}, False),
    ],
)
def test_the_client_says_who_may_share_a_prompt(
    params: dict[str, int], settings: dict[str, bool], shared: bool
) -> None:
    queries = client_of(batch_with(), **settings).queries([3, 4, 5], SamplingParams(**params))  # type: ignore[arg-type]
    assert {query.sibling_of for query in queries} == {queries[0].id if shared else ""}
    assert [query.fork_at for query in queries] == [2 if shared else 0] + [0] * (len(queries) - 1)


# Memory


def test_those_set_aside_come_before_stored_prefixes_and_the_bound_holds_for_both() -> None:
    dice = random.Random(4)
    seen: list[tuple[int, int]] = []
    most = 60 * BYTES_PER_TOKEN

    def look(event: Event) -> None:
        if isinstance(event, IterationDone):
            queries = batch.engine.queries
            seen.append((queries.pool.bytes_used, queries.prefixes.bytes_used))

    shaken = Shaken(Baton(), dice)
    batch = batch_with(policy=shaken, sinks=[look], swap_bytes=most)
    queries = [query_of(f"q{i}", prompt_of(10 + i % 5, seed=i % 6), 12, seed=i) for i in range(40)]
    queries += [query for i in range(4) for query in choices(f"g{i}", prompt_of(16, seed=30 + i), 6, limit=4)]
    batch.run(queries, dice)
    assert is_right(batch, *queries)
    assert max(pool + stored for pool, stored in seen) <= most
    assert max(pool for pool, _ in seen) > most // 3
    assert max(stored for _, stored in seen) > most // 2
    assert batch.engine.lifecycle.prefix_cached_tokens > 0


def test_a_query_set_aside_takes_the_room_of_prefixes() -> None:
    class Once(Baton):
        def plan(self, view: Any) -> Any:
            plan = super().plan(view)
            aside = tuple(query.id for query in view.running if query.generated == 4)
            return replace(plan, detach=aside, insert=() if aside else plan.insert)

    first, second = query_of("a", prompt_of(12), 2), query_of("b", prompt_of(12, seed=2), 8)
    batch = batch_with(policy=Once(), swap_bytes=16 * BYTES_PER_TOKEN)
    batch.run([first])
    assert batch.engine.queries.prefixes.bytes_used == 12 * BYTES_PER_TOKEN
    batch.run([second])
    assert is_right(batch, first, second)
    assert usage_of(batch, "b").preemptions == 1
    assert batch.engine.totals.slots.recomputed == 0


class Aside(Baton):
    """Sets "aside" aside when it has generated 4, lets it wait until `until` is over, and "g1" never begin before."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.left = until

    def plan(self, view: Any) -> Any:
        plan = super().plan(view)
        self.left -= 1
        if self.left < 0:
            return plan
        gone = tuple(query.id for query in view.running if query.id == "aside" and query.generated == 4)
        kept = {query.id for query in view.swapped_out}
        return replace(
            plan,
            detach=gone,
            insert=tuple(name for name in plan.insert if name not in kept),
            prefill=tuple(chunk for chunk in plan.prefill if chunk.query_id != "g1"),
        )


@pytest.mark.parametrize("others", ["finish", "hold"])
def test_pool_and_prefixes_share_one_bound_while_a_query_is_aside(others: str) -> None:
    seen: list[int] = []

    def look(event: Event) -> None:
        if isinstance(event, IterationDone):
            seen.append(batch.engine.swap_bytes_used + batch.engine.queries.prefixes.bytes_used)

    most = 18 * BYTES_PER_TOKEN
    aside = query_of("aside", prompt_of(12, seed=1), 8)
    if others == "finish":
        more = [query_of("b", prompt_of(12, seed=2), 8)]
    else:
        more = choices("g", prompt_of(12, seed=2), 2, limit=8)
    batch = batch_with(policy=Aside(until=14), sinks=[look], swap_bytes=most)
    batch.run([aside, *more])
    assert is_right(batch, aside, *more)
    assert max(seen) <= most
    assert usage_of(batch, "aside").preemptions == 1
    # What is held for g1 is not dropped; what is stored without a hold is.
    assert batch.engine.totals.slots.recomputed == (15 if others == "hold" else 0)


def test_what_is_forgotten_begins_with_what_is_stored_of_it() -> None:
    class Once(Baton):
        def plan(self, view: Any) -> Any:
            plan = super().plan(view)
            gone = tuple(query.id for query in view.running if query.generated == 4)
            return replace(plan, detach=gone, forget=gone)

    query = query_of("a", prompt_of(12), 8)
    batch = batch_with(policy=Once())
    batch.run([query])
    assert is_right(batch, query)
    # 12 of the prompt and 3 more had been fed.
    assert batch.engine.totals.slots.recomputed == 3
    assert usage_of(batch, "a").cached_tokens == 12


@given(
    seed=st.integers(0, 2**32), divisible_tokens=st.sampled_from(KINDS), fused=st.booleans(), room=st.integers(0, 80)
)
@settings(max_examples=60, deadline=None)
def test_whoever_comes_and_goes_all_are_right_and_the_bound_holds(
    seed: int, divisible_tokens: int, fused: bool, room: int
) -> None:
    dice = random.Random(seed)
    stems = [prompt_of(dice.randint(1, 14), seed=i) for i in range(2)]
    later: list[Query] = []
    for i in range(8):
        prompt = [*dice.choice(stems), *prompt_of(dice.randint(1, 6), seed=i)]
        later += choices(f"g{i}-", prompt, dice.choice([1, 3, 5]), limit=dice.randint(1, 9), seed=10 * i)
    queries = {query.id: query for query in later}
    most = room * BYTES_PER_TOKEN
    batch = batch_with(store_of(divisible_tokens=divisible_tokens), Shaken(Baton(fused=fused), dice), swap_bytes=most)
    cancelled = set()
    while later or batch.engine.busy:
        while later and dice.random() < 0.4:
            accept(batch, later.pop(0))
        if dice.random() < 0.1 and batch.engine.lifecycle.live:
            cancelled.add(dice.choice(list(batch.engine.lifecycle.live)))
            for query_id in cancelled:
                batch.engine.cancel(query_id)
        turn(batch)
        assert batch.engine.swap_bytes_used + batch.engine.queries.prefixes.bytes_used <= most
    ended = {query_id for query_id in queries if batch.reason(query_id) == "cancelled"}
    assert ended <= cancelled
    assert is_right(batch, *(query for query_id, query in queries.items() if query_id not in ended))
    assert is_released(batch)


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_where_memory_runs_out_stored_prefixes_go_first(step: str) -> None:
    short: list[bool] = []

    def say(tokens: list[int]) -> int:
        if short and len(tokens) >= (12 if step == "prefill" else 14):
            short.clear()
            raise MemoryError
        return hashed(tokens)

    told: list[Event] = []
    batch = batch_with(say=say, sinks=[told.append])
    first, second = query_of("a", prompt_of(12), 2), query_of("b", prompt_of(12, seed=2), 8)
    batch.run([first])
    short.append(True)
    batch.run([second])
    assert not short
    assert is_right(batch, second)
    assert [event.outcome for event in told if isinstance(event, QueryEnded)] == [State.FINISHED] * 2
    assert batch.engine.lifecycle.preemptions == 0
    again = replace(first, id="c")
    batch.run([again])
    assert usage_of(batch, "c").cached_tokens == 0


# Spaces


def in_space(space: str | None, *queries: Query) -> list[Query]:
    return [replace(query, prefix_space=space) for query in queries]


@EVERY_KIND
def test_a_query_begins_with_what_its_own_space_stored(divisible_tokens: int) -> None:
    batch = batch_with(store_of(divisible_tokens=divisible_tokens))
    batch.run(in_space("one", query_of("first", prompt_of(9), 6)))
    again = [*prompt_of(9), *batch.tokens("first"), 5, 6]
    for name, space in (("a", "two"), ("b", ""), ("c", None), ("d", "one")):
        batch.run(in_space(space, query_of(name, again, 4)))
    cached = [usage_of(batch, name).cached_tokens for name in "abcd"]
    assert cached[:3] == [0, 0, 0] and cached[3] >= 8
    assert is_released(batch)


@EVERY_KIND
@pytest.mark.parametrize("policy", ["baton", "orca"])
def test_a_query_without_a_space_shares_with_its_choices_alone(policy: str, divisible_tokens: int) -> None:
    batch = batch_with(store_of(divisible_tokens=divisible_tokens), policy=POLICIES[policy]())
    prompt = prompt_of(13)
    batch.run(in_space(None, *choices("g", prompt, 3)))
    assert [usage_of(batch, f"g{i}").cached_tokens for i in (1, 2)] == [12, 12]
    batch.run(in_space(None, query_of("a", prompt, 4)))
    assert batch.engine.queries.prefixes.bytes_used <= 12 * BYTES_PER_TOKEN, "nobody could find more of it"
    for name, space in (("b", None), ("c", ""), ("d", "g0")):
        batch.run(in_space(space, *([query_of(name, prompt, 4)] if space != "g0" else choices("h", prompt, 2))))
    assert [usage_of(batch, name).cached_tokens for name in "abc"] == [0, 0, 0]
    assert is_released(batch)


def test_batches_of_several_spaces_shaken() -> None:
    dice = random.Random(6)
    batch = batch_with(policy=Shaken(Baton(), dice), swap_bytes=90 * BYTES_PER_TOKEN)
    spaces: list[str | None] = ["", "one", "two", None]
    queries = [
        query
        for i in range(24)
        for query in in_space(spaces[i % 4], *choices(f"g{i}", prompt_of(10 + i % 3, seed=i % 3), 1 + i % 3, limit=6))
    ]
    batch.run(queries, dice)
    assert is_right(batch, *queries) and is_released(batch)


@pytest.mark.parametrize(
    ("sharing", "together"),
    [
        ("all", ["00 10", "01 11", "02 12"]),
        ("key", ["00", "10", "01", "11", "02", "12"]),
        ("salt", ["01 11", "02 12"]),
    ],
)
def test_the_client_says_who_shares_stored_prefixes(sharing: str, together: list[str]) -> None:
    """Of two keys, each without a salt and with two different ones."""
    client = client_of(batch_with(), prefix_sharing=sharing)
    salts = (None, "s1", "s2")
    spaces: dict[str, str | None] = {}
    for key in (0, 1):
        for at, salt in enumerate(salts):
            (query,) = client.queries([3, 4], SamplingParams(), RequestOptions(key=f"key{key}", cache_salt=salt))
            spaces[f"{key}{at}"] = query.prefix_space
    named = {space for space in spaces.values() if space is not None}
    groups = [" ".join(name for name, space in spaces.items() if space == one) for one in named]
    assert sorted(groups) == sorted(together)
    assert not any("key" in space or "s1" in space for space in named), "neither is kept as it is"
    (nobody,) = client.queries([3, 4], SamplingParams())
    assert nobody.prefix_space == (None if sharing == "salt" else "")
