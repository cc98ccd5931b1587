"""The gate: noise never fails it, a real slow-down and one flipped token do."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from baton.bench.compare import differences, interval, permutation_chance, read_report, verdicts
from baton.cli import cli
from baton.errors import CheckFailed, SettingError

FIGURES = ("first_token", "per_token", "inter_token", "end_to_end")


def a_report(
    dice: random.Random, *, runs: int = 5, slower: float = 1.0, noise: float = 0.03, drift: float = 1.0
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
        "failed": 0,
        "digests": ["a", "b", "c"],
    }


def words(a: Any, b: Any) -> set[str]:
    return {one.word for one in verdicts(a, b)}


@pytest.mark.parametrize("drift", [1.0, 1.15, 0.87])
def test_a_against_a_never_fails(drift: float) -> None:
    dice = random.Random(1)
    for _ in range(50):
        assert "worse" not in words(a_report(dice), a_report(dice, drift=drift))


def test_a_slow_down_of_a_tenth_is_found_and_so_is_a_gain() -> None:
    dice = random.Random(2)
    found = [words(a_report(dice, noise=0.01), a_report(dice, noise=0.01, slower=1.10)) for _ in range(20)]
    assert all("worse" in some for some in found)
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
    c = copy.deepcopy(a)
    c["contenders"]["baton"]["runs"][2] |= {"different": 2, "failed": 1}
    assert len(differences(a, c)) == 2


def test_different_works_are_not_compared() -> None:
    a, b = a_report(random.Random(6)), a_report(random.Random(6))
    with pytest.raises(SettingError, match="model"):
        differences(a, {**b, "model": "other"})
    with pytest.raises(SettingError, match="contender"):
        verdicts({**a, "contenders": {"x": {"runs": []}, "y": {"runs": []}}}, b)


def test_statistics_by_hand() -> None:
    assert permutation_chance([1, 2, 3], [10, 20, 30]) == pytest.approx(2 / 20)
    assert permutation_chance([1, 10], [1, 10]) == 1.0
    low, high = interval([2.0] * 4, [3.0] * 4)
    assert low == high == 1.5
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
    assert {one["word"] for one in json.loads(worse.output)["speeds"]} == {"worse"}
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SettingError):
        read_report(tmp_path / "other.json")
