"""Prefixes and choices in the engine: what is computed once, and that nobody's tokens change for it."""

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
from crowd import Crowd, Shaken, alone, crowd_of, query_of
from families import VOCABULARY as TINY_VOCABULARY
from families import model_of
from toy import BYTES_PER_TOKEN, NAN, VOCABULARY, hashed, prompt_of, toy_alone, toy_crowd, toy_settings

BLOCK = 4
TOLERANCE = 1e-4
ALWAYS = sys.maxsize
KINDS = (ALWAYS, 8, 0)
"""How long a row may be to be cut: of any length, while its rings of 8 columns are not full, never."""
EVERY_KIND = pytest.mark.parametrize("divisible_tokens", KINDS)
EVERY_POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))


def store_of(*, divisible_tokens: int = ALWAYS) -> PrefixStore:
    return PrefixStore(0, divisible_tokens=divisible_tokens, block=BLOCK)


def crowd_with(store: PrefixStore | None = None, policy: Any = None, **more: Any) -> Crowd:
    return toy_crowd(policy or Baton(), prefix_store=store or store_of(), **more)


def usage_of(crowd: Crowd, name: str) -> Any:
    return crowd.updates[name][-1].usage


def choices(name: str, prompt: Sequence[int], count: int, limit: int = 6, **params: Any) -> list[Query]:
    """Queries as the client makes them of one prompt."""
    one = query_of(name, prompt, limit, **params)
    return [replace(one, id=f"{name}{i}", seed=one.seed + i, sibling_of=f"{name}0") for i in range(count)]


def accept(crowd: Crowd, *queries: Query) -> None:
    for query in queries:
        crowd.engine.accept(query, crowd.hear)


def turn(crowd: Crowd, times: int = 1) -> None:
    for _ in range(times):
        crowd.engine.iterate()
        crowd.engine.hand_over()


def finish(crowd: Crowd) -> None:
    crowd.run([])


def is_right(crowd: Crowd, *queries: Query) -> bool:
    return all(crowd.tokens(query.id) == toy_alone(query) for query in queries)


def is_released(crowd: Crowd) -> bool:
    """Whether nothing is left in rows and pool, nobody waits for anybody, and nothing is held in the store."""
    prefixes = crowd.engine.queries.prefixes
    waits = prefixes.waiting or prefixes._taking or prefixes._sure or prefixes._awaiting
    return not (waits or prefixes.bytes_held or crowd.engine.kv_bytes_used or crowd.engine.pool_bytes_used)


def worst_difference(crowd: Crowd, query: Query, logits: Tensor) -> float:
    """Largest difference from the oracle's logits, relative to the largest logit, over all tokens of the query."""
    mine = torch.stack([crowd.recorder.logits[query.seed, len(query.prompt) + i] for i in range(len(logits))])
    return float((mine - logits).abs().max() / logits.abs().max())


# Prefixes


@EVERY_POLICY
def test_a_prompt_that_begins_as_another_did_is_computed_from_there(policy: str) -> None:
    system = prompt_of(10, seed=1)
    first, second = query_of("a", [*system, 5, 6], 6), query_of("b", [*system, 7, 8, 9], 6)
    crowd = crowd_with(policy=POLICIES[policy]())
    crowd.run([first])
    useful = crowd.engine.totals.slots.useful
    crowd.run([second])
    assert is_right(crowd, first, second)
    assert usage_of(crowd, "a").cached_tokens == 0
    assert usage_of(crowd, "b").cached_tokens == 8
    assert crowd.engine.totals.slots.useful - useful == len(second.prompt) - 8 + 5
    assert crowd.engine.lifecycle.prefix_cached_tokens == 8
    assert is_released(crowd)


@EVERY_KIND
def test_the_next_turn_of_a_chat_begins_where_the_last_one_ended(divisible_tokens: int) -> None:
    first = query_of("a", prompt_of(9), 6)
    crowd = crowd_with(store_of(divisible_tokens=divisible_tokens))
    crowd.run([first])
    second = query_of("b", [*first.prompt, *crowd.tokens("a"), 5, 6], 6)
    crowd.run([second])
    assert is_right(crowd, second)
    # The last token was drawn and never fed.
    assert usage_of(crowd, "b").cached_tokens == (12 if divisible_tokens == ALWAYS else 14)


def test_the_same_prompt_again_has_a_token_left_to_feed() -> None:
    query = query_of("a", prompt_of(2 * BLOCK), 6)
    crowd = crowd_with()
    crowd.run([query])
    crowd.run([replace(query, id="b")])
    assert crowd.tokens("b") == toy_alone(query)
    assert usage_of(crowd, "b").cached_tokens == BLOCK


def test_an_engine_without_a_store_computes_every_prompt() -> None:
    query = query_of("a", prompt_of(12), 6)
    crowd = toy_crowd(Baton())
    crowd.run([query])
    crowd.run([replace(query, id="b")])
    assert usage_of(crowd, "b").cached_tokens == crowd.engine.lifecycle.prefix_cached_tokens == 0


def test_a_prompt_whose_log_probabilities_are_wanted_is_computed() -> None:
    query = query_of("a", prompt_of(12), 6, prompt_logprobs=1)
    crowd = crowd_with()
    crowd.run([query])
    crowd.run([replace(query, id="b")])
    assert crowd.tokens("b") == toy_alone(query)
    assert usage_of(crowd, "b").cached_tokens == 0


def test_chunks_are_planned_from_where_the_prefix_ends() -> None:
    told: list[Event] = []
    first = query_of("a", prompt_of(30), 2)
    crowd = crowd_with(sinks=[told.append], prefill_chunk=5)
    runs = query_of("runs", [3], 30)
    crowd.run([first])
    accept(crowd, runs)
    turn(crowd, 3)
    told.clear()
    accept(crowd, replace(first, id="b"))
    finish(crowd)
    assert is_right(crowd, runs)
    assert sum(event.prefilled_tokens for event in told if isinstance(event, IterationDone)) == 30 - 28


def test_what_a_broken_forward_computed_is_not_kept() -> None:
    broken: list[bool] = [True]

    def say(tokens: list[int]) -> int:
        return NAN if broken and len(tokens) == 12 else hashed(tokens)

    query = query_of("a", prompt_of(12), 6)
    crowd = crowd_with(say=say)
    crowd.run([query])
    assert crowd.reason("a") == "error"
    broken.clear()
    crowd.run([replace(query, id="b")])
    assert crowd.tokens("b") == toy_alone(query)
    assert usage_of(crowd, "b").cached_tokens == 0


@EVERY_KIND
@EVERY_POLICY
def test_a_shaken_crowd_that_shares_prefixes_gives_what_each_gives_alone(policy: str, divisible_tokens: int) -> None:
    dice = random.Random(f"{policy} {divisible_tokens}")
    crowd = crowd_with(store_of(divisible_tokens=divisible_tokens), Shaken(POLICIES[policy](), dice))
    stems = [prompt_of(dice.randint(4, 14), seed=i) for i in range(3)]
    queries = [
        query_of(f"q{i}", [*dice.choice(stems), *prompt_of(dice.randint(1, 6), seed=i)], dice.randint(1, 12), seed=i)
        for i in range(30)
    ]
    groups = [choices(f"g{i}", dice.choice(stems), 3, limit=5) for i in range(4)]
    queries += [query for group in groups for query in group]
    crowd.run(queries, dice)
    assert is_right(crowd, *queries)
    assert crowd.engine.lifecycle.prefix_cached_tokens > 0
    assert is_released(crowd)


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
        # Mamba's prompts are fed at once: it begins only where one token is left.
        ("mamba", (0, 0, 42)),
    ],
)
def test_a_stock_model_gives_with_prefixes_what_it_gives_alone(family: str, begins: tuple[int, int, int]) -> None:
    dice = random.Random(family)

    def some(count: int) -> list[int]:
        return [dice.randrange(3, TINY_VOCABULARY) for _ in range(count)]

    stem = some(40)
    first = query_of("a", [*stem, *some(5)], 8, seed=1)
    answer, _ = alone(model_of(family), first)
    queries = {
        "a": first,
        "b": query_of("b", [*stem, *some(9)], 8, seed=2),
        "c": query_of("c", [*first.prompt, *answer, *some(7)], 8, seed=3),
    }
    group = choices("g", [*stem, *some(3)], 3, limit=8, seed=10)
    expected = {name: alone(model_of(family), query) for name, query in queries.items()}
    expected |= dict.fromkeys([query.id for query in group], alone(model_of(family), group[0]))
    crowd = crowd_of(model_of(family), Baton(), prefix_cache=True)
    for query in queries.values():
        crowd.run([query])
    crowd.run(group)
    for query in [*queries.values(), *group]:
        tokens, logits = expected[query.id]
        assert crowd.tokens(query.id) == tokens
        assert worst_difference(crowd, query, logits) <= TOLERANCE
    found = {name: usage_of(crowd, name).cached_tokens for name in ("a", "b", "c", "g1", "g2")}
    assert found == dict(zip(("a", "b", "c", "g1", "g2"), (0, *begins, begins[2]), strict=True))


def test_a_text_that_outgrows_its_original_context_may_have_begun_with_a_prefix() -> None:
    stem = [3 + i % 50 for i in range(33)]
    first, second = query_of("a", [*stem, 5], 2, seed=1), query_of("b", [*stem, 9, 8], 12, seed=2)
    tokens, logits = alone(model_of("phi3_longrope"), second)
    crowd = crowd_of(model_of("phi3_longrope"), Baton(), prefix_cache=True)
    crowd.run([first])
    crowd.run([second])
    assert usage_of(crowd, "b").cached_tokens == 32
    assert crowd.tokens("b") == tokens
    assert worst_difference(crowd, second, logits) <= TOLERANCE


# Choices of one prompt


def flat(tokens: list[int]) -> Tensor:
    """Logits that leave a choice, and change with every token before."""
    return torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(hashed(tokens)))


@EVERY_KIND
@pytest.mark.parametrize("policy", ["baton", "orca"])
def test_choices_compute_their_prompt_once_and_each_draws_its_own(policy: str, divisible_tokens: int) -> None:
    prompt, limit = prompt_of(11), 6
    group = choices("g", prompt, 4, limit, temperature=1, seed=7)
    crowd = crowd_with(store_of(divisible_tokens=divisible_tokens), POLICIES[policy](), say=flat)
    crowd.run(group)
    assert crowd.engine.totals.slots.useful == len(prompt) - 1 + len(group) * limit
    assert crowd.engine.totals.slots.recomputed == 0
    assert [usage_of(crowd, query.id).cached_tokens for query in group] == [0, 10, 10, 10]
    apart = toy_crowd(Baton(), say=flat)
    apart.run([replace(query, sibling_of="") for query in group])
    answers = [crowd.tokens(query.id) for query in group]
    assert answers == [apart.tokens(query.id) for query in group]
    assert len({tuple(answer) for answer in answers}) == len(group)
    assert is_released(crowd)


def test_choices_after_the_same_prompt_compute_only_its_last_token() -> None:
    prompt = prompt_of(11)
    crowd = crowd_with(store_of(divisible_tokens=0))
    crowd.run(choices("g", prompt, 3))
    useful = crowd.engine.totals.slots.useful
    again = choices("h", prompt, 3)
    crowd.run(again)
    assert is_right(crowd, *again)
    assert crowd.engine.totals.slots.useful - useful == 3 * 6
    assert is_released(crowd)


def test_choices_of_one_token_wait_for_nobody() -> None:
    group = choices("g", [5], 3)
    crowd = crowd_with()
    accept(crowd, *group)
    assert not crowd.engine.queries.prefixes.waiting
    finish(crowd)
    assert is_right(crowd, *group)


@pytest.mark.parametrize("fused", [True, False])
def test_all_choices_are_fed_the_last_token_of_their_prompt_together(fused: bool) -> None:
    told: list[Event] = []
    group = choices("g", prompt_of(11), 3)
    crowd = crowd_with(policy=Baton(fused=fused), sinks=[told.append])
    crowd.run(group)
    assert [event.prefilled_tokens for event in told if isinstance(event, IterationDone)][:2] == [10, 3]
    assert is_right(crowd, *group)
    assert crowd.engine.totals.insertions == 3


def test_choices_begin_together_though_chunks_are_small() -> None:
    told: list[Event] = []
    group = choices("g", prompt_of(12), 4)
    runs = query_of("runs", [3], 20)
    crowd = crowd_with(sinks=[told.append], prefill_chunk=4, max_rows=6)
    accept(crowd, runs)
    turn(crowd, 2)
    accept(crowd, *group)
    finish(crowd)
    assert is_right(crowd, runs, *group)
    # Eleven tokens of the first, which is fed its last beside the others' last ones.
    fed = [event.prefilled_tokens for event in told if isinstance(event, IterationDone)][2:]
    assert fed[:4] == [4, 4, 3, 4]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("who", [0, 1])
def test_choices_go_on_when_one_of_them_is_cancelled(turns: int, who: int) -> None:
    group = choices("g", prompt_of(12), 3)
    other = query_of("other", prompt_of(3), 20)
    crowd = crowd_with(max_rows=2, prefill_chunk=5)
    accept(crowd, other)
    turn(crowd, 2)
    accept(crowd, *group)
    turn(crowd, turns)
    crowd.engine.cancel(f"g{who}")
    finish(crowd)
    left = [query for query in group if query.id != f"g{who}"]
    assert crowd.reason(f"g{who}") == "cancelled"
    assert is_right(crowd, other, *left)
    assert is_released(crowd)


def test_choices_go_on_when_the_first_one_fails() -> None:
    group = choices("g", prompt_of(12), 3)
    fails = [True, True]

    def say(tokens: list[int]) -> int:
        if len(tokens) == 11 and fails and fails.pop():
            raise ValueError("no")
        return hashed(tokens)

    crowd = crowd_with(say=say)
    accept(crowd, *group)
    turn(crowd)
    fails.clear()
    finish(crowd)
    assert crowd.reason("g0") == "error"
    assert is_right(crowd, *group[1:])
    assert is_released(crowd)


def test_choices_that_come_after_the_first_has_gone_wait_for_nobody() -> None:
    first, *others = choices("g", prompt_of(12), 3)
    crowd = crowd_with()
    crowd.run([first])
    crowd.run(others)
    assert is_right(crowd, first, *others)
    assert is_released(crowd)


def test_the_prompt_of_choices_stays_until_all_have_begun() -> None:
    """Two rows, so that choices wait long; meanwhile others fill the store."""
    group = choices("g", prompt_of(12, seed=5), 6, limit=12)
    others = [query_of(f"o{i}", prompt_of(12, seed=20 + i), 3) for i in range(8)]
    crowd = crowd_with(max_rows=2, pool_bytes=24 * BYTES_PER_TOKEN)
    accept(crowd, *group)
    turn(crowd, 3)
    accept(crowd, *others)
    finish(crowd)
    assert is_right(crowd, *group, *others)
    assert [usage_of(crowd, query.id).cached_tokens for query in group] == [0, *[11] * 5]
    assert is_released(crowd)


def test_the_prompt_of_choices_is_held_no_longer_than_until_all_have_begun() -> None:
    crowd = crowd_with()
    accept(crowd, *choices("g", prompt_of(12), 3, limit=20))
    turn(crowd)
    prefixes = crowd.engine.queries.prefixes
    assert prefixes.bytes_held == 11 * BYTES_PER_TOKEN
    turn(crowd)
    assert prefixes.bytes_held == 0
    assert prefixes.bytes_used > 0
    finish(crowd)


def test_a_first_choice_that_was_forgotten_goes_on() -> None:
    class Once(Baton):
        def plan(self, view: Any) -> Any:
            plan = super().plan(view)
            gone = tuple(query.id for query in view.running if query.generated == 4 and query.id == "g0")
            return replace(plan, detach=gone, forget=gone)

    group = choices("g", prompt_of(11), 3)
    crowd = crowd_with(policy=Once(fused=False), pool_bytes=0)
    crowd.run(group)
    assert is_right(crowd, *group)
    assert usage_of(crowd, "g0").preemptions == 1


def test_choices_for_which_there_is_no_room_compute_their_prompt_themselves() -> None:
    group = choices("g", prompt_of(12), 3)
    crowd = crowd_with(pool_bytes=0)
    accept(crowd, *group)
    turn(crowd)
    prefixes = crowd.engine.queries.prefixes
    assert not prefixes.waiting
    assert [prefixes.sure(query.id) for query in group] == [0, 0, 0]
    finish(crowd)
    assert is_right(crowd, *group)
    assert crowd.engine.totals.slots.useful == 3 * (12 + 5)
    assert crowd.engine.lifecycle.prefix_cached_tokens == 0


def client_of(crowd: Crowd, **settings: Any) -> Client:
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
    queries = client_of(crowd_with(), **settings).queries([3, 4, 5], SamplingParams(**params))  # type: ignore[arg-type]
    assert {query.sibling_of for query in queries} == {queries[0].id if shared else ""}
    assert [query.fork_at for query in queries] == [2 if shared else 0] + [0] * (len(queries) - 1)


# Memory


def test_those_set_aside_come_before_stored_prefixes_and_the_bound_holds_for_both() -> None:
    dice = random.Random(4)
    seen: list[tuple[int, int]] = []
    most = 60 * BYTES_PER_TOKEN

    def look(event: Event) -> None:
        if isinstance(event, IterationDone):
            queries = crowd.engine.queries
            seen.append((queries.pool.bytes_used, queries.prefixes.bytes_used))

    shaken = Shaken(Baton(), dice)
    crowd = crowd_with(policy=shaken, sinks=[look], pool_bytes=most)
    queries = [query_of(f"q{i}", prompt_of(10 + i % 5, seed=i % 6), 12, seed=i) for i in range(40)]
    queries += [query for i in range(4) for query in choices(f"g{i}", prompt_of(16, seed=30 + i), 6, limit=4)]
    crowd.run(queries, dice)
    assert is_right(crowd, *queries)
    assert max(pool + stored for pool, stored in seen) <= most
    assert max(pool for pool, _ in seen) > most // 3
    assert max(stored for _, stored in seen) > most // 2
    assert crowd.engine.lifecycle.prefix_cached_tokens > 0


def test_a_query_set_aside_takes_the_room_of_prefixes() -> None:
    class Once(Baton):
        def plan(self, view: Any) -> Any:
            plan = super().plan(view)
            aside = tuple(query.id for query in view.running if query.generated == 4)
            return replace(plan, detach=aside, insert=() if aside else plan.insert)

    first, second = query_of("a", prompt_of(12), 2), query_of("b", prompt_of(12, seed=2), 8)
    crowd = crowd_with(policy=Once(), pool_bytes=16 * BYTES_PER_TOKEN)
    crowd.run([first])
    assert crowd.engine.queries.prefixes.bytes_used == 12 * BYTES_PER_TOKEN
    crowd.run([second])
    assert is_right(crowd, first, second)
    assert usage_of(crowd, "b").preemptions == 1
    assert crowd.engine.totals.slots.recomputed == 0


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
        kept = {query.id for query in view.aside}
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
            seen.append(crowd.engine.pool_bytes_used + crowd.engine.queries.prefixes.bytes_used)

    most = 18 * BYTES_PER_TOKEN
    aside = query_of("aside", prompt_of(12, seed=1), 8)
    if others == "finish":
        more = [query_of("b", prompt_of(12, seed=2), 8)]
    else:
        more = choices("g", prompt_of(12, seed=2), 2, limit=8)
    crowd = crowd_with(policy=Aside(until=14), sinks=[look], pool_bytes=most)
    crowd.run([aside, *more])
    assert is_right(crowd, aside, *more)
    assert max(seen) <= most
    assert usage_of(crowd, "aside").preemptions == 1
    # What is held for g1 does not give way; what was stored for nobody in particular does.
    assert crowd.engine.totals.slots.recomputed == (15 if others == "hold" else 0)


def test_what_is_forgotten_begins_with_what_is_stored_of_it() -> None:
    class Once(Baton):
        def plan(self, view: Any) -> Any:
            plan = super().plan(view)
            gone = tuple(query.id for query in view.running if query.generated == 4)
            return replace(plan, detach=gone, forget=gone)

    query = query_of("a", prompt_of(12), 8)
    crowd = crowd_with(policy=Once())
    crowd.run([query])
    assert is_right(crowd, query)
    # 12 of the prompt and 3 more had been fed.
    assert crowd.engine.totals.slots.recomputed == 3
    assert usage_of(crowd, "a").cached_tokens == 12


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
    crowd = crowd_with(store_of(divisible_tokens=divisible_tokens), Shaken(Baton(fused=fused), dice), pool_bytes=most)
    cancelled = set()
    while later or crowd.engine.busy:
        while later and dice.random() < 0.4:
            accept(crowd, later.pop(0))
        if dice.random() < 0.1 and crowd.engine.lifecycle.live:
            cancelled.add(dice.choice(list(crowd.engine.lifecycle.live)))
            for query_id in cancelled:
                crowd.engine.cancel(query_id)
        turn(crowd)
        assert crowd.engine.pool_bytes_used + crowd.engine.queries.prefixes.bytes_used <= most
    ended = {query_id for query_id in queries if crowd.reason(query_id) == "cancelled"}
    assert ended <= cancelled
    assert is_right(crowd, *(query for query_id, query in queries.items() if query_id not in ended))
    assert is_released(crowd)


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_where_memory_runs_out_stored_prefixes_go_first(step: str) -> None:
    short: list[bool] = []

    def say(tokens: list[int]) -> int:
        if short and len(tokens) >= (12 if step == "prefill" else 14):
            short.clear()
            raise MemoryError
        return hashed(tokens)

    told: list[Event] = []
    crowd = crowd_with(say=say, sinks=[told.append])
    first, second = query_of("a", prompt_of(12), 2), query_of("b", prompt_of(12, seed=2), 8)
    crowd.run([first])
    short.append(True)
    crowd.run([second])
    assert not short
    assert is_right(crowd, second)
    assert [event.outcome for event in told if isinstance(event, QueryEnded)] == [State.FINISHED] * 2
    assert crowd.engine.lifecycle.preemptions == 0
    again = replace(first, id="c")
    crowd.run([again])
    assert usage_of(crowd, "c").cached_tokens == 0


# Spaces


def in_space(space: str | None, *queries: Query) -> list[Query]:
    return [replace(query, prefix_space=space) for query in queries]


@EVERY_KIND
def test_a_query_begins_with_what_its_own_space_stored(divisible_tokens: int) -> None:
    crowd = crowd_with(store_of(divisible_tokens=divisible_tokens))
    crowd.run(in_space("one", query_of("first", prompt_of(9), 6)))
    again = [*prompt_of(9), *crowd.tokens("first"), 5, 6]
    for name, space in (("a", "two"), ("b", ""), ("c", None), ("d", "one")):
        crowd.run(in_space(space, query_of(name, again, 4)))
    found = [usage_of(crowd, name).cached_tokens for name in "abcd"]
    assert found[:3] == [0, 0, 0] and found[3] >= 8
    assert is_released(crowd)


@EVERY_KIND
@pytest.mark.parametrize("policy", ["baton", "orca"])
def test_a_query_without_a_space_shares_with_its_choices_alone(policy: str, divisible_tokens: int) -> None:
    crowd = crowd_with(store_of(divisible_tokens=divisible_tokens), policy=POLICIES[policy]())
    prompt = prompt_of(13)
    crowd.run(in_space(None, *choices("g", prompt, 3)))
    assert [usage_of(crowd, f"g{i}").cached_tokens for i in (1, 2)] == [12, 12]
    crowd.run(in_space(None, query_of("a", prompt, 4)))
    assert crowd.engine.queries.prefixes.bytes_used <= 12 * BYTES_PER_TOKEN, "nobody could find more of it"
    for name, space in (("b", None), ("c", ""), ("d", "g0")):
        crowd.run(in_space(space, *([query_of(name, prompt, 4)] if space != "g0" else choices("h", prompt, 2))))
    assert [usage_of(crowd, name).cached_tokens for name in "abc"] == [0, 0, 0]
    assert is_released(crowd)


def test_crowds_of_several_spaces_shaken() -> None:
    dice = random.Random(6)
    crowd = crowd_with(policy=Shaken(Baton(), dice), pool_bytes=90 * BYTES_PER_TOKEN)
    spaces: list[str | None] = ["", "one", "two", None]
    queries = [
        query
        for i in range(24)
        for query in in_space(spaces[i % 4], *choices(f"g{i}", prompt_of(10 + i % 3, seed=i % 3), 1 + i % 3, limit=6))
    ]
    crowd.run(queries, dice)
    assert is_right(crowd, *queries) and is_released(crowd)


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
    client = client_of(crowd_with(), prefix_sharing=sharing)
    salts = (None, "s1", "s2")
    spaces: dict[str, str | None] = {}
    for key in (0, 1):
        for at, salt in enumerate(salts):
            (query,) = client.queries([3, 4], SamplingParams(), RequestOptions(key=f"key{key}", cache_salt=salt))
            spaces[f"{key}{at}"] = query.prefix_space
    named = {space for space in spaces.values() if space is not None}
    found = [" ".join(name for name, space in spaces.items() if space == one) for one in named]
    assert sorted(found) == sorted(together)
    assert not any("key" in space or "s1" in space for space in named), "neither is kept as it is"
    (nobody,) = client.queries([3, 4], SamplingParams())
    assert nobody.prefix_space == (None if sharing == "salt" else "")
