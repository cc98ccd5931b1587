"""Exactness: in any crowd, under any policy and whatever happens to its row, a query gives what it gives alone."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from baton.compose import POLICIES
from baton.model.attention import Decode, Fill
from baton.policy.baton import Baton
from baton.query import Query
from crowd import Crowd, Shaken, alone, crowd_of, some_queries
from families import FAMILIES, model_of

QUERIES = 14
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def oracle() -> dict[str, list[tuple[Query, list[int], Tensor]]]:
    """Per family: the queries with what each gives alone. Made with stock attention, before an engine hooks in."""
    found = {}
    for family in FAMILIES:
        model, dice = model_of(family.name), random.Random(3)
        found[family.name] = [(query, *alone(model, query)) for query in some_queries(QUERIES, dice)]
    return found


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_a_shaken_crowd_gives_what_each_query_gives_alone(family: str, policy: str, oracle: dict) -> None:
    dice = random.Random(f"{family} {policy}")
    shaken = Shaken(POLICIES[policy](), dice)
    crowd = crowd_of(model_of(family), shaken)
    expected = oracle[family]
    crowd.run([query for query, _, _ in expected], dice)
    for query, tokens, logits in expected:
        assert crowd.tokens(query.id) == tokens
        assert crowd.reason(query.id) == "length"
        assert worst_difference(crowd, query, logits) <= TOLERANCE
    assert min(shaken.moves.values()) > 0, f"the batch was not shaken: {shaken.moves}"
    assert crowd.engine.kv_bytes_used == 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_prefill_apart_while_rows_run_gives_the_same_as_fused(family: str, oracle: dict) -> None:
    dice = random.Random(family)
    crowd = crowd_of(model_of(family), Shaken(Baton(fused=False), dice))
    expected = oracle[family]
    crowd.run([query for query, _, _ in expected], dice)
    for query, tokens, logits in expected:
        assert crowd.tokens(query.id) == tokens
        assert worst_difference(crowd, query, logits) <= TOLERANCE


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_crowd_left_in_peace_gives_the_same(policy: str, oracle: dict) -> None:
    crowd = crowd_of(model_of("llama"), POLICIES[policy](), chunk=None)
    expected = oracle["llama"]
    crowd.run([query for query, _, _ in expected])
    for query, tokens, logits in expected:
        assert crowd.tokens(query.id) == tokens
        assert worst_difference(crowd, query, logits) <= TOLERANCE


@pytest.mark.parametrize(
    "family", ["llama", "mistral_window", "gemma3", "gpt2", "qwen3_moe", "gemma2", "gpt_oss", "llama4"]
)
@pytest.mark.parametrize("wrong", ["decode", "fill"])
def test_a_mask_that_is_wrong_by_one_column_is_noticed(
    family: str, wrong: str, oracle: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the tests above would see a mask that admits one column too many."""
    body = Decode if wrong == "decode" else Fill
    right = body._mask  # type: ignore[attr-defined]

    def one_more(self: object, *args: object) -> Tensor | None:
        seen: Tensor | None = right(self, *args)
        if seen is None:
            return None
        shifted = torch.zeros_like(seen)
        shifted[..., 1:] = seen[..., :-1]
        return seen | shifted

    monkeypatch.setattr(body, "_mask", one_more)
    crowd = crowd_of(model_of(family), POLICIES["baton"]())
    expected = oracle[family]
    crowd.run([query for query, _, _ in expected])
    worst = max(worst_difference(crowd, query, logits) for query, _, logits in expected)
    assert worst > 100 * TOLERANCE


def worst_difference(crowd: Crowd, query: Query, logits: Tensor) -> float:
    """Largest difference from the oracle's logits, relative to the largest logit, over all tokens of the query."""
    seed, start = query.seed, len(query.prompt)
    rows = [crowd.recorder.logits[seed, start + i] for i in range(len(logits))]
    return float((torch.stack(rows) - logits).abs().max() / logits.abs().max())
