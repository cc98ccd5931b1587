"""Sampling parameters refuse what cannot be honoured, by name, and a query never changes."""

from __future__ import annotations

import dataclasses
import math

import pytest

from baton.core.errors import InvalidValue
from baton.core.query import MAX_USER_CHARACTERS, NO_OPTIONS, Query, RequestOptions, SamplingParams, State


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1.0),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", "1"),
        ("temperature", None),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", math.inf),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 10.5),
        ("seed", 2**63),
        ("seed", 0.5),
        ("stop", ("",)),
        ("stop", (b"a",)),
        ("stop", 5),
        ("stop_token_ids", ("a",)),
        ("stop_token_ids", (True,)),
        ("stop_token_ids", 1.5),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("logit_bias", {3: math.nan}),
        ("logit_bias", {3: None}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {"word": 1.0}),
        ("logit_bias", [3]),
        ("logprobs", -1),
        ("logprobs", True),
        ("prompt_logprobs", 1.0),
    ],
)
def test_a_value_out_of_its_limits_is_refused_by_its_fields_name(field: str, value: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 16),
        ("temperature", 0),
        ("temperature", 2.0),
        ("top_p", 1e-6),
        ("top_k", 1),
        ("min_p", 1.0),
        ("presence_penalty", -2.0),
        ("repetition_penalty", 10.0),
        ("seed", -(2**63)),
        ("seed", 2**63 - 1),
        ("stop", ("x" * 256,) * 4),
        ("min_tokens", 16),
        ("logprobs", 0),
        ("logprobs", 20),
        ("prompt_logprobs", 0),
        ("prompt_logprobs", 20),
        ("max_tokens", 1),
        ("logit_bias", {3: -100.0}),
    ],
)
def test_a_value_at_its_limit_is_taken(field: str, value: object) -> None:
    assert getattr(SamplingParams(**{field: value}), field) == value  # type: ignore[arg-type]


def test_stops_are_taken_as_one_item_a_list_or_nothing() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingParams(stop=None).stop == ()  # type: ignore[arg-type]
    assert SamplingParams(stop_token_ids=7).stop_token_ids == (7,)  # type: ignore[arg-type]
    assert SamplingParams(stop_token_ids=[7, 8]).stop_token_ids == (7, 8)  # type: ignore[arg-type]


def test_top_k_of_minus_one_means_all_tokens() -> None:
    assert SamplingParams(top_k=-1).top_k == 0


def test_min_tokens_may_exceed_nothing_when_there_is_no_max_tokens() -> None:
    assert SamplingParams(min_tokens=1000, max_tokens=None).min_tokens == 1000


def test_what_was_asked_cannot_be_changed_afterwards() -> None:
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 50.0
    assert params.logit_bias == {3: 1.0}
    with pytest.raises(TypeError):
        params.logit_bias[3] = 2.0  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 2  # type: ignore[misc]
    query = Query(id="a", prompt=(1,), params=params, seed=0, limit_tokens=1, arrived=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        query.limit_tokens = 2  # type: ignore[misc]


def test_zero_temperature_is_greedy() -> None:
    assert SamplingParams(temperature=0).greedy
    assert not SamplingParams(temperature=1e-6).greedy


def test_the_live_states_are_those_before_an_end() -> None:
    assert {state for state in State if state.live} == {State.WAITING, State.PREFILLING, State.READY, State.RUNNING}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 1.5),
        ("priority", True),
        ("priority", 2**31),
        ("deadline_ms", 0),
        ("deadline_ms", -5),
        ("deadline_ms", 0.5),
        ("user", 7),
        ("user", "x" * (MAX_USER_CHARACTERS + 1)),
    ],
)
def test_terms_out_of_their_limits_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidValue) as caught:
        RequestOptions(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field
    assert field in caught.value.message


def test_terms_are_nothing_special_by_default_and_may_go_to_their_limits() -> None:
    assert RequestOptions(0, None, "") == NO_OPTIONS
    assert RequestOptions(-(2**31), 1, "x" * MAX_USER_CHARACTERS).priority == -(2**31)


NUMERIC = (
    *("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("seed", "min_tokens", "max_tokens", "logprobs", "prompt_logprobs"),
)


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**5000, -(10**5000)], ids=["400", "-400", "5000", "-5000"])
@pytest.mark.parametrize("name", NUMERIC)
def test_numbers_of_hundreds_of_digits_are_refused_by_name(name: str, number: int) -> None:
    with pytest.raises(InvalidValue) as caught:
        SamplingParams(**{name: number})  # type: ignore[arg-type]
    assert caught.value.param == name and len(caught.value.message) < 200
    for bias in ({5: number}, {number: 1.0}):
        with pytest.raises(InvalidValue, match="logit_bias"):
            SamplingParams(logit_bias=bias)
    for options in ({"priority": number}, {"deadline_ms": number}):
        with pytest.raises(InvalidValue):
            RequestOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue):
        SamplingParams(structured_outputs={"json": {"const": 10**5000}})
