"""What chance explains: bootstrap intervals and permutation tests, exact where they can be."""

from __future__ import annotations

import itertools
import math
import operator
import random
from collections.abc import Iterable, Sequence

RESAMPLES = 1000
_MOST_SPLITS = 20_000


def ratio_of_medians(a: Sequence[float], b: Sequence[float]) -> float:
    return median(b) / median(a)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def median(values: Sequence[float]) -> float:
    """As statistics.median, which takes four times as long for so few values."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % of the means of values drawn again with replacement (Efron's percentile bootstrap)."""
    dice = random.Random(seed)
    return _middle([mean(dice.choices(values, k=len(values))) for _ in range(RESAMPLES)])


def interval_of_ratio(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % of the ratios of medians of runs drawn again with replacement."""
    dice = random.Random(seed)
    return _middle([ratio_of_medians(dice.choices(a, k=len(a)), dice.choices(b, k=len(b))) for _ in range(RESAMPLES)])


def _middle(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[int(len(ordered) * 0.025)], ordered[int(len(ordered) * 0.975)]


def sign_chance(logs: Sequence[float], seed: int = 0) -> float:
    """How often the mean is at least so far from 0 if A and B are swapped at random in each pair.

    Two-sided; exact if the pairs are few.
    """
    seen = abs(sum(logs)) - 1e-12
    if 2 ** len(logs) <= _MOST_SPLITS:
        signs: Iterable[Sequence[int]] = itertools.product((1, -1), repeat=len(logs))
    else:
        dice = random.Random(seed)
        signs = itertools.chain([[1] * len(logs)], (dice.choices((1, -1), k=len(logs)) for _ in range(_MOST_SPLITS)))
    as_far: list[bool] = [abs(sum(map(operator.mul, some, logs))) >= seen for some in signs]
    return sum(as_far) / len(as_far)


def permutation_chance(a: Sequence[float], b: Sequence[float], seed: int = 0) -> float:
    """How often a random split of all runs has means of logarithms at least so far apart (two-sided; exact if few)."""
    values = [math.log(value) for value in (*a, *b)]
    total, size = sum(values), len(a)

    def apart(chosen: Sequence[float]) -> float:
        part = sum(chosen)
        return abs(part / size - (total - part) / (len(values) - size))

    seen = apart(values[:size]) - 1e-12
    if math.comb(len(values), size) <= _MOST_SPLITS:
        splits = [apart(split) >= seen for split in itertools.combinations(values, size)]
    else:
        dice = random.Random(seed)
        splits = [True, *(apart(dice.sample(values, size)) >= seen for _ in range(_MOST_SPLITS))]
    return sum(splits) / len(splits)
