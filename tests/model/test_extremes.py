"""Numbers at the ends of what may be asked for: every row draws a token that it may, or none, and never raises."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from baton.core.query import SamplingParams
from baton.cuda.slots import GREEDY, Slot, chance_of, chances_of, step_inputs
from baton.sampling.draw import Draw
from baton.sampling.logprobs import token_logprobs
from baton.sampling.on_device import NOT_FINITE, TOO_FEW_CANDIDATES, drawn
from baton.sampling.sampler import Sampler

SAMPLER = Sampler(end_ids=(1,))
COLD = [5e-324, 1e-320, 1e-45, 1e-38, 2.0**-126, 5.167657014254439e-38, 1e-30]
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 5e-324},
    {"top_p": 1e-300},
    {"top_p": 0.9},
    {"min_p": 1.0},
    {"min_p": 5e-324},
    {"top_k": 300, "top_p": 0.5, "min_p": 0.1},
]
SHAPES: list[dict[str, Any]] = [
    {"repetition_penalty": 0.01},
    {"repetition_penalty": 10.0, "logit_bias": {2: 100.0, 3: -100.0}},
    {"frequency_penalty": -2.0, "presence_penalty": 2.0},
    {"repetition_penalty": 0.01, "frequency_penalty": 2.0, "logit_bias": {4: -100.0}, "min_tokens": 5},
]


def draw(mask: Any = None, seed: int = 0, **params: Any) -> Draw:
    return Draw(SamplingParams(**{"max_tokens": None, **params}), seed, (1, 2, 3, 4, 4), 3, mask)


def rows_of(vocabulary: int = 300) -> list[Tensor]:
    """Logits of every size that float32 has, each with a best token, and with a difference that overflows."""
    noise = torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    wide = torch.linspace(-3.4e38, 3.4e38, vocabulary, dtype=torch.float64).float()
    return [
        noise,
        noise * 1e30,
        noise * 1e-30,
        wide,
        wide.flip(0),
        torch.zeros(vocabulary),
        torch.full_like(wide, 3.4e38),
    ]


def by_device(row: Tensor, one: Draw) -> int:
    """As a step of constant shape draws it."""
    chance = chance_of(one) or GREEDY
    inputs = step_inputs([Slot(0, 5, len(one.tokens), chance)], 1)
    return int(drawn(row[None], chances_of(inputs), chance.kind))


@pytest.mark.parametrize("temperature", COLD[:-1])
def test_where_it_is_cold_the_best_token_is_drawn(temperature: float) -> None:
    for row, filters in itertools.product(rows_of()[:5], FILTERS):
        one, best = draw(temperature=temperature, **filters), [int(row.argmax())]
        assert SAMPLER(row[None], [one]) == best
        assert SAMPLER._together(row[None], [one]) in (best, [None]), "a sum of the largest numbers is none"
        assert by_device(row, one) in (best[0], NOT_FINITE, TOO_FEW_CANDIDATES)


@pytest.mark.parametrize("temperature", [*COLD, 0.0, 1.0, 2.0])
def test_any_row_draws_a_token(temperature: float) -> None:
    for row, filters, shape in itertools.product(rows_of(), FILTERS, [{}, *SHAPES]):
        one = draw(temperature=temperature, **filters, **shape)
        (token,) = SAMPLER(row[None], [one])
        assert token is not None and 0 <= token < len(row), (filters, shape)
        assert not (token == 1 and shape.get("min_tokens"))


@pytest.mark.parametrize("temperature", [*COLD, 0.0, 1.0])
def test_the_only_token_that_a_form_leaves_is_drawn(temperature: float) -> None:
    mask = np.full(300, -np.inf, np.float32)
    mask[17] = 0
    for row, filters, shape in itertools.product(rows_of(), FILTERS, [{}, *SHAPES[:3]]):
        one = draw(mask, temperature=temperature, **filters, **shape)
        assert SAMPLER(row[None], [one]) == [17]
        assert SAMPLER._together(row[None], [one]) in ([17], [None])


@pytest.mark.parametrize("way", [SAMPLER, SAMPLER._together])
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1.0])
def test_where_nothing_may_be_drawn_a_row_draws_none_and_its_neighbours_draw_as_ever(
    way: Any, temperature: float
) -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    every, nothing = {"stop_token_ids": tuple(range(6)), "min_tokens": 9}, np.full(6, -np.inf, np.float32)
    for filters in FILTERS:
        asked = {"temperature": temperature, **filters}
        draws = [
            draw(seed=0, **asked),
            draw(seed=1, **asked, **every),
            draw(nothing, seed=2, **asked),
            draw(seed=3, **asked),
        ]
        tokens = way(logits, draws)
        assert tokens[1:3] == [None, None]
        assert [tokens[0], tokens[3]] == way(logits[[0, 3]], [draws[0], draws[3]])


def test_the_least_log_probability_is_a_number() -> None:
    row = rows_of()[3]
    (told_of,) = token_logprobs(row[None], [0], [300])
    assert told_of.logprob == torch.finfo(torch.float32).min and told_of.rank > 1
    assert all(np.isfinite(logprob) for _, logprob in told_of.best)


def test_penalties_that_overflow_leave_the_order_of_what_does_not() -> None:
    row = torch.zeros(300)
    row[2:5] = torch.tensor([3e37, -3e38, 3e36])
    assert SAMPLER(row[None], [draw(temperature=0, repetition_penalty=0.01)]) == [2]
    assert SAMPLER(row[None], [draw(temperature=1.0, repetition_penalty=10.0, top_p=0.5)]) == [2]
