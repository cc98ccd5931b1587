"""Everything that a GPU does beside the host, at once: each query gives what it gives alone, whatever is late."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from baton.cuda.prefill_stream import PrefillStreamStepper
from baton.policy.table import POLICIES
from families import model_of
from random_batch import Shaken, alone, as_on_a_gpu, random_batch, some_queries

FAMILIES = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")


CASES = [*((family, "baton") for family in FAMILIES), ("llama", "priority"), ("gemma3", "priority")]


@pytest.mark.parametrize(("family", "policy"), [*CASES, ("qwen3_moe", "orca")])
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str, policy: str) -> None:
    dice = random.Random(f"{family} {policy}")
    queries = some_queries(14, random.Random(3))
    # Some begin as others do, and go on.
    queries[8:] = [replace(b, prompt=a.prompt + b.prompt[:20]) for a, b in zip(queries, queries[8:], strict=False)]
    expected = {query.id: alone(family, query)[0] for query in queries}
    shaken, how = Shaken(POLICIES[policy](), dice), as_on_a_gpu(dice)
    batch = random_batch(model_of(family), shaken, prefix_cache=True, prefix_block=4, swap_bytes=2**22, **how)
    assert isinstance(batch.rows.stepper, PrefillStreamStepper)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert min(shaken.moves.values()) > 0
    assert batch.engine.kv_bytes_used == batch.engine.swap_bytes_used == 0
    assert how["varlen"].calls or family == "gpt2"
    assert how["side"](None).flights or policy == "orca"
