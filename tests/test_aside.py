"""Rows that leave for the host's memory and come back late: everyone gives what it gives alone, and nothing is lost."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from baton.compose import POLICIES
from baton.kv.parcel import Copies
from baton.query import Query
from crowd import Crowd, Shaken, alone, crowd_of, late_copies, query_of, some_queries
from families import CONTEXT, VOCABULARY, model_of

# Windows, rings with and without layers that keep all, states, latents, experts.
AHEAD = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")
PLAIN = ("llama", "gemma3", "mistral_window", "mamba", "jamba", "qwen3_next", "deepseek_v3", "phi3_longrope")


def kindred(count: int, dice: random.Random) -> list[Query]:
    """Queries that begin alike, some with several choices of an answer."""
    stems = [[dice.randrange(3, VOCABULARY) for _ in range(dice.randint(6, 40))] for _ in range(3)]
    found: list[Query] = []
    for i in range(count):
        more = [dice.randrange(3, VOCABULARY) for _ in range(dice.randint(1, 20))]
        one = query_of(f"q{i}", [*dice.choice(stems), *more][: CONTEXT - 20], dice.randint(1, 16), seed=10 * i)
        found.append(one)
        if i % 4 == 0:
            found[-1:] = [replace(one, id=f"{one.id}.{n}", seed=10 * i + n, choice_of=f"{one.id}.0") for n in range(3)]
    return found


def is_empty(crowd: Crowd, copies: Copies) -> bool:
    """Nothing is in rows, and of the host's memory no more is in use than what is stored of prefixes."""
    stored = crowd.engine.queries.prefixes.bytes_used
    return crowd.engine.kv_bytes_used == crowd.engine.pool_bytes_used == 0 and copies.host.used_bytes == stored


@pytest.mark.parametrize("policy", ["baton", "priority", "orca"])
@pytest.mark.parametrize(("family", "ahead"), [*((f, True) for f in AHEAD), *((f, False) for f in PLAIN)])
def test_a_shaken_crowd_gives_what_each_query_gives_alone(family: str, ahead: bool, policy: str) -> None:
    queries = some_queries(8, random.Random(3)) + [
        replace(query, id=f"k{query.id}") for query in kindred(6, random.Random(4))
    ]
    queries = [replace(q, choice_of=f"k{q.choice_of}" if q.choice_of else "") for q in queries]
    expected = {query.id: alone(model_of(family), query)[0] for query in queries}
    dice = random.Random(f"{family} {policy} {ahead}")
    copies, shaken = late_copies(dice.choice([0, 1, 3])), Shaken(POLICIES[policy](), dice)
    crowd = crowd_of(
        model_of(family), shaken, ahead=ahead, native=False, copies=copies, prefix_cache=True, prefix_block=4
    )
    crowd.run(queries, dice)
    assert {name: crowd.tokens(name) for name in expected} == expected
    assert min(shaken.moves.values()) > 0
    assert is_empty(crowd, copies)
