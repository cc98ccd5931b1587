"""Rotary embeddings that depend on a text's length: each row as alone, on either side of a limit and across it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.core.query import Query
from baton.loader.choose import choose
from baton.model.rotary import as_made, long_rope_limit, recompute_limit
from baton.policy.baton import Baton
from baton.policy.port import Plan
from families import _LOCAL_MOE, _LONGROPE, _MAMBA2, _MLA, VOCABULARY, WINDOW, Family, model_from, model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch, some_queries
from turns import Scripted

LIMIT = 40
TOLERANCE = 1e-4
LONG = _LONGROPE["rope_parameters"]
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
GEMMA = {"num_hidden_layers": 6, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}

KINDS = {
    family.name: family
    for family in (
        Family("qwen2", "qwen2", _LONGROPE),
        # It scales by another factor beyond the limit, too.
        Family(
            "phimoe",
            "phimoe",
            {
                **_LOCAL_MOE,
                "original_max_position_embeddings": LIMIT,
                "rope_parameters": {**LONG, "short_mscale": 1.2, "long_mscale": 1.5},
            },
            since="5.23.0",
        ),
        Family("part_of_a_head", "phi3", {**_LONGROPE, "partial_rotary_factor": 0.5}, since="5.23.0"),
        # One complex number in place of cosine and sine; what it keeps are latents.
        Family("latents", "deepseek_v2", {**_MLA, "max_position_embeddings": LIMIT, "rope_parameters": DYNAMIC}),
        # States beside keys.
        Family(
            "states",
            "falcon_h1",
            {
                "head_dim": 16,
                "mamba_d_ssm": 128,
                **_MAMBA2,
                "max_position_embeddings": LIMIT,
                "rope_parameters": DYNAMIC,
            },
        ),
        # Beyond the config's own number, as far as their factor goes.
        Family(
            "yarn", "llama", {"max_position_embeddings": LIMIT, "rope_parameters": {**DYNAMIC, "rope_type": "yarn"}}
        ),
        Family(
            "linear", "qwen2", {"max_position_embeddings": LIMIT, "rope_parameters": {**DYNAMIC, "rope_type": "linear"}}
        ),
        # By layer type, each with a limit of its own.
        Family(
            "two_limits",
            "gemma3_text",
            {
                **GEMMA,
                "rope_parameters": {
                    "full_attention": LONG,
                    "sliding_attention": {**LONG, "original_max_position_embeddings": 24},
                },
            },
            since="5.23.0",
        ),
        Family(
            "growing_and_switching",
            "gemma3_text",
            {
                **GEMMA,
                "max_position_embeddings": 30,
                "rope_parameters": {"full_attention": DYNAMIC, "sliding_attention": LONG},
            },
            since="5.23.0",
        ),
    )
}
KINDS["part_of_a_head"].more["rope_parameters"] = {
    **LONG,
    "short_factor": LONG["short_factor"][:4],
    "long_factor": LONG["long_factor"][:4],
}


@cache
def expected(name: str) -> list[tuple[Query, list[int], Tensor]]:
    model, dice = model_from(KINDS[name]), random.Random(5)
    return [(query, *alone(model, query)) for query in some_queries(10, dice)]


def check(batch: RandomBatch, query: Query, tokens: list[int], logits: Tensor) -> None:
    assert batch.tokens(query.id) == tokens
    for at, theirs in enumerate(logits):
        ours = batch.recorder.logits[query.seed, len(query.prompt) + at]
        assert float((ours - theirs).abs().max() / theirs.abs().max()) <= TOLERANCE


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("prefix_cache", [False, True])
def test_a_shaken_batch_gives_what_each_query_gives_alone(name: str, prefix_cache: bool) -> None:
    dice = random.Random(name)
    batch = random_batch(model_from(KINDS[name]), Shaken(Baton(), dice), prefix_cache=prefix_cache, prefix_block=4)
    queries = expected(name)
    batch.run([query for query, _, _ in queries], dice)
    for query, tokens, logits in queries:
        check(batch, query, tokens, logits)


@pytest.mark.parametrize("name", ["phi3_longrope", "llama_longrope", "gemma3_longrope", "llama_dynamic"])
@pytest.mark.parametrize("length", [LIMIT - 3, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 2])
def test_a_prompt_near_the_limit(name: str, length: int) -> None:
    query = query_of("q", [3 + 7 * i % (VOCABULARY - 3) for i in range(length)], 6)
    batch = random_batch(model_of(name), Baton(), chunk=9)
    batch.run([query])
    check(batch, query, *alone(name, query))


@pytest.mark.parametrize("name", ["phi3_longrope", "llama_longrope", "gemma3_longrope", "llama_dynamic"])
@pytest.mark.parametrize("forget", [(), ("q",)])
@pytest.mark.parametrize("generated", [1, 2, 3, 4])
def test_a_row_that_is_taken_away_at_the_limit(name: str, forget: tuple[str, ...], generated: int) -> None:
    query = query_of("q", [3 + 7 * i % (VOCABULARY - 3) for i in range(LIMIT - 2)], 9)
    into, out = Plan(insert=("q",), feed=100), Plan(detach=("q",), forget=forget)
    batch = random_batch(model_of(name), Scripted([into, *[Plan(feed=100)] * (generated - 1), out, into]), rows=1)
    batch.run([query])
    check(batch, query, *alone(name, query))


@pytest.mark.parametrize("name", ["llama_longrope", "gemma3_longrope", "llama_dynamic"])
def test_a_prefix_serves_texts_on_its_side_of_the_limit_only(name: str) -> None:
    stem = [3 + i % 50 for i in range(LIMIT - 4)]
    queries = [
        query_of("short", [*stem, 5], 12, seed=1),
        query_of("grows", [*stem, 9, 8], 12, seed=2),
        query_of("long", [*stem, *range(3, 30)], 4, seed=3),
        query_of("longer", [*stem, *range(3, 30), 9], 4, seed=4),
    ]
    batch = random_batch(model_of(name), Baton(), prefix_cache=True, prefix_block=4)
    for query in queries:
        batch.run([query])
        check(batch, query, *alone(name, query))


@pytest.mark.parametrize("name", ["phi3_longrope", "llama_longrope", "gemma3_longrope", "llama_dynamic"])
@pytest.mark.parametrize("length", [LIMIT - 3, LIMIT + 5])
def test_choices_of_a_prompt_near_the_limit(name: str, length: int) -> None:
    prompt = [3 + 7 * i % (VOCABULARY - 3) for i in range(length)]
    group = [replace(query_of(f"q{at}", prompt, 6, seed=at), sibling_of="q") for at in range(3)]
    batch = random_batch(model_of(name), Baton(), prefix_cache=True, prefix_block=4)
    batch.run(group)
    for query in group:
        check(batch, query, *alone(name, query))


def test_the_class_is_asked_whether_it_begins_a_text_anew() -> None:
    kinds = ("phi3_longrope", "llama_longrope", "gemma3_longrope", "llama_dynamic", "phi3", "llama")
    limits = {name: (long_rope_limit(model_of(name)), recompute_limit(model_of(name))) for name in kinds}
    assert limits == {
        "phi3_longrope": (LIMIT, LIMIT),
        "llama_longrope": (LIMIT, None),
        "gemma3_longrope": (LIMIT, None),
        "llama_dynamic": (LIMIT, None),
        "phi3": (None, None),
        "llama": (None, None),
    }
    others = {
        name: (long_rope_limit(model), recompute_limit(model)) for name in KINDS for model in [model_from(KINDS[name])]
    }
    assert others["phimoe"] == (LIMIT, LIMIT)
    assert others["two_limits"] == (24, None)


def test_a_stock_model_forgets_what_a_longer_text_left() -> None:
    model = model_of("llama_dynamic")
    query = query_of("q", range(3, 53), 4)
    right = alone(model, query)
    with torch.inference_mode():
        model(torch.arange(3, 123)[None])
    assert not torch.allclose(alone(model, query)[1], right[1])
    as_made(model)
    torch.testing.assert_close(alone(model, query)[1], right[1])


def test_a_rotation_that_fails_in_long_texts_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama_longrope")
    stock = type(model.model.rotary_emb).forward

    def forward(self: nn.Module, x: Tensor, position_ids: Tensor) -> object:
        if position_ids.max() >= LIMIT:
            raise UnboundLocalError("long_inv_freq")
        return stock(self, x, position_ids)

    monkeypatch.setattr(type(model.model.rotary_emb), "forward", forward)
    with pytest.raises(LoadError, match=rf"model.rotary_emb fails beyond {LIMIT} tokens \(UnboundLocalError"):
        choose(model)


class Longest(nn.Module):
    """Rotates by the longest text in a way of its own, as code that comes with a model does."""

    def __init__(self, stock: nn.Module, inside: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inside = inside
        self.register_buffer("inv_freq", stock.get_buffer("inv_freq"), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None] * self.inv_freq / self.inside(position_ids)
        return torch.cat([angles, angles], -1).cos().to(x.dtype), torch.cat([angles, angles], -1).sin().to(x.dtype)


def own_rotary(inside: Callable[[Tensor], Tensor]) -> PreTrainedModel:
    model = copy.deepcopy(model_of("llama"))
    model.model.rotary_emb = Longest(model.model.rotary_emb, inside)
    return model


def test_a_rotation_by_the_longest_text_of_a_kind_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(LoadError, match=r"model.rotary_emb \(Longest\) rotates all rows by the longest text"):
        choose(own_rotary(lambda positions: 1 + positions.max() // 256))
    assert choose(own_rotary(lambda positions: torch.ones(()))).forward.long_rope_limit is None
