"""The table of limits: each is a setting, holds at its value, and is named with its flag when it is passed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from baton.core.config import Config, make_config
from baton.core.errors import SettingError
from baton.core.limits import LimitExceeded, Limits, flag_of, table
from baton.core.query import SamplingParams

LIMITS = Limits()


@pytest.mark.parametrize(
    ("limit", "field", "at", "above"),
    [
        ("max_n", "n", 16, 17),
        ("max_temperature", "temperature", 2.0, 2.1),
        ("max_penalty", "presence_penalty", -2.0, 2.5),
        ("max_penalty", "frequency_penalty", 2.0, -2.5),
        ("max_stop_strings", "stop", ("a",) * 4, ("a",) * 5),
        ("max_stop_characters", "stop", ("x" * 256,), ("x" * 257,)),
        ("max_stop_tokens", "stop_token_ids", (1,) * 128, (1,) * 129),
        ("max_logprobs", "logprobs", 20, 21),
        ("max_logprobs", "prompt_logprobs", 20, 21),
        ("max_logit_bias", "logit_bias", dict.fromkeys(range(300), 1.0), dict.fromkeys(range(301), 1.0)),
        ("max_bias", "logit_bias", {3: -100.0}, {3: 101.0}),
    ],
)
def test_a_limit_holds_names_itself_and_can_be_raised(limit: str, field: str, at: Any, above: Any) -> None:
    LIMITS.check(SamplingParams(**{field: at}))
    beyond = SamplingParams(**{field: above})
    with pytest.raises(LimitExceeded) as caught:
        LIMITS.check(beyond)
    assert caught.value.param == field and caught.value.status == 400
    assert flag_of(limit) in caught.value.message
    assert f"the limit is {getattr(LIMITS, limit):g}" in caught.value.message
    dataclasses.replace(LIMITS, **{limit: 1000}).check(beyond)


def test_each_limit_is_a_setting_with_a_flag() -> None:
    assert {row.flag for row in table(Config())} == {flag_of(known.name) for known in dataclasses.fields(Limits)}
    assert all(row.meaning for row in table(LIMITS))
    config = make_config({"max_body_bytes": "2MiB", "max_n": "3", "queue_timeout": "1.5"})
    assert (config.max_body_bytes, config.max_n, config.queue_timeout) == (2 * 2**20, 3, 1.5)
    with pytest.raises(SettingError, match="--max-body-bytes"):
        make_config({"max_body_bytes": "much"})
    with pytest.raises(SettingError, match="--max-n"):
        make_config({"max_n": 0})
