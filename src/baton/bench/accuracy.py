"""Right answers to questions with known answers, of two runs on the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from baton.core.errors import SettingError

ALPHA = 0.05

Right = Mapping[str, Sequence[bool]]
"""For each task, whether each of its questions was answered rightly."""


def loss(a: Right, b: Right) -> str | None:
    """What B answers worse by more than chance, in words; None if nothing. Raises SettingError.

    McNemar's exact test, one-sided: of the questions that only one of both answers rightly, B would have each with a
    chance of one half (McNemar, Psychometrika 1947). All tasks together, because it is not known beforehand which a
    change harms.
    """
    if {task: len(some) for task, some in a.items()} != {task: len(some) for task, some in b.items()}:
        raise SettingError("the two reports asked other questions (--accuracy)", param="report")
    both = [(x, y) for task in a for x, y in zip(a[task], b[task], strict=True)]
    lost, won = both.count((True, False)), both.count((False, True))
    chance = mcnemar(lost, won)
    if chance > ALPHA:
        return None
    return (
        f"{lost} questions are answered wrongly that were answered rightly, {won} the other way round, of {len(both)} "
        f"(McNemar's exact test: {chance:.4f} by chance)"
    )


def mcnemar(lost: int, won: int) -> float:
    """The chance of so many lost or more, of all that differ, if each is lost with a chance of one half."""
    differ = lost + won
    chance: float = sum(math.comb(differ, many) for many in range(lost, differ + 1)) / 2**differ
    return chance
