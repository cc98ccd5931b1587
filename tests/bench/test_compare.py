"""The gate: noise never fails it, a real slow-down and one flipped token do."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from baton.bench.compare import differences, read_report, verdicts
from baton.bench.statistics import interval, interval_of_ratio, permutation_chance, sign_chance
from baton.cli.main import cli
from baton.core.errors import CheckFailed, SettingError

FIGURES = ("first_token", "per_token", "inter_token", "end_to_end")


def a_report(
    dice: random.Random, *, runs: int = 8, slower: float = 1.0, noise: float = 0.03, drift: float = 1.0
) -> Any:
    """Runs whose times vary by `noise`, on a machine that takes `drift` times as long for everything."""
    some = [a_run(dice, slower, noise, drift) for _ in range(runs)]
    return {"baton_bench": 1, "workload": "w", "model": "m", "dtype": "d", "contenders": {"baton": {"runs": some}}}


def a_run(dice: random.Random, slower: float, noise: float, drift: float) -> dict[str, Any]:
    def time(seconds: float) -> float:
        return seconds * slower * drift * dice.lognormvariate(0, noise)

    run: dict[str, Any] = {name: {"p50": time(0.2), "p99": time(0.9)} for name in FIGURES}
    return {
        **run,
        "tokens_per_second": 1 / time(0.01),
        "machine_speed": dice.lognormvariate(0, 0.01) / drift,
        "different": 0,
        "pair": "",
        "failed": 0,
        "digests": ["a", "b", "c"],
    }


def words(a: Any, b: Any) -> set[str]:
    return {one.word for one in verdicts(a, b)}


@pytest.mark.parametrize("drift", [1.0, 1.15, 0.87])
def test_a_against_a_never_fails(drift: float) -> None:
    dice = random.Random(1)
    for _ in range(25):
        assert "worse" not in words(a_report(dice), a_report(dice, drift=drift))


def in_turn(dice: random.Random, slower: float, noise: float = 0.04) -> tuple[Any, Any]:
    """Reports whose pairs of runs share the machine's whims, which are far greater than what is looked for."""
    a, b = a_report(dice, runs=0), a_report(dice, runs=0)
    for number in range(12):
        whim = dice.lognormvariate(0, 0.4)
        for report, share in ((a, 1.0), (b, slower)):
            one = a_run(dice, share, noise, whim)
            report["contenders"]["baton"]["runs"].append({**one, "pair": f"x-{number}", "machine_speed": 1.0})
    return a, b


def test_runs_in_turn_are_compared_pair_by_pair() -> None:
    dice = random.Random(8)
    same = [verdicts(*in_turn(dice, 1.0)) for _ in range(50)]
    assert all(one.word == "same" and one.in_turn for some in same for one in some)
    slow = [verdicts(*in_turn(dice, 1.10)) for _ in range(20)]
    assert all("worse" in {one.word for one in some} for some in slow)
    one = next(one for one in slow[0] if one.word == "worse")
    assert 1.03 < one.low < one.ratio < one.high < 1.2
    assert f"{one.figure}: B takes {one.ratio:.3f} times" in str(one) and "12 pairs of runs in turn" in str(one)
    assert "better" in {one.word for one in verdicts(*in_turn(dice, 0.9))}
    a, b = in_turn(dice, 1.0)
    b["contenders"]["baton"]["runs"].pop()
    with pytest.raises(SettingError, match="in turn"):
        verdicts(a, b)


def test_a_slow_down_of_a_tenth_is_found_and_so_is_a_gain() -> None:
    dice = random.Random(2)
    verdicts = [words(a_report(dice, noise=0.01), a_report(dice, noise=0.01, slower=1.10)) for _ in range(20)]
    assert all("worse" in some for some in verdicts)
    assert "better" in words(a_report(dice, noise=0.01), a_report(dice, noise=0.01, slower=0.85))


def test_a_slow_down_within_the_tolerance_is_no_matter() -> None:
    dice = random.Random(3)
    assert words(a_report(dice, noise=0.002), a_report(dice, noise=0.002, slower=1.03)) == {"same"}
    some = verdicts(a_report(dice, noise=0.002), a_report(dice, noise=0.002, slower=1.03), tolerance=0.01)
    assert {one.word for one in some} == {"worse"}


def test_too_few_runs_say_so() -> None:
    dice = random.Random(4)
    assert words(a_report(dice, runs=3), a_report(dice, runs=3, slower=2.0)) == {"too few runs"}


def test_one_flipped_token_is_found() -> None:
    a = a_report(random.Random(5))
    assert differences(a, copy.deepcopy(a)) == []
    b = copy.deepcopy(a)
    b["contenders"]["baton"]["runs"][0]["digests"][1] = "x"
    assert [one.what for one in differences(a, b)] == ["1 of 3 answers changed"]
    last = copy.deepcopy(a)
    last["contenders"]["baton"]["runs"][-1]["digests"][2] = "x"
    assert [one.what for one in differences(a, last)] == ["1 of 3 answers changed"], "in one run of many"
    c = copy.deepcopy(a)
    c["contenders"]["baton"]["runs"][2] |= {"different": 2, "failed": 1}
    assert len(differences(a, c)) == 2


def test_answers_are_held_against_those_to_the_same_prompts() -> None:
    a = a_report(random.Random(9), runs=2)
    for number, run in enumerate(a["contenders"]["baton"]["runs"]):
        run |= {"prompts": number, "digests": [f"{number}", "b"]}
    b = copy.deepcopy(a)
    b["contenders"]["baton"]["runs"].reverse()
    assert differences(a, b) == []
    b["contenders"]["baton"]["runs"][0]["digests"][0] = "0"
    assert [one.what for one in differences(a, b)] == ["1 of 2 answers changed"]
    for run in b["contenders"]["baton"]["runs"]:
        run["prompts"] += 2
    with pytest.raises(SettingError, match="same prompts"):
        differences(a, b)


def test_different_works_are_not_compared() -> None:
    a, b = a_report(random.Random(6)), a_report(random.Random(6))
    with pytest.raises(SettingError, match="model"):
        differences(a, {**b, "model": "other"})
    with pytest.raises(SettingError, match="contender"):
        verdicts({**a, "contenders": {"x": {"runs": []}, "y": {"runs": []}}}, b)


def test_statistics_by_hand() -> None:
    assert permutation_chance([1, 2, 3], [10, 20, 30]) == pytest.approx(2 / 20)
    assert permutation_chance([1, 10], [1, 10]) == 1.0
    assert interval_of_ratio([2.0] * 4, [3.0] * 4) == (1.5, 1.5)
    assert interval([0.5] * 4) == (0.5, 0.5)
    low, high = interval([0.0, 1.0] * 50)
    assert 0.38 < low < 0.43 and 0.57 < high < 0.62, "half a standard deviation's fifth to either side"
    assert sign_chance([1.0, 2.0, 3.0]) == 2 / 8 and sign_chance([1.0, -1.0]) == 1.0
    assert sign_chance([1.0] * 20) < 0.001, "more signs than are tried"
    many = [1 + n / 1000 for n in range(20)]
    assert permutation_chance(many, [2 * value for value in many]) < 0.001, "more splits than are tried"


def test_the_verb_fails_for_what_is_worse_alone(tmp_path: Path) -> None:
    dice = random.Random(7)
    paths = {}
    for name, report in {"a": a_report(dice, noise=0.01), "b": a_report(dice, noise=0.01, slower=1.3)}.items():
        paths[name] = str(tmp_path / f"{name}.json")
        Path(paths[name]).write_text(json.dumps(report))
    assert read_report(paths["a"])["model"] == "m"
    same = CliRunner().invoke(cli, ["compare", paths["a"], paths["a"]])
    assert same.exit_code == 0 and "same" in same.output
    worse = CliRunner().invoke(cli, ["compare", paths["a"], paths["b"], "--json"])
    assert isinstance(worse.exception, CheckFailed)
    assert re.search(r"baton, tokens a second: B takes 1\.\d+ times as long \(95 %: 1\.\d+ to", str(worse.exception))
    assert {one["word"] for one in json.loads(worse.output)["speeds"]} == {"worse"}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SettingError):
        read_report(tmp_path / "other.json")
