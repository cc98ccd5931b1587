"""Right answers: counted exactly, and a loss is reported if it is more than chance."""

from __future__ import annotations

import random

import pytest

from baton.bench.accuracy import loss, mcnemar
from baton.bench.compare import losses
from baton.core.errors import SettingError


def answers(right: int, asked: int = 100) -> dict[str, list[bool]]:
    return {"dates": [number < right for number in range(asked)], "sorting": [True] * 10}


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1 and mcnemar(1, 0) == 0.5 and mcnemar(0, 1) == 1
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(3, 1) == pytest.approx((4 + 1) / 16)


def test_what_is_lost_beyond_chance_is_found() -> None:
    assert loss(answers(100), answers(95)) is not None
    assert "5 questions" in str(loss(answers(100), answers(95))) and "of 110" in str(loss(answers(100), answers(95)))
    assert loss(answers(100), answers(96)) is None, "4 of 4 lost are 1 in 16 by chance"
    assert loss(answers(95), answers(100)) is None, "a gain"
    assert loss(answers(50), answers(50)) is None


def test_as_many_wrong_ones_elsewhere_are_no_loss() -> None:
    dice = random.Random(1)
    a = {"dates": [dice.random() < 0.9 for _ in range(200)]}
    b = {"dates": dice.sample(a["dates"], 200)}
    assert loss(a, b) is None


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(SettingError):
        loss(answers(100), answers(100, asked=101))


def test_the_gate_takes_them_from_reports() -> None:
    def report(*right: int) -> dict[str, object]:
        return {"contenders": {"baton": {"runs": [], **({"accuracy": answers(*right)} if right else {})}}}

    assert losses(report(), report()) == [] == losses(report(100), report(100))
    assert [one.contender for one in losses(report(100), report(80))] == ["baton"]
    with pytest.raises(SettingError):
        losses(report(100), report())
