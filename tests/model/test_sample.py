"""Draws: the right frequencies, the stock warpers' sets, and nothing that depends on a row's neighbours."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from baton.batch.row_state import RowState
from baton.core.query import Query, SamplingParams
from baton.sampling import on_device as draw_device
from baton.sampling import on_host as draw_host
from baton.sampling.logprobs import token_logprobs
from baton.sampling.on_device import _gumbel
from baton.sampling.sampler import Draw, Sampler
from baton.sampling.seen_tokens import Seen

VOCABULARY = 12
SAMPLER = Sampler(end_ids=())
# The 0.9999 quantiles of chi-square, by degrees of freedom.
CHI_SQUARE = {5: 25.7, 7: 29.9, 15: 44.3}


def draw(seed: int = 0, tokens: Sequence[int] = (1, 2, 3), prompt_tokens: int = 3, **params: Any) -> Draw:
    return Draw(SamplingParams(**{"max_tokens": None, **params}), seed, tokens, prompt_tokens)  # type: ignore[arg-type]


def noise(rows: int, vocabulary: int = VOCABULARY, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


def counts_of(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    tokens = SAMPLER(logits.expand(len(draws), -1), draws)
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[-1]).double()


def chi_square(counts: Tensor, shares: Tensor) -> float:
    expected = shares.double() * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


def test_zero_temperature_takes_the_best_token() -> None:
    logits = noise(50)
    assert SAMPLER(logits, [draw(seed=i, temperature=0) for i in range(50)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_over_many_seeds_tokens_come_as_often_as_softmax_says(temperature: float) -> None:
    logits = noise(1, vocabulary=8)
    counts = counts_of(logits, [draw(seed=seed, temperature=temperature) for seed in range(8000)])
    assert chi_square(counts, (logits[0] / temperature).softmax(-1)) < CHI_SQUARE[7]


def test_over_many_positions_of_one_seed_tokens_come_as_often_as_softmax_says() -> None:
    logits = noise(1, vocabulary=8, seed=1)
    counts = counts_of(logits, [draw(seed=11, tokens=range(length)) for length in range(1, 8001)])
    assert chi_square(counts, logits[0].softmax(-1)) < CHI_SQUARE[7]


def test_frequencies_within_a_filter_are_those_of_what_it_leaves() -> None:
    logits = noise(1, vocabulary=40, seed=2)
    counts = counts_of(logits, [draw(seed=seed, top_k=6) for seed in range(8000)])
    best = logits[0].topk(6)
    assert int(counts.sum()) == int(counts[best.indices].sum()) == 8000
    assert chi_square(counts[best.indices], best.values.softmax(-1)) < CHI_SQUARE[5]


def test_seeds_and_positions_that_follow_each_other_give_unrelated_draws() -> None:
    """Pairs of draws by neighbouring seeds, and at neighbouring positions, are as independent draws would be."""
    logits = torch.zeros(1, 4)
    shares = torch.full((16,), 1 / 16)
    by_seed = SAMPLER(logits.expand(6000, -1), [draw(seed=seed) for seed in range(6000)])
    by_position = SAMPLER(logits.expand(6000, -1), [draw(tokens=range(n)) for n in range(1, 6001)])
    for tokens in (by_seed, by_position):
        pairs = torch.tensor([4 * a + b for a, b in zip(tokens[::2], tokens[1::2], strict=True)])
        assert chi_square(torch.bincount(pairs, minlength=16).double(), shares) < CHI_SQUARE[15]


def test_the_same_seed_at_the_same_position_draws_the_same_token() -> None:
    logits = noise(1, scale=0.1).expand(200, -1)
    first = SAMPLER(logits, [draw(seed=seed) for seed in range(200)])
    assert SAMPLER(logits, [draw(seed=seed) for seed in range(200)]) == first
    assert SAMPLER(logits, [draw(seed=seed + 1) for seed in range(200)]) != first
    assert SAMPLER(logits, [draw(seed=seed, tokens=(1, 2, 3, 4)) for seed in range(200)]) != first


def test_seeds_of_any_size_and_sign_are_taken() -> None:
    logits = noise(1, scale=0.1)
    seeds = [-(2**63), -1, 0, 2**63 - 1, 2**63 + 15]
    drawn = {tuple(SAMPLER(logits, [draw(seed=seed, tokens=range(n))])[0] for n in range(1, 9)) for seed in seeds}
    assert len(drawn) == len(seeds)


@st.composite
def mixed_draws(pick: st.DrawFn) -> list[Draw]:
    """Rows of every kind: greedy, drawn, filtered, penalised."""
    kinds: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0, 0.6, 1.5]),
            "top_k": st.integers(1, 14),
            "top_p": st.sampled_from([0.3, 0.9]),
            "min_p": st.sampled_from([0.05, 0.5]),
            "repetition_penalty": st.sampled_from([0.7, 1.4]),
            "presence_penalty": st.just(0.5),
            "frequency_penalty": st.just(-0.5),
            "logit_bias": st.just({3: 2.0}),
            "min_tokens": st.integers(1, 4),
            "stop_token_ids": st.just((1, 6)),
        },
    )
    rows = pick(st.lists(st.tuples(kinds, st.integers(0, 99)), min_size=1, max_size=8))
    return [draw(seed=seed, tokens=(1, 2, 3, 4, 4), **params) for params, seed in rows]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(mixed_draws(), st.integers(0, 1000))
def test_a_rows_draw_depends_on_no_neighbour_and_no_order(draws: list[Draw], seed: int) -> None:
    logits = noise(len(draws), seed=seed)
    together = SAMPLER(logits, draws)
    alone = [SAMPLER(logits[i : i + 1], [one])[0] for i, one in enumerate(draws)]
    turned = SAMPLER(logits.flip(0), draws[::-1])
    assert together == alone == turned[::-1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(mixed_draws(), st.sampled_from([12, 127, 130, 2003]), st.sampled_from([0.05, 1.0, 6.0]), st.integers(0, 1000))
def test_both_ways_of_drawing_draw_the_same(draws: list[Draw], vocabulary: int, scale: float, seed: int) -> None:
    logits = noise(len(draws), vocabulary, seed, scale)
    assert SAMPLER(logits, draws) == SAMPLER._together(logits, draws)


def test_a_token_that_is_far_from_the_best_is_drawn_by_its_noise_alone_as_often_as_it_should() -> None:
    """The best 128 have half of all; on the CPU the others are found by their noise's bits, not by their scores."""
    logits = torch.cat([torch.full((1, 128), 1.5), torch.full((1, 574), 0.0)], dim=1)
    draws = [draw(seed=seed) for seed in range(4000)]
    tokens = torch.tensor(SAMPLER(logits.expand(4000, -1), draws))
    assert abs(float((tokens < 128).double().mean()) - 0.5) < 0.03
    assert len(set(tokens.tolist())) > 650
    assert tokens.tolist() == SAMPLER._together(logits.expand(4000, -1), draws)


@pytest.mark.parametrize("vocabulary", [1, 5, 128, 129, 1000, 4097])
@pytest.mark.parametrize("count", [1, 5, 128, 1000])
@pytest.mark.parametrize("levels", [1, 3, 10**6])
def test_the_best_of_a_row_are_found_in_order_and_equals_by_their_ids(vocabulary: int, count: int, levels: int) -> None:
    row = (torch.randint(levels, (vocabulary,), generator=torch.Generator().manual_seed(count)) / 7).numpy()
    values, ids = draw_host._top(row, min(count, vocabulary))
    order = sorted(range(vocabulary), key=lambda at: (-row[at], at))[:count]
    assert ids.tolist() == order
    assert values.tolist() == row[order].tolist()


def stock_kept(logits: Tensor, params: SamplingParams) -> set[int]:
    """The tokens that the stock warpers leave of one row, in the stock order."""
    scores, ids = logits[None].double() / params.temperature, torch.zeros(1, 1, dtype=torch.int64)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)  # type: ignore[arg-type]
    return set(scores[0].isfinite().nonzero().flatten().tolist())


def kept(logits: Tensor, draws: Sequence[Draw]) -> list[set[int]]:
    """The tokens that our filters leave of each row, by both ways of drawing."""
    temperatures = torch.tensor([[one.params.temperature] for one in draws])
    best, ids = draw_device.candidates(logits / temperatures, draws)
    left = [set(row[values.isfinite()].tolist()) for row, values in zip(ids, best, strict=True)]
    assert left == [
        set(draw_host.candidates(row, one)[1].tolist()) for row, one in zip(logits.numpy(), draws, strict=True)
    ]
    return left


FILTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300},
    {"top_k": 5000},
    {"top_p": 0.01},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.999},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 200, "top_p": 0.99, "min_p": 0.001},
    {"top_p": 0.9, "min_p": 0.05, "temperature": 0.4},
    {"top_k": 50, "temperature": 2.0},
]


@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0])
def test_the_filters_leave_what_the_stock_warpers_leave(scale: float) -> None:
    """Flat logits leave thousands of tokens, which is more than is looked at first."""
    logits = noise(len(FILTERS), vocabulary=2000, seed=5, scale=scale)
    draws = [draw(**params) for params in FILTERS]
    left = kept(logits, draws)
    expected = [stock_kept(row, one.params) for row, one in zip(logits, draws, strict=True)]
    for params, ours, theirs in zip(FILTERS, left, expected, strict=True):
        assert ours == theirs, params
    if scale < 1:
        assert max(len(row) for row in left) == 2000
        assert len(left[6]) > 1000


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from([3, 50, 300]),
    st.sampled_from([0.3, 1.0, 3.0]),
    st.one_of(st.just(0), st.integers(1, 400)),
    st.floats(0.05, 1.0),
    st.one_of(st.just(0.0), st.floats(0.001, 1.0)),
)
def test_any_filters_together_leave_what_the_stock_warpers_leave(
    seed: int, vocabulary: int, scale: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = noise(1, vocabulary, seed, scale)
    one = draw(top_k=top_k, top_p=top_p, min_p=min_p)
    assert kept(logits, [one]) == [stock_kept(logits[0], one.params)]


def test_what_is_drawn_is_always_among_what_is_left() -> None:
    logits = noise(1, vocabulary=300, seed=9, scale=0.5)
    for params in FILTERS:
        one = draw(**params).params
        tokens = SAMPLER(logits.expand(400, -1), [draw(seed=seed, **params) for seed in range(400)])
        allowed = stock_kept(logits[0], one)
        assert set(tokens) <= allowed, params
        assert len(set(tokens)) >= min(len(allowed), 10) // 2


def penalised(rows: int, **params: Any) -> tuple[Tensor, list[Draw], list[list[int]]]:
    """Greedy rows with random tokens so far, in which a penalty often changes which token is best."""
    dice = random.Random(4)
    tokens = [[dice.randrange(VOCABULARY) for _ in range(dice.randint(4, 20))] for _ in range(rows)]
    draws = [draw(tokens=some, prompt_tokens=3, temperature=0, **params) for some in tokens]
    return noise(rows, seed=3), draws, tokens


@pytest.mark.parametrize("penalty", [0.6, 1.3, 3.0])
def test_the_repetition_penalty_is_the_stock_one_over_prompt_and_answer(penalty: float) -> None:
    logits, draws, tokens = penalised(200, repetition_penalty=penalty)
    stock = RepetitionPenaltyLogitsProcessor(penalty)
    expected = [
        int(stock(torch.tensor([t]), row[None].clone()).argmax()) for t, row in zip(tokens, logits, strict=True)
    ]
    assert SAMPLER(logits, draws) == expected
    assert sum(a != b for a, b in zip(expected, logits.argmax(-1).tolist(), strict=True)) >= 10


@pytest.mark.parametrize(("frequency", "presence"), [(0.4, 0.0), (0.0, 0.8), (0.3, -0.5), (-1.0, 0.0)])
def test_frequency_and_presence_penalties_are_openais_over_the_answer_alone(frequency: float, presence: float) -> None:
    """logit - count * frequency - [count > 0] * presence, as OpenAI's documentation has it."""
    logits, draws, tokens = penalised(200, frequency_penalty=frequency, presence_penalty=presence)
    expected = []
    for row, some in zip(logits, tokens, strict=True):
        counts = torch.bincount(torch.tensor(some[3:]), minlength=VOCABULARY)
        expected.append(int((row - counts * frequency - (counts > 0) * presence).argmax()))
    assert SAMPLER(logits, draws) == expected
    assert sum(a != b for a, b in zip(expected, logits.argmax(-1).tolist(), strict=True)) >= 10


def test_logit_bias_is_added_and_can_force_and_forbid() -> None:
    logits = noise(100, seed=6)
    best = logits.argmax(-1).tolist()
    forced = SAMPLER(logits, [draw(seed=i, logit_bias={5: 100.0}) for i in range(100)])
    assert set(forced) == {5}
    forbidden = SAMPLER(logits, [draw(seed=i, temperature=0, logit_bias={best[i]: -100.0}) for i in range(100)])
    assert all(token != was for token, was in zip(forbidden, best, strict=True))
    expected = logits.clone()
    expected[:, 2] += 0.7
    assert (
        SAMPLER(logits, [draw(temperature=0, logit_bias={2: 0.7}) for _ in range(100)]) == expected.argmax(-1).tolist()
    )


def test_tokens_that_end_cannot_be_drawn_before_min_tokens() -> None:
    sampler = Sampler(end_ids=(4, 5))
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [4, 5, 6]] = 20.0
    params: dict[str, Any] = {"min_tokens": 2, "stop_token_ids": (6,)}
    early = sampler(logits.expand(300, -1), [draw(seed=i, tokens=(1, 2, 3, 7), **params) for i in range(300)])
    late = sampler(logits.expand(300, -1), [draw(seed=i, tokens=(1, 2, 3, 7, 8), **params) for i in range(300)])
    assert not {4, 5, 6} & set(early)
    assert set(late) <= {4, 5, 6}


def test_min_tokens_works_where_nothing_ends_a_text_or_an_end_is_outside_the_vocabulary() -> None:
    logits = noise(1)
    assert Sampler(end_ids=())(logits, [draw(temperature=0, min_tokens=5)]) == [int(logits.argmax())]
    assert Sampler(end_ids=(500,))(logits, [draw(temperature=0, min_tokens=5)]) == [int(logits.argmax())]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [slice(None), slice(3, 4)])
def test_a_row_that_is_not_finite_draws_none_and_its_neighbours_draw_as_ever(bad: float, where: slice) -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0},
        {},
        {"top_p": 0.9},
        {"temperature": 0, "repetition_penalty": 1.2},
    ]
    draws = [draw(seed=i, **params) for i, params in enumerate(kinds * 3)]
    logits = noise(12, seed=8)
    right = SAMPLER(logits, draws)
    broken = logits.clone()
    broken[4:8, where] = bad
    tokens = SAMPLER(broken, draws)
    assert tokens[4:8] == [None] * 4
    assert tokens[:4] == right[:4]
    assert tokens[8:] == right[8:]


def test_the_logits_that_are_handed_in_are_left_as_they_were() -> None:
    logits, draws, _ = penalised(20, repetition_penalty=1.5, logit_bias={1: 5.0}, min_tokens=100)
    before = logits.clone()
    Sampler(end_ids=(2,))(logits, draws)
    assert torch.equal(logits, before)


def test_temperature_comes_before_the_filters_as_in_the_stock_order() -> None:
    logits = noise(1, vocabulary=50, seed=12)
    stock = TopPLogitsWarper(0.7)(torch.zeros(1, 1), TemperatureLogitsWarper(0.3)(torch.zeros(1, 1), logits.double()))
    assert kept(logits, [draw(temperature=0.3, top_p=0.7)])[0] == set(stock[0].isfinite().nonzero().flatten().tolist())


# More of the stock processors on the same logits


def test_logit_bias_is_the_stock_sequence_bias() -> None:
    bias = {2: 0.7, 5: -1.5, 11: 100.0, 3: -100.0}
    logits = noise(100, seed=21)
    stock = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    expected = stock(torch.zeros(100, 3, dtype=torch.int64), logits.clone())
    biased = logits.clone()
    for row in biased:
        SAMPLER._shape(row, draw(logit_bias=bias))
    assert torch.equal(biased, expected)


def test_min_tokens_is_the_stock_min_new_tokens() -> None:
    sampler = Sampler(end_ids=(4, 5))
    stock = MinNewTokensLengthLogitsProcessor(3, 2, eos_token_id=[4, 5, 6], device="cpu")
    for length in range(3, 8):
        tokens, logits = list(range(length)), noise(1, seed=length)
        shaped = logits.clone()
        sampler._shape(shaped[0], draw(tokens=tokens, min_tokens=2, stop_token_ids=(6,)))
        assert torch.equal(shaped, stock(torch.tensor([tokens]), logits.clone()))


def test_all_that_changes_logits_together_is_the_stock_chain_and_openais_penalties() -> None:
    """Penalties see the logits in the order repetition, frequency and presence, bias, as vLLM's do but for the bias."""
    logits, draws, tokens = penalised(
        100, repetition_penalty=1.3, frequency_penalty=0.3, presence_penalty=0.4, logit_bias={2: 0.7}
    )
    for row, some, one in zip(logits, tokens, draws, strict=True):
        expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([some]), row[None].clone())
        counts = torch.bincount(torch.tensor(some[3:]), minlength=VOCABULARY)
        expected = expected - counts * 0.3 - (counts > 0) * 0.4
        expected = SequenceBiasLogitsProcessor([[[2], 0.7]])(torch.tensor([some]), expected)
        shaped = row.clone()
        SAMPLER._shape(shaped, one)
        assert torch.allclose(shaped, expected[0], atol=1e-6)


def test_what_a_text_has_is_counted_as_it_grows() -> None:
    dice = random.Random(0)
    for prompt_tokens in (0, 1, 40):
        tokens = [dice.randrange(30) for _ in range(prompt_tokens)]
        grown = Seen(tokens, prompt_tokens)
        for _ in range(60):
            tokens.append(dice.randrange(60))
            grown.add(tokens[-1])
            anew = Seen(tokens, prompt_tokens)
            answer = tokens[prompt_tokens:]
            expected = {token: answer.count(token) for token in tokens}
            for seen in (grown, anew):
                assert dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True)) == expected


def test_a_row_counts_its_tokens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    class Counting(Seen):
        def __init__(self, tokens: Sequence[int], prompt_tokens: int) -> None:
            counted.append(len(tokens))
            super().__init__(tokens, prompt_tokens)

    monkeypatch.setattr("baton.batch.row_state.Seen", Counting)
    monkeypatch.setattr("baton.sampling.sampler.Seen", Counting)
    params = SamplingParams(max_tokens=None, frequency_penalty=0.5, repetition_penalty=1.2)
    query = Query(id="a", prompt=(1, 2, 3), params=params, seed=1, limit_tokens=900, arrived=0.0)
    state, logits = RowState(query, [1, 2, 3], 3), noise(1)
    for _ in range(200):
        one = state.draw(None)
        (token,) = SAMPLER(logits, [one])
        assert [token] == SAMPLER(logits, [replace(one, seen=Seen(state.tokens, 3))])
        assert token is not None
        state.append(token)
    assert counted == [3]


# Devices without float64


@pytest.fixture
def without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_device, "_precise", lambda device: torch.float32)


def test_noise_in_float32_is_that_of_float64_to_its_very_ends() -> None:
    middle = torch.randint(2**53, (20000,), generator=torch.Generator().manual_seed(1))
    # Above these float64 itself has not enough digits.
    ends = torch.tensor([0, 1, 2, 1000, 2**52 - 1, 2**52, 2**52 + 1, 2**53 - 10**7])
    bits = torch.cat([middle, ends])
    rough, exact = _gumbel(bits, torch.float32), _gumbel(bits, torch.float64)
    assert rough.dtype is torch.float32
    assert torch.allclose(rough.double(), exact, rtol=2e-6, atol=2e-6)
    assert _gumbel(torch.tensor([0, 2**53 - 1]), torch.float32).isfinite().all()


@pytest.mark.parametrize("params", [{}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.02}, {"temperature": 0.5}])
def test_draws_without_float64_are_the_same_draws(params: dict, request: pytest.FixtureRequest) -> None:
    logits = noise(4000, vocabulary=40, seed=14)
    draws = [draw(seed=seed, **params) for seed in range(4000)]
    exact = SAMPLER(logits, draws)
    request.getfixturevalue("without_float64")
    assert SAMPLER._together(logits, draws) == exact


# Log-probabilities


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 29), st.integers(0, 35)), min_size=1, max_size=6), st.integers(0, 1000))
def test_logprobs_are_the_log_softmax_its_order_and_the_tokens_rank(asked: list[tuple[int, int]], seed: int) -> None:
    logits = noise(len(asked), vocabulary=30, seed=seed, scale=3)
    scored = token_logprobs(logits, [token for token, _ in asked], [best for _, best in asked])
    for row, one, (token, best) in zip(logits.double().log_softmax(-1), scored, asked, strict=True):
        order = row.argsort(descending=True).tolist()
        assert (one.token_id, one.rank) == (token, order.index(token) + 1)
        assert [which for which, _ in one.best] == order[:best]
        numbers = [one.logprob, *(value for _, value in one.best)]
        assert numbers == pytest.approx(row[[token, *order[:best]]].tolist(), abs=1e-5)


def test_tokens_that_are_equally_likely_share_a_rank() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    assert [token_logprobs(logits, [token], [0])[0].rank for token in range(4)] == [3, 1, 1, 4]


MASKED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.3},
    {"temperature": 0.9, "top_k": 4},
    {"temperature": 1.0, "top_p": 0.4},
    {"temperature": 1.0, "min_p": 0.2, "logit_bias": {3: 50.0}},
    {"temperature": 1.0, "repetition_penalty": 1.5, "frequency_penalty": 0.3},
]


def as_mask(allowed: np.ndarray) -> np.ndarray:
    return np.where(allowed, np.float32(0), np.float32(-np.inf))


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 2000])
@pytest.mark.parametrize("params", MASKED)
def test_only_what_is_allowed_is_drawn_on_the_host_and_on_devices(params: dict[str, Any], vocabulary: int) -> None:
    dice, logits = random.Random(4), noise(60, vocabulary, scale=2.0)
    kept = logits.clone()
    masks = [np.array([dice.random() < share for _ in range(vocabulary)]) for share in [0.1, 0.5, 0.99] * 20]
    for at, mask in enumerate(masks):
        mask[at % vocabulary] = True
    draws = [replace(draw(seed=at, **params), mask=as_mask(mask)) for at, mask in enumerate(masks)]
    host, device = SAMPLER(logits, draws), SAMPLER._together(logits, draws)
    assert host == device
    assert all(mask[token] for mask, token in zip(masks, host, strict=True))
    assert torch.equal(logits, kept), "log-probabilities are of what the model said"
    free = SAMPLER(logits, [draw(seed=at, **params) for at in range(60)])
    assert free != host, "the control: without masks others are drawn"
    same = [at for at, (mask, token) in enumerate(zip(masks, free, strict=True)) if mask[token]]
    if not params.get("top_p") and not params.get("top_k"):
        assert [host[at] for at in same] == [free[at] for at in same], "what is allowed anyway is drawn the same"


def test_the_only_token_that_is_allowed_is_drawn() -> None:
    alone = np.arange(VOCABULARY) == 5
    for params in MASKED:
        one = replace(draw(**params), mask=as_mask(alone))
        assert SAMPLER(noise(1), [one]) == SAMPLER._together(noise(1), [one]) == [5]


def test_a_device_that_computes_integers_otherwise_is_noticed_and_the_host_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert draw_device.exact("cpu")
    # One that has no numbers.
    assert not draw_device.exact("meta")
    draw_device.exact.cache_clear()
    hashed, wrong = draw_device._hashed, iter([1])
    monkeypatch.setattr(draw_device, "_hashed", lambda *of: hashed(*of) + next(wrong, 0))
    assert not draw_device.exact("cpu")
    draw_device.exact.cache_clear()
    monkeypatch.undo()
    logits, draws = noise(3), [draw(seed=seed) for seed in range(3)]
    there = SimpleNamespace(device=torch.device("meta"), cpu=lambda: logits)
    assert SAMPLER(there, draws) == SAMPLER(logits, draws)  # type: ignore[arg-type]
