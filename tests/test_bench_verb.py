"""`baton bench`: several policies on the built-in model, in all modes, and a report that can be read again."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from baton.bench.compare import differences, verdicts
from baton.cli.main import cli
from baton.core.errors import BatonError, CheckFailed, SettingError
from baton.measure import trials
from baton.measure.contenders import contenders
from warm import WarmProcess

SMALL = ["--queries", "5", "--prompt", "uniform:5,20", "--answer", "uniform:3,8", "--repeat", "2", "--alone", "3"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["bench", *SMALL, *arguments], catch_exceptions=True)


def test_policies_are_compared_and_every_answer_is_as_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = run("--policies", "run_to_completion,orca,baton", "--json", str(path))
    assert done.exit_code == 0, done.exception
    assert "6 of 6" in done.output and "idle" in done.output
    report = json.loads(path.read_text())
    assert list(report["contenders"]) == ["run_to_completion", "orca", "baton"]
    for name, part in report["contenders"].items():
        assert part["settings"]["policy"] == name
        assert len(part["runs"]) == 2
        for figures in part["runs"]:
            assert (figures["queries"], figures["failed"], figures["compared"], figures["different"]) == (5, 0, 3, 0)
            assert figures["generated_tokens"] == report["contenders"]["orca"]["runs"][0]["generated_tokens"]
    idle = {name: part["runs"][0]["idle_ratio"] for name, part in report["contenders"].items()}
    assert idle["run_to_completion"] > 0.1 and idle["baton"] == 0


@pytest.mark.parametrize(
    "mode", [["--mode", "timed", "--arrivals", "poisson:50"], ["--mode", "closed", "--at-once", "2"]]
)
def test_modes(mode: list[str]) -> None:
    assert run("--policies", "baton", *mode).exit_code == 0


def test_settings_are_varied_on_one_loaded_model(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = run("--policies", "baton", "--vary", "max-batch-size=1,3", "--repeat", "1", "--json", str(path))
    assert done.exit_code == 0, done.exception
    parts = json.loads(path.read_text())["contenders"]
    assert {name: part["settings"]["max_rows"] for name, part in parts.items()} == {
        "baton max_batch_size=1": 1,
        "baton max_batch_size=3": 3,
    }


def test_what_prompts_share_is_computed_once(tmp_path: Path) -> None:
    """Beginnings in common, what was said before, and blocks of a trace are found in the prefix store."""
    shared = ["--shared-prefix", "64", "--mode", "closed", "--at-once", "1"]
    assert cached(tmp_path, *shared) == 4 * 64 and cached(tmp_path, *shared, "--no-prefix-cache") == 0
    turns = ["--turns", "3", "--prompt", "40", "--answer", "8", "--queries", "2"]
    assert cached(tmp_path, *turns) >= 2 * (32 + 64), "each later turn begins with whole blocks of 32"
    (tmp_path / "mooncake").write_text(
        "".join(
            json.dumps({"timestamp": n, "input_length": 600, "output_length": 4, "hash_ids": [1, n + 2]}) + "\n"
            for n in range(2)
        )
    )
    trace = ["bench", "--workload", str(tmp_path / "mooncake"), "--max-prompt", "96", "--alone", "0", "--repeat", "1"]
    at_once = ["--mode", "closed", "--at-once", "1", "--policies", "baton", "--json", str(tmp_path / "report.json")]
    done = CliRunner().invoke(cli, [*trace, *at_once])
    assert done.exit_code == 0, done.exception
    assert only_run(tmp_path)["cached_tokens"] in range(64, 97)


def cached(folder: Path, *arguments: str) -> int:
    one = ["--policies", "baton", "--repeat", "1", "--json", str(folder / "report.json")]
    done = run(*one, *arguments)
    assert done.exit_code == 0, done.exception
    figures = only_run(folder)
    assert figures["failed"] == 0 and figures["different"] == 0 and figures["compared"] > 0
    return int(figures["cached_tokens"])


def only_run(folder: Path) -> dict[str, Any]:
    (figures,) = json.loads((folder / "report.json").read_text())["contenders"]["baton"]["runs"]
    return dict(figures)


def test_runs_are_added_to_a_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    adds = ["--policies", "baton", "--repeat", "1", "--alone", "0", "--append", "--json", str(path)]
    for many in (1, 2):
        assert run(*adds).exit_code == 0
        assert len(json.loads(path.read_text())["contenders"]["baton"]["runs"]) == many
    for other in (["--queries", "4"], ["--policies", "orca"]):
        done = run(*adds, *other)
        assert isinstance(done.exception, SettingError) and "--append" in str(done.exception)
    first, second = json.loads(path.read_text())["contenders"]["baton"]["runs"]
    assert first["digests"] == second["digests"]


def test_right_answers_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = run("--policies", "orca,baton", "--repeat", "1", "--alone", "0", "--accuracy", "3", "--json", str(path))
    assert done.exit_code == 0, done.exception
    for part in json.loads(path.read_text())["contenders"].values():
        assert set(part["accuracy"]) == {"arithmetic", "sorting", "counting", "spelling", "dates"}
        assert {len(right) for right in part["accuracy"].values()} == {3}
        assert sum(map(sum, part["accuracy"].values())) >= 12
    assert "right answers, dates" in done.output
    same = CliRunner().invoke(cli, ["compare", str(path), str(path)])
    assert same.exit_code == 0, same.exception


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "report.html"
    two = ["--policies", "run_to_completion,baton", "--vary", "max-batch-size=2,4", "--repeat", "1"]
    done = run(*two, "--html", str(path))
    assert done.exit_code == 0, done.exception
    text = path.read_text()
    assert text.count("<svg") == 4 and "run_to_completion max_batch_size=2" in text
    outside = [link for link in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')]+)""", text) if link[0] != "#"]
    assert outside == [] and "<script" not in text
    assert not re.search(r"#010[2-4]", text), "colours are the page's"
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "no two plots share an id"


def test_no_page_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("baton.cli.bench.open_model", lambda *given: pytest.fail("it was begun"))
    done = run("--html", str(tmp_path / "report.html"))
    assert isinstance(done.exception, SettingError) and "[bench]" in str(done.exception)


def test_an_answer_that_is_not_as_alone_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    right = trials.by_themselves
    monkeypatch.setattr("baton.cli.bench.by_themselves", lambda *given: {0: [1, 2, 3], **right(*given)} | {0: [1]})
    assert isinstance(run("--policies", "baton").exception, CheckFailed)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--policies", "best"],
        ["--vary", "dtype=float32"],
        ["--vary", "max_batch_size"],
        ["--prompt", "5000"],
        ["--workload", "/no"],
        ["--workload", "/no", "--turns", "2"],
        ["other", "--accuracy", "3"],
        ["--append"],
        ["--html", "/no/where/report.html"],
        ["--factor", "2"],
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused(arguments: list[str]) -> None:
    assert isinstance(run(*arguments).exception, BatonError)


def test_contenders_are_all_combinations() -> None:
    combinations = contenders(["orca", "baton"], ["max-batch-size=4,8", "prefill_chunk=32,64"])
    assert len(combinations) == 8 and combinations[0].changes == {
        "policy": "orca",
        "max_batch_size": "4",
        "prefill_chunk": "32",
    }
    with pytest.raises(SettingError):
        contenders(["baton"], ["port=1"])


def in_turn(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Reports of two processes that take turns."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = [folder / f"{name}.json" for name in "ab"]
    command = ["-m", "baton", "bench", *SMALL, "--policies", "baton", "--in-turn", str(port), *arguments]
    started = [WarmProcess([*command, "--json", path]) for path in paths]
    for one in started:
        _, said = one.communicate(timeout=300)
        assert one.returncode == 0, said[-2000:]
    return [json.loads(path.read_text()) for path in paths]


def test_two_benches_in_turn_say_what_one_says_by_itself(tmp_path: Path) -> None:
    """Conversations in a closed loop: what is asked next depends on what was said."""
    work = ["--turns", "2", "--mode", "closed", "--at-once", "2"]
    a, b = in_turn(tmp_path, *work)
    runs, others = (one["contenders"]["baton"]["runs"] for one in (a, b))
    names = [run["pair"] for run in runs]
    assert names == [run["pair"] for run in others] and len(set(names)) == 2 and "" not in names
    assert run("--policies", "baton", *work, "--json", str(tmp_path / "alone.json")).exit_code == 0
    alone = json.loads((tmp_path / "alone.json").read_text())["contenders"]["baton"]["runs"][0]
    for figures in (*runs, *others):
        assert figures["digests"] == alone["digests"] and figures["different"] == figures["failed"] == 0
        assert figures["generated_tokens"] == alone["generated_tokens"] and figures["slots"]["useful"] > 0
        assert 0 < figures["first_token"]["max"] <= figures["end_to_end"]["max"] <= figures["seconds"]
    assert {one.word for one in verdicts(a, b)} == {"too few runs"} and differences(a, b) == []
    with pytest.raises(SettingError, match="in turn with others"):
        verdicts(a, {**b, "contenders": {"baton": {"runs": [alone]}}})


def test_a_clock_of_its_own_keeps_no_times() -> None:
    done = run("--in-turn", "4000", "--mode", "timed", "--arrivals", "poisson:9")
    assert isinstance(done.exception, SettingError) and done.exception.param == "in_turn"
