"""The first sentence of a run's page: who is best, by what was asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from baton.bench.page import _verdict


def runs(**some: list[tuple[float, float, float]]) -> Any:
    """Tokens a second, queries a second and those within the goal, of each run."""
    names = ("tokens_per_second", "queries_per_second", "goodput")
    return {
        name: [SimpleNamespace(**dict(zip(names, one, strict=True))) for one in each] for name, each in some.items()
    }


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (runs(a=[(40, 2, 2)], b=[(20, 1, 1)]), "a generates the most tokens a second, 40: 2.00 times those of b."),
        (
            runs(a=[(40, 2, 2), (10, 2, 2)], b=[(20, 1, 1)]),
            "a generates the most tokens a second, 25: 1.25 times those of b (their runs overlap).",
        ),
        (
            runs(a=[(41, 2, 1)], b=[(40, 2, 1.5)]),
            "b answers the most queries within the goal, 1.50 a second: 1.50 times those of a.",
        ),
        (
            runs(a=[(41, 2, 0)], b=[(40, 2, 2)]),
            "b answers the most queries within the goal, 2.00 a second: against none of those of a.",
        ),
        (runs(a=[(41, 2, 0)]), ""),
    ],
)
def test_the_best_is_who_meets_the_goal_if_it_was_missed(measured: Any, said: str) -> None:
    assert _verdict(measured) == (f"<p>{said}</p>" if said else "")
