"""`--deterministic`: a query's logits are equal to the bit, alone and in any shaken batch, under any policy."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from baton import LLM, SamplingParams
from baton.core.query import Query
from baton.native import library
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from baton.policy.run_to_completion import RunToCompletion
from families import model_of
from random_batch import RandomBatch, Shaken, random_batch, some_queries

# One of each way of running a model, and those whose rows meet outside of attention (experts).
FAMILIES = ("llama", "gemma3", "gpt2", "qwen3_moe", "gpt_oss", "phi3_longrope", "deepseek_v3", "mamba2", "bloom")


def batch(
    family: str,
    policy: Policy,
    queries: Sequence[Query],
    dice: random.Random | None,
    fixed: bool,
    *,
    native: bool = True,
) -> RandomBatch:
    ran = random_batch(model_of(family), policy, deterministic=fixed, native=native)
    ran.run(queries, dice)
    return ran


def differing(one: RandomBatch, other: RandomBatch, queries: Sequence[Query]) -> int:
    """How many of the queries' tokens were drawn from logits that are not the same to the bit."""
    drawn = [(q.seed, len(q.prompt) + i) for q in queries for i in range(q.limit_tokens)]
    return sum(not torch.equal(one.recorder.logits[at], other.recorder.logits[at]) for at in drawn)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_any_company_a_query_gives_the_same_bits_as_alone(family: str) -> None:
    queries, dice = some_queries(7, random.Random(3), longest_prompt=150), random.Random(family)
    alone = batch(family, Orca(), [], None, True)
    for query in queries:
        alone.run([query])
    for policy in (Shaken(Baton(), dice), Shaken(RunToCompletion(), dice)):
        assert differing(batch(family, policy, queries, dice, True), alone, queries) == 0


def test_rows_that_are_computed_for_nobody_are_counted_as_idle() -> None:
    (query,) = some_queries(1, random.Random(3))
    ran = batch("llama", Baton(), [query], None, True, native=False)
    slots = ran.engine.totals.slots
    # Each decode step has four rows; the prompt's last token is fed by one, too.
    assert slots.empty_row == 3 * query.limit_tokens
    assert slots.useful == len(query.prompt) + query.limit_tokens - 1


def test_without_it_bits_differ() -> None:
    """The control: the comparison sees a difference if shapes are not fixed; native steps need no such thing."""
    queries, dice = some_queries(7, random.Random(3), longest_prompt=150), random.Random(1)
    for native in (True, False):
        alone = batch("llama", Orca(), [], None, False, native=native)
        for query in queries:
            alone.run([query])
        shaken = batch("llama", Shaken(Baton(), dice), queries, dice, False, native=native)
        assert (differing(shaken, alone, queries) > 0) is (not native or library.library is None)


def test_the_setting_gives_the_same_bits_with_different_neighbours() -> None:
    texts = []
    for others in ([], ["Hello", "How are you?", "What is 12 + 30?"]):
        with LLM(deterministic=True, max_batch_size=4, threads="1", device="cpu") as llm:
            assert not llm.client.settings.prefix_cache
            params = SamplingParams(temperature=0.8, seed=5, max_tokens=12, logprobs=2)
            out = llm.generate(["The sky is", *others], params)[0].outputs[0]
            texts.append((out.token_ids, out.cumulative_logprob))
    assert texts[0] == texts[1]
