"""Exactness: in any batch, under any policy and whatever happens to its row, a query gives what it gives alone."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from baton.core.query import Query
from baton.kv import aligned
from baton.model.aligned import Aligned
from baton.model.attention import Decode, Fill
from baton.native import library as native
from baton.native.forward import NativeForward
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from families import CONTEXT, FAMILIES, FURTHER
from random_batch import RandomBatch, Shaken, alone, chosen, random_batch, some_queries

Record = Callable[[str, object], None]
QUERIES = 10
TOLERANCE = 1e-4

# These move rows as the shaking does, so that a few families of different layers are enough for them.
MOVING = {"priority", "slo"}
MOVED = ("llama", "mistral_window", "gemma3", "gpt2", "qwen3_moe", "llama4")
CASES = [
    (family.name, policy)
    for family in (*FAMILIES, *FURTHER)
    for policy in sorted(POLICIES)
    if policy not in MOVING or family.name in MOVED
]
# Families whose steps are one native call each.
NATIVE = (
    *("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "llama3_rope", "qwen2", "qwen2_window"),
    *("gemma", "gemma2", "gemma4", "phi", "phi3", "olmo2", "olmo3", "gpt_bigcode", "gpt_neox", "opt"),
    *("granite", "stablelm", "smollm3", "glm4", "cohere2", "starcoder2", "exaone4"),
    *("qwen3_moe", "qwen2_moe", "mixtral", "phimoe", "gpt_oss", "olmoe", "granitemoe", "glm4_moe", "gemma4_moe"),
    *("deepseek_v2", "deepseek_v3"),
    *("mamba", "mamba2", "jamba", "bamba", "falcon_h1", "nemotron_h", "granitemoehybrid", "lfm2", "lfm2_moe"),
    *("qwen3_next", "qwen3_5", "qwen3_5_moe", "apertus", "llama4", "gemma3n"),
)


class Oracle(dict[str, list[tuple[Query, list[int], Tensor]]]):
    """Per family: the queries with what each gives alone. Made with stock attention, when they are first asked for."""

    def __missing__(self, family: str) -> list[tuple[Query, list[int], Tensor]]:
        queries = some_queries(QUERIES, random.Random(3))
        answers = self[family] = [(query, *alone(family, query)) for query in queries]
        return answers


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle()


def test_the_families_for_policies_that_move_rows_are_there() -> None:
    assert set(MOVED) <= {family.name for family in FAMILIES}


@pytest.mark.parametrize(("family", "policy"), CASES)
def test_a_shaken_batch_gives_what_each_query_gives_alone(
    family: str, policy: str, oracle: dict, record_property: Record
) -> None:
    dice = random.Random(f"{family} {policy}")
    shaken = Shaken(POLICIES[policy](), dice)
    batch = random_batch(family, shaken)
    expected = oracle[family]
    batch.run([query for query, _, _ in expected], dice)
    worst = 0.0
    for query, tokens, logits in expected:
        assert batch.tokens(query.id) == tokens
        assert batch.reason(query.id) == "length"
        worst = max(worst, worst_difference(batch, query, logits))
        assert worst <= TOLERANCE
    # What docs/models.md is made of.
    for name, value in {"family": family, "policy": policy, "worst": worst, "tokens": total(expected)}.items():
        record_property(name, value)
    assert min(shaken.moves.values()) > 0, f"the batch was not shaken: {shaken.moves}"
    assert batch.engine.kv_bytes_used == 0


@pytest.mark.skipif(native.library is None, reason=native.describe())
def test_these_families_are_run_natively() -> None:
    native_families = [family.name for family in FAMILIES if isinstance(chosen(family.name, True)[1], NativeForward)]
    assert sorted(native_families) == sorted(NATIVE)


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma3", "gpt2", "gemma2", "olmo3"])
def test_without_native_kernels_a_shaken_batch_gives_the_same(family: str, oracle: dict) -> None:
    dice = random.Random(family)
    batch = random_batch(family, Shaken(Baton(), dice), native=False)
    expected = oracle[family]
    batch.run([query for query, _, _ in expected], dice)
    for query, tokens, logits in expected:
        assert batch.tokens(query.id) == tokens
        assert worst_difference(batch, query, logits) <= TOLERANCE


# The paper's literal shaping. Left out: layers with states or latents, and attention that is not ours (refused).
ALIGNED = ("llama", "mistral_window", "gemma3", "gpt2", "qwen3_moe", "gpt_oss", "llama4", "gemma2")


@pytest.mark.parametrize(
    ("family", "policy"),
    [*((family, "baton") for family in ALIGNED), ("llama", "run_to_completion"), ("gpt2", "priority")],
)
def test_rows_aligned_at_their_ends_give_the_same(family: str, policy: str, oracle: dict) -> None:
    dice = random.Random(f"{family} {policy}")
    shaken = Shaken(POLICIES[policy](), dice)
    batch = random_batch(family, shaken, aligned=True)
    expected = oracle[family]
    batch.run([query for query, _, _ in expected], dice)
    for query, tokens, logits in expected:
        assert batch.tokens(query.id) == tokens
        assert worst_difference(batch, query, logits) <= TOLERANCE
    assert min(shaken.moves.values()) > 0
    assert batch.engine.kv_bytes_used == 0


@pytest.mark.parametrize("policy", ["baton", "run_to_completion"])
def test_aligned_rows_that_reach_the_right_edge_give_the_same(
    policy: str, oracle: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two of which one's prompt and the other's answer are together longer than either, and just room for either.
    def over(pair: tuple) -> int:
        (a, *_), (b, *_) = pair
        return len(a.prompt) + b.limit_tokens - max(len(query.prompt) + query.limit_tokens for query in (a, b))

    expected = max(itertools.permutations(oracle["llama"], 2), key=over)
    wide = max(len(query.prompt) + query.limit_tokens for query, _, _ in expected)
    monkeypatch.setattr(aligned, "ALIGNED_SPARE", wide - CONTEXT)
    at_the_edge: list[bool] = []
    right = aligned.AlignedRectangle.make_room

    def make_room(self: aligned.AlignedRectangle, counts: dict[int, int]) -> int:
        at_the_edge.append(any(self.lens) and self.end + max(counts.values()) > wide)
        return right(self, counts)

    monkeypatch.setattr(aligned.AlignedRectangle, "make_room", make_room)
    batch = random_batch("llama", POLICIES[policy](), aligned=True)
    batch.run([query for query, _, _ in expected])
    for query, tokens, logits in expected:
        assert batch.tokens(query.id) == tokens
        assert worst_difference(batch, query, logits) <= TOLERANCE
    assert any(at_the_edge)


def total(expected: list[tuple[Query, list[int], Tensor]]) -> int:
    return sum(len(tokens) for _, tokens, _ in expected)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_prefill_apart_while_rows_run_gives_the_same_as_fused(family: str, oracle: dict) -> None:
    dice = random.Random(family)
    batch = random_batch(family, Shaken(Baton(fused=False), dice))
    expected = oracle[family]
    batch.run([query for query, _, _ in expected], dice)
    for query, tokens, logits in expected:
        assert batch.tokens(query.id) == tokens
        assert worst_difference(batch, query, logits) <= TOLERANCE


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_batch_left_in_peace_gives_the_same(policy: str, oracle: dict) -> None:
    batch = random_batch("llama", POLICIES[policy](), chunk=None)
    expected = oracle["llama"]
    batch.run([query for query, _, _ in expected])
    for query, tokens, logits in expected:
        assert batch.tokens(query.id) == tokens
        assert worst_difference(batch, query, logits) <= TOLERANCE


# If all layers have windows, a column too many is admitted only while texts are shorter than the window.
WITH_RINGS = ("mistral_window", "gemma3", "gemma2")
MASKS = {"fill": (Fill, "_mask"), "decode": (Decode, "_mask"), "aligned": (Aligned, "_mask_of_all")}
MASKED = ("llama", "gpt2", "qwen3_moe", "gpt_oss", "llama4", *WITH_RINGS)


@pytest.mark.parametrize(
    ("wrong", "family"),
    [
        *(("fill admits one more", family) for family in MASKED),
        *(("decode admits one more", family) for family in MASKED if family not in WITH_RINGS),
        *(("decode hides the first", family) for family in MASKED),
        *(("aligned admits one more", family) for family in ("llama", "gemma3")),
        *(("aligned hides the first", family) for family in ("llama", "gemma3")),
    ],
)
def test_a_mask_that_is_wrong_by_one_column_is_noticed(
    family: str, wrong: str, oracle: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the tests above would see a mask that is wrong by one column."""
    body, name = MASKS[wrong.partition(" ")[0]]
    right = getattr(body, name)

    def mask(self: object, *args: object) -> Tensor | None:
        seen: Tensor | None = right(self, *args)
        if seen is None:
            return None
        other = seen.clone()
        if wrong.endswith("first"):
            # Of what each token sees, wherever it stands.
            other &= seen.cumsum(-1) > 1
            other |= ~other.any(-1, keepdim=True) & seen
        elif body is Aligned:  # padding is in front
            other[..., :-1] |= seen[..., 1:]
        else:
            other[..., 1:] |= seen[..., :-1]
        return other

    batch = random_batch(family, POLICIES["baton"](), native=False, aligned=body is Aligned)
    # After the self-check, which sees it too.
    monkeypatch.setattr(body, name, mask)
    expected = oracle[family]
    batch.run([query for query, _, _ in expected])
    worst = max(worst_difference(batch, query, logits) for query, _, logits in expected)
    assert worst > 100 * TOLERANCE


def worst_difference(batch: RandomBatch, query: Query, logits: Tensor) -> float:
    """Largest difference from the oracle's logits, relative to the largest logit, over all tokens of the query."""
    seed, start = query.seed, len(query.prompt)
    rows = [batch.recorder.logits[seed, start + i] for i in range(len(logits))]
    return float((torch.stack(rows) - logits).abs().max() / logits.abs().max())
