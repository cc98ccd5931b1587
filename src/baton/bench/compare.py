"""Is B worse than A? Speed, considering the noise of its runs, and equality of outputs, in one verdict.

Runs that were made in turn, iteration by iteration, are compared pair by pair. A figure is worse if both hold: the
bootstrap interval of the ratio of times is beyond the tolerance; and by an exact permutation test of the runs, chance
does it rarely enough (Holm-Bonferroni over the figures). If runs were made apart, both must hold again after each run's
figures are divided by the machine's speed just before it, so that a slow hour is not taken for a change of the code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from baton.bench.accuracy import loss
from baton.bench.statistics import (
    interval,
    interval_of_ratio,
    mean,
    median,
    permutation_chance,
    ratio_of_medians,
    sign_chance,
)
from baton.core.errors import SettingError
from baton.core.files import read_object

TOLERANCE = 0.03
ALPHA = 0.01

Run = Mapping[str, Any]
Read = Callable[[Run], float | None]


def _at(name: str, key: str) -> Read:
    return lambda run: run[name].get(key)


# Name, how to read it, and whether more is better.
SPEEDS: tuple[tuple[str, Read, bool], ...] = (
    ("tokens a second", lambda run: run["tokens_per_second"], True),
    ("first token, p50", _at("first_token", "p50"), False),
    ("time per token, p50", _at("per_token", "p50"), False),
    ("gap between tokens, p99", _at("inter_token", "p99"), False),
    ("end to end, p50", _at("end_to_end", "p50"), False),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One figure of one contender. `ratio`: of the times, B to A, above 1 if B is slower; with its 95 % interval.

    `adjusted`: the same after division by the machine's speed, if runs were made apart. `chance`: the permutation
    test's p. `runs`: of each, or pairs if they were made `in_turn`. `word`: "worse", "better", "same", or "too few
    runs" if no number of runs this small could tell.
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
    runs: int
    in_turn: bool

    def __str__(self) -> str:
        runs = f"{self.runs} {'pairs of runs in turn' if self.in_turn else 'runs of each'}"
        interval = f"95 %: {self.low:.3f} to {self.high:.3f}"
        return (
            f"{self.contender}, {self.figure}: B takes {self.ratio:.3f} times as long ({interval}; {runs}), {self.word}"
        )


@dataclass(frozen=True, slots=True)
class Difference:
    """Outputs that are not the same: why a comparison fails however fast B is."""

    contender: str
    what: str


def read_report(path: str | Path) -> dict[str, Any]:
    """Raises SettingError."""
    contents = read_object("", path, param="report")
    if contents.get("baton_bench") != 1 or not isinstance(contents.get("contenders"), dict):
        raise SettingError(f"{path} is no report of baton bench", param="report")
    return contents


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
    """Answers that changed or differ from alone, and queries that fail.

    Raises SettingError for two different workloads.
    """
    for what in ("workload", "model", "dtype"):
        if a.get(what) != b.get(what):
            raise SettingError(f"{what} differs: {a.get(what)} and {b.get(what)}", param="report")
    problems = []
    for name, (ours, theirs) in pairs(a, b).items():
        alone = sum(run["different"] for run in theirs)
        if alone:
            problems.append(Difference(name, f"{alone} answers of B are not what their queries give alone"))
        more = max(run["failed"] for run in theirs) - max(run["failed"] for run in ours)
        if more > 0:
            problems.append(Difference(name, f"{more} more queries fail"))
        # In any of its runs: an answer that differs one time in twelve counts as changed.
        changed = {at for pair in _alike(ours, theirs) for at in _changed(*pair)}
        if changed:
            problems.append(Difference(name, f"{len(changed)} of {len(ours[0]['digests'])} answers changed"))
    return problems


def _alike(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Each run of B with the first run of A that asked the same prompts. Raises SettingError if there is none."""
    first: dict[int, Run] = {}
    for run in ours:
        first.setdefault(run.get("prompts", 0), run)
    pairs = [(first[number], run) for run in theirs if (number := run.get("prompts", 0)) in first]
    if not pairs:
        raise SettingError("no two runs of the reports asked the same prompts", param="report")
    return pairs


def _changed(a: Run, b: Run) -> list[int]:
    """Numbers of the changed answers."""
    return [at for at, (one, other) in enumerate(zip(a["digests"], b["digests"], strict=True)) if one != other]


def losses(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """Fewer right answers by more than chance, if both reports have them. Raises SettingError."""
    problems = []
    for name, (ours, theirs) in _contenders(a, b).items():
        if ("accuracy" in ours) != ("accuracy" in theirs):
            raise SettingError("only one of the two reports has right answers (--accuracy)", param="report")
        worse = loss(ours["accuracy"], theirs["accuracy"]) if "accuracy" in ours else None
        if worse:
            problems.append(Difference(name, worse))
    return problems


def verdicts(
    a: Mapping[str, Any], b: Mapping[str, Any], *, tolerance: float = TOLERANCE, alpha: float = ALPHA
) -> list[Verdict]:
    """The verdict of each speed figure of each common contender. Raises SettingError if only one has runs in turn."""
    results = []
    for name, (ours, theirs) in pairs(a, b).items():
        together = made_in_turn(ours, theirs)
        if together is None:
            tests = list(_apart(name, ours, theirs, tolerance))
            # With as many runs each, a split and its mirror image are equally far apart.
            fewest = (1 + (len(ours) == len(theirs))) / math.comb(len(ours) + len(theirs), len(ours))
        else:
            tests, fewest = list(_in_turn(name, together, tolerance)), 2 / 2 ** len(together)
        sure = _sure(tests, alpha)
        for test in tests:
            word = test.word if test.figure in sure else "same"
            if fewest > alpha / len(tests):
                word = "too few runs"
            results.append(replace(test, word=word))
    return results


def _sure(tests: Sequence[Verdict], alpha: float) -> set[str]:
    """Figures that chance does not explain (Holm-Bonferroni).

    The smallest chance is compared with alpha / all of them, the next with alpha / (one less), ...
    """
    ordered = sorted(tests, key=lambda test: test.chance)
    sure = set[str]()
    for rank, test in enumerate(ordered):
        if test.chance > alpha / (len(ordered) - rank):
            break
        sure.add(test.figure)
    return sure


def made_in_turn(ours: Sequence[Run], theirs: Sequence[Run]) -> list[tuple[Run, Run]] | None:
    """The pairs; None if all runs were made apart. Raises SettingError if some have their partner elsewhere."""
    mine, others = ({run.get("pair", ""): run for run in runs} for runs in (ours, theirs))
    if mine.keys() == others.keys() == {""}:
        return None
    if mine.keys() != others.keys() or "" in mine:
        raise SettingError("runs were made in turn with others, not with these", param="report")
    return [(run, others[name]) for name, run in mine.items()]


def _in_turn(name: str, together: Sequence[tuple[Run, Run]], tolerance: float) -> Iterator[Verdict]:
    """Each figure by itself; its interval gives the word."""
    for figure, read, more_is_better in SPEEDS:
        times = [tuple(_time(run, read, more_is_better) for run in pair) for pair in together]
        logs = [math.log(after / before) for before, after in times if before and after]
        if not logs:
            continue
        a, b = (median([side[at] or math.nan for side in times]) for at in (0, 1))
        low, high = map(math.exp, interval(logs))
        yield Verdict(
            contender=name,
            figure=figure,
            a=1 / a if more_is_better else a,
            b=1 / b if more_is_better else b,
            ratio=math.exp(mean(logs)),
            low=low,
            high=high,
            adjusted=math.exp(mean(logs)),
            chance=sign_chance(logs),
            word=_word(low, high, tolerance),
            runs=len(together),
            in_turn=True,
        )


def _apart(name: str, ours: Sequence[Run], theirs: Sequence[Run], tolerance: float) -> Iterator[Verdict]:
    """Each figure by itself; its interval gives the word."""
    for figure, read, more_is_better in SPEEDS:
        before, after = (_times(runs, read, more_is_better, adjust=False) for runs in (ours, theirs))
        fair_before, fair_after = (_times(runs, read, more_is_better, adjust=True) for runs in (ours, theirs))
        if not before or not after:
            continue
        low, high = interval_of_ratio(before, after)
        fair_low, fair_high = interval_of_ratio(fair_before, fair_after)
        a, b = map(median, (before, after))
        yield Verdict(
            contender=name,
            figure=figure,
            a=1 / a if more_is_better else a,
            b=1 / b if more_is_better else b,
            ratio=b / a,
            low=low,
            high=high,
            adjusted=ratio_of_medians(fair_before, fair_after),
            chance=max(permutation_chance(before, after), permutation_chance(fair_before, fair_after)),
            word=_word(min(low, fair_low), max(high, fair_high), tolerance),
            runs=min(len(before), len(after)),
            in_turn=False,
        )


def _word(low: float, high: float, tolerance: float) -> str:
    return "worse" if low > 1 + tolerance else "better" if high < 1 / (1 + tolerance) else "same"


def _times(runs: Sequence[Run], read: Read, inverse: bool, *, adjust: bool) -> list[float]:
    """The figure of each run that has it, as a time; divided by the machine's speed if asked."""
    times = ((run, _time(run, read, inverse)) for run in runs)
    return [time * (run["machine_speed"] if adjust else 1.0) for run, time in times if time]


def _time(run: Run, read: Read, inverse: bool) -> float | None:
    """The figure turned so that more is worse."""
    value = read(run)
    return 1 / value if value and inverse else value
