"""Is B worse than A? Speed with the noise of its runs in mind, and equality of outputs, in one verdict.

A figure is worse where all of these hold: the bootstrap interval of the ratio of medians lies beyond the tolerance; an
exact permutation test of the runs finds that chance does it rarely enough (Holm-Bonferroni over the figures); and both
hold again after each run's figures are divided by how fast the machine itself was just before it, so that an hour in
which everything is slow is not taken for a change of the code.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baton.bench.accuracy import loss
from baton.errors import SettingError

TOLERANCE = 0.05
ALPHA = 0.05
RESAMPLES = 1000
_MOST_SPLITS = 20_000

Run = Mapping[str, Any]


def _at(name: str, key: str) -> Callable[[Run], float | None]:
    return lambda run: run[name].get(key)


# Name, how to read it, and whether more is better.
SPEEDS: tuple[tuple[str, Callable[[Run], float | None], bool], ...] = (
    ("tokens a second", lambda run: run["tokens_per_second"], True),
    ("first token, p50", _at("first_token", "p50"), False),
    ("time per token, p50", _at("per_token", "p50"), False),
    ("gap between tokens, p99", _at("inter_token", "p99"), False),
    ("end to end, p50", _at("end_to_end", "p50"), False),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure of one contender. `ratio`: of the times, B to A, above 1 where B is slower; with its 95 % interval.

    `adjusted`: the same after division by the machine's speed. `chance`: the permutation test's p. `word`: "worse",
    "better", "same", or "too few runs" where no number of runs this small could tell.
    """

    contender: str
    figure: str
    a: float
    b: float
    ratio: float
    low: float
    high: float
    adjusted: float
    chance: float
    word: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Outputs that are not the same: why a comparison fails however fast B is."""

    contender: str
    what: str


def read_report(path: str | Path) -> dict[str, Any]:
    """Raises SettingError."""
    try:
        found = json.loads(Path(path).read_text())
    except OSError as error:
        raise SettingError(f"{path}: {error.strerror}", param="report") from None
    except ValueError:
        raise SettingError(f"{path} is no report of baton bench", param="report") from None
    if not isinstance(found, dict) or found.get("baton_bench") != 1:
        raise SettingError(f"{path} is no report of baton bench", param="report")
    return found


def pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Sequence[Run], Sequence[Run]]]:
    """Runs of the contenders of both reports: of the same name, or the only ones. Raises SettingError."""
    return {name: (ours["runs"], theirs["runs"]) for name, (ours, theirs) in _contenders(a, b).items()}


def _contenders(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    ours, theirs = a["contenders"], b["contenders"]
    common = [name for name in ours if name in theirs]
    if common:
        return {name: (ours[name], theirs[name]) for name in common}
    if len(ours) == len(theirs) == 1:
        (first,), (second,) = ours, theirs
        return {f"{first} / {second}": (ours[first], theirs[second])}
    raise SettingError("the two reports have no contender of the same name", param="report")


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Answers that changed or are not as alone, and queries that fail. Raises SettingError for two different works."""
    for what in ("workload", "model", "dtype"):
        if a.get(what) != b.get(what):
            raise SettingError(f"{what} differs: {a.get(what)} and {b.get(what)}", param="report")
    found = []
    for name, (ours, theirs) in pairs(a, b).items():
        alone = sum(run["different"] for run in theirs)
        if alone:
            found.append(Difference(name, f"{alone} answers of B are not what their queries give alone"))
        more = max(run["failed"] for run in theirs) - max(run["failed"] for run in ours)
        if more > 0:
            found.append(Difference(name, f"{more} more queries fail"))
        changed = sum(x != y for x, y in zip(ours[0]["digests"], theirs[0]["digests"], strict=True))
        if changed:
            found.append(Difference(name, f"{changed} of {len(ours[0]['digests'])} answers changed"))
    return found


def losses(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Fewer right answers by more than chance, where both reports have them. Raises SettingError."""
    found = []
    for name, (ours, theirs) in _contenders(a, b).items():
        if ("accuracy" in ours) != ("accuracy" in theirs):
            raise SettingError("only one of the two reports has right answers (--accuracy)", param="report")
        worse = loss(ours["accuracy"], theirs["accuracy"]) if "accuracy" in ours else None
        if worse:
            found.append(Difference(name, worse))
    return found


def verdicts(
    a: Mapping[str, Any], b: Mapping[str, Any], *, tolerance: float = TOLERANCE, alpha: float = ALPHA
) -> list[Verdict]:
    """Of each speed figure of each contender that both have."""
    found = []
    for name, (ours, theirs) in pairs(a, b).items():
        tests = list(_tests(name, ours, theirs, tolerance))
        ordered = sorted(tests, key=lambda test: test.chance)
        # Holm-Bonferroni: the smallest chance is held against alpha / all of them, the next against one less, ...
        sure = set[str]()
        for rank, test in enumerate(ordered):
            if test.chance > alpha / (len(ordered) - rank):
                break
            sure.add(test.figure)
        # Of as many runs each, a split and its mirror image are equally far apart.
        fewest = (1 + (len(ours) == len(theirs))) / math.comb(len(ours) + len(theirs), len(ours))
        for test in tests:
            word = test.word if test.figure in sure else "same"
            if fewest > alpha / len(tests):
                word = "too few runs"
            found.append(replace(test, word=word))
    return found


def _tests(name: str, ours: Sequence[Run], theirs: Sequence[Run], tolerance: float) -> Iterator[Verdict]:
    """Each figure by itself; the word is what its interval says."""
    for figure, read, more_is_better in SPEEDS:
        before, after = (_times(runs, read, more_is_better, adjust=False) for runs in (ours, theirs))
        fair_before, fair_after = (_times(runs, read, more_is_better, adjust=True) for runs in (ours, theirs))
        if not before or not after:
            continue
        low, high = interval(before, after)
        fair_low, fair_high = interval(fair_before, fair_after)
        chance = max(permutation_chance(before, after), permutation_chance(fair_before, fair_after))
        word = "same"
        if min(low, fair_low) > 1 + tolerance:
            word = "worse"
        elif max(high, fair_high) < 1 / (1 + tolerance):
            word = "better"
        a, b = (1 / statistics.median(side) if more_is_better else statistics.median(side) for side in (before, after))
        adjusted = _ratio(fair_before, fair_after)
        yield Verdict(name, figure, a, b, _ratio(before, after), low, high, adjusted, chance, word)


def _times(runs: Sequence[Run], read: Callable[[Run], float | None], inverse: bool, *, adjust: bool) -> list[float]:
    """The figure of each run as a time, so that more is always worse; divided by what the machine took for its own."""
    found = []
    for run in runs:
        value = read(run)
        if value:
            time = 1 / value if inverse else value
            found.append(time * (run["machine_speed"] if adjust else 1.0))
    return found


def _ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return _median(b) / _median(a)


def _median(values: Sequence[float]) -> float:
    """As statistics.median, which takes four times as long for so few."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2


def interval(a: Sequence[float], b: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % of the ratios of medians of runs drawn again with replacement (Efron's percentile bootstrap)."""
    dice = random.Random(seed)
    ratios = sorted(_ratio(dice.choices(a, k=len(a)), dice.choices(b, k=len(b))) for _ in range(RESAMPLES))
    return ratios[int(RESAMPLES * 0.025)], ratios[int(RESAMPLES * 0.975)]


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
