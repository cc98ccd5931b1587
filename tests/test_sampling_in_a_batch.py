"""Drawn tokens and log-probabilities of a query are the same alone, in a shaken batch, and after a restart."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.batch import feeder
from baton.core.events import TokenLogprobs
from baton.core.query import Query
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from families import VOCABULARY, model_of
from random_batch import RandomBatch, Shaken, query_of, random_batch
from toy import NAN, prompt_of, toy_batch
from toy import VOCABULARY as TOY_VOCABULARY

END = 4


def noisy(tokens: list[int]) -> Tensor:
    """Logits that change with every token before; flat enough that all parameters matter."""
    state = 7
    for token in tokens:
        state = (state * 31 + token + 1) % (2**61 - 1)
    return torch.randn(TOY_VOCABULARY, generator=torch.Generator().manual_seed(state)) * 1.5


PARAMS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0, 0.7, 1.0, 1.8]), "ignore_eos": st.booleans()},
    optional={
        "top_k": st.integers(1, 30),
        "top_p": st.sampled_from([0.3, 0.8, 0.95]),
        "min_p": st.sampled_from([0.05, 0.3]),
        "presence_penalty": st.sampled_from([-0.5, 0.8]),
        "frequency_penalty": st.sampled_from([-0.5, 0.8]),
        "repetition_penalty": st.sampled_from([0.8, 1.4]),
        "logit_bias": st.just({5: 3.0, 6: -100.0, END: 1.0}),
        "min_tokens": st.integers(1, 6),
        "stop_token_ids": st.just((7, 8, 9, 10)),
        "stop": st.just(("<11", "<12><")),
        "logprobs": st.integers(0, 4),
        "prompt_logprobs": st.integers(0, 4),
    },
)
SEEDS = st.integers(-(2**63), 2**63 - 1)
ASKED = st.tuples(PARAMS, SEEDS, st.integers(1, 20), st.integers(6, 16))


def queries_of(asked: list[tuple[dict[str, Any], int, int, int]]) -> list[Query]:
    return [
        query_of(f"q{at}", prompt_of(length, at), limit, seed=seed, **params)
        for at, (params, seed, length, limit) in enumerate(asked)
    ]


def heard(batch: RandomBatch, query_id: str) -> tuple[Any, ...]:
    """Everything that a client gets: tokens, text, why it ended, and log-probabilities."""
    updates = batch.updates[query_id]
    text = "".join(update.text for update in updates)
    told = [one for update in updates for one in update.logprobs]
    of_prompt = [one for update in updates for one in update.prompt_logprobs]
    return batch.tokens(query_id), text, batch.reason(query_id), told, of_prompt


def alone(query: Query) -> tuple[Any, ...]:
    """A batch of one query in one row, in an engine that knows nothing of another: as after a restart."""
    batch = toy_batch(Baton(), say=noisy, end_ids=(END,), max_rows=1)
    batch.run([query])
    return heard(batch, query.id)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(asked=st.lists(ASKED, min_size=3, max_size=8), seed=st.integers(0, 2**32))
def test_any_mix_of_parameters_gives_each_query_what_it_gives_alone(policy: str, asked: list, seed: int) -> None:
    dice = random.Random(seed)
    batch = toy_batch(Shaken(POLICIES[policy](), dice), say=noisy, end_ids=(END,))
    queries = queries_of(asked)
    batch.run(queries, dice)
    for query in queries:
        assert heard(batch, query.id) == alone(query)


def test_the_mixes_above_are_mixes() -> None:
    """The control: each parameter changes what at least one query says, so ignoring one would be noticed."""
    dice = random.Random(1)
    plain = {"temperature": 1.0, "ignore_eos": True}
    changes: list[dict[str, Any]] = [
        {"temperature": 0},
        {"top_k": 3},
        {"top_p": 0.3},
        {"min_p": 0.3},
        {"presence_penalty": 0.8},
        {"frequency_penalty": 0.8},
        {"repetition_penalty": 1.4},
        {"logit_bias": {5: 3.0}},
        {"stop_token_ids": (7, 8, 9, 10)},
        {"stop": ("<1", "<2")},
        {"ignore_eos": False},
        {"ignore_eos": False, "logit_bias": {END: 3.0}, "min_tokens": 6},
    ]
    seeds = [dice.randrange(1000) for _ in range(6)]
    before = [alone(queries_of([(plain, seed, 9, 16)])[0]) for seed in seeds]
    for change in changes:
        assert before != [alone(queries_of([({**plain, **change}, seed, 9, 16)])[0]) for seed in seeds], change


@pytest.mark.parametrize("most", [3, 64])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_each_prompt_token_is_told_once_whatever_the_pieces(
    policy: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeder, "_EVERY_TOKENS", most)
    dice = random.Random(f"{policy} {most}")
    shaken = Shaken(POLICIES[policy](), dice)
    batch = toy_batch(shaken, say=noisy)
    queries = [query_of(f"q{at}", prompt_of(1 + 2 * at, at), 12, prompt_logprobs=2, logprobs=2) for at in range(10)]
    batch.run(queries, dice)
    for query in queries:
        tokens, _, _, told, of_prompt = heard(batch, query.id)
        text = [*query.prompt, *tokens]
        expected = [of_logits(noisy(text[:at]), text[at], 2) for at in range(1, len(text))]
        assert [one.token_id for one in of_prompt] == list(query.prompt[1:])
        assert close([*of_prompt, *told], expected)
    assert min(shaken.moves.values()) > 0


def test_a_prompt_whose_logits_are_not_finite_fails_alone() -> None:
    def say(tokens: list[int]) -> Tensor | int:
        return NAN if tokens[-1] == 40 and len(tokens) == 3 else noisy(tokens)

    batch = toy_batch(Baton(), say=say)  # type: ignore[arg-type]
    asked: dict[str, Any] = {"temperature": 0.5, "prompt_logprobs": 1}
    batch.run([query_of("bad", [5, 6, 40, 7], 5, **asked), query_of("good", [5, 6, 41, 7], 5, **asked)])
    assert (batch.reason("bad"), batch.tokens("bad")) == ("error", [])
    assert (batch.reason("good"), len(batch.tokens("good"))) == ("length", 5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral_window", "deepseek_v3", "bamba", "mamba", "mpt"])
def test_of_a_real_model_they_are_the_log_softmax_of_its_stock_logits(family: str) -> None:
    """Prompts longer than a window and than one piece; rows are moved, detached and forgotten meanwhile."""
    dice = random.Random(family)
    prompts = [[dice.randrange(3, VOCABULARY) for _ in range(dice.choice([1, 2, 20, 70]))] for _ in range(8)]
    asked: dict[str, Any] = {"temperature": 1.0, "frequency_penalty": 0.5, "logprobs": 3, "prompt_logprobs": 3}
    queries = [query_of(f"q{at}", prompt, 12, seed=at, **asked) for at, prompt in enumerate(prompts)]
    shaken = Shaken(Baton(), dice)
    batch, quiet = random_batch(family, shaken), random_batch(family, Baton(), chunk=None)
    batch.run(queries, dice)
    quiet.run(queries)
    assert min(shaken.moves.values()) > 0
    stock = model_of(family)
    for query in queries:
        tokens, text, reason, told, of_prompt = heard(batch, query.id)
        assert heard(quiet, query.id)[:3] == (tokens, text, reason)
        whole = [*query.prompt, *tokens]
        logits = stock(torch.tensor([whole]), use_cache=False).logits[0]
        expected = [of_logits(logits[at - 1], whole[at], 3) for at in range(1, len(whole))]
        assert close([*of_prompt, *told], expected)
        assert close([*heard(quiet, query.id)[4], *heard(quiet, query.id)[3]], expected)


def of_logits(logits: Tensor, token: int, best: int) -> TokenLogprobs:
    """The oracle: log-softmax, sorted."""
    shares = logits.double().log_softmax(-1).tolist()
    order = sorted(range(len(shares)), key=lambda one: -shares[one])
    return TokenLogprobs(token, shares[token], 1 + order.index(token), tuple((at, shares[at]) for at in order[:best]))


def close(ours_all: list[TokenLogprobs], expected: list[TokenLogprobs]) -> bool:
    """Same tokens and ranks; the numbers equal up to float32's rounding in a forward."""
    for ours, theirs in zip(ours_all, expected, strict=True):
        assert (ours.token_id, ours.rank) == (theirs.token_id, theirs.rank)
        assert [token for token, _ in ours.best] == [token for token, _ in theirs.best]
        numbers = [ours.logprob, *(value for _, value in ours.best)]
        assert numbers == pytest.approx([theirs.logprob, *(value for _, value in theirs.best)], abs=2e-4)
    return True
