"""`baton tune`: what is measured becomes costs, choices and advice; the numbers themselves are the machine's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from baton.bench.costmodel import MeasuredCosts, read_costs
from baton.cli.main import cli
from baton.core.config import make_config
from baton.measure.format_names import variants
from baton.measure.tune import advice, choices, chunk_for

# Steps cost the same up to 8 rows, and in proportion beyond: more rows than 8 bring nothing.
COSTS = MeasuredCosts(
    decode=((1, 0.010), (8, 0.010), (32, 0.040)),
    fill=((16, 0.010), (64, 0.040), (256, 0.160)),
    column_seconds=0.0,
    pair_seconds=0.0,
)


def test_throughput_and_latency_by_hand() -> None:
    one, *_, eight = choices(COSTS, 8, prompt_tokens=64, answer_tokens=100)
    assert one.per_token == pytest.approx(0.010 + 0.040 / 100)
    assert eight.per_token == pytest.approx(0.010 + 8 * 0.040 / 100)
    assert eight.tokens_per_second == pytest.approx(8 / eight.per_token)


def test_the_fewest_rows_of_the_most_throughput_are_advised() -> None:
    some = choices(replace(COSTS, fill=((1, 1e-9), (256, 1e-9))), 32, prompt_tokens=16, answer_tokens=100)
    best = advice(some, None)
    assert best is not None and best.rows == 8


def test_a_goal_bounds_the_rows_and_one_that_cannot_be_met_says_so() -> None:
    some = choices(COSTS, 32, prompt_tokens=64, answer_tokens=20)
    tight = advice(some, 0.015)
    assert tight is not None and tight.per_token <= 0.015 and tight.rows == 2
    assert advice(some, 0.005) is None


def test_a_chunk_holds_up_running_rows_no_longer_than_asked() -> None:
    assert chunk_for(COSTS, 8, 100, stall_seconds=0.2) == 256
    assert chunk_for(COSTS, 8, 100, stall_seconds=0.05) == 64
    assert chunk_for(replace(COSTS, pair_seconds=1e-5), 8, 100, stall_seconds=0.05) == 16


def test_the_verb_measures_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    done = CliRunner().invoke(cli, ["tune", "--most-rows", "4", "--max-model-len", "256", "--json", str(path)])
    assert done.exit_code == 0, done.exception
    assert "--max-batch-size" in done.output and "--prefill-chunk" in done.output
    costs, more = read_costs(path)
    assert [count for count, _ in costs.decode] == [1, 2, 3, 4]
    assert min(costs.step(rows, 8) for rows in (1, 2, 3, 4)) > 0 and min(seconds for _, seconds in costs.fill) >= 0
    assert len(more["choices"]) == 4 and more["advice"]["rows"] in range(1, 5)
    assert json.loads(path.read_text())["measured"]
    again = CliRunner().invoke(
        cli, ["simulate", "--costs", str(path), "--queries", "6", "--prompt", "20", "--answer", "9"]
    )
    assert again.exit_code == 0, again.exception


def test_formats_are_measured_in_turn_and_scored_on_a_text(tmp_path: Path) -> None:
    path, text = tmp_path / "formats.json", tmp_path / "text.txt"
    text.write_text("The cat sat on the mat; then 17 + 25 = 42 birds came, and nobody knew why. " * 4)
    flags = ["--most-rows", "2", "--max-model-len", "128", "--device", "cpu", "--json", str(path), "--text", str(text)]
    done = CliRunner().invoke(cli, ["tune", "--formats", "none,int8,int4", *flags])
    assert done.exit_code == 0, done.exception
    contents = json.loads(path.read_text())
    plain, int8, int4 = contents["formats"]
    assert [one["name"] for one in contents["formats"]] == ["none", "int8", "int4"]
    assert plain["in_turn_with"] == ["int8", "int4"] and plain["passes"] == int4["passes"] >= 5
    assert plain["weight_bytes"] > int8["weight_bytes"] > int4["weight_bytes"] > 0
    assert all(one["one_row"] > 0 and one["rows"] in (1, 2) for one in contents["formats"])
    assert abs(plain["text"]["ratio"] - 1) < abs(int4["text"]["ratio"] - 1) < 0.5
    assert "of the model alone" in done.output and "int4" in done.output


def test_a_format_that_the_model_cannot_have_is_named_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "formats.json"
    flags = ["--most-rows", "1", "--max-model-len", "64", "--device", "cpu", "--no-compile", "--json", str(path)]
    done = CliRunner().invoke(cli, ["tune", "--formats", "int8,none", *flags])
    assert done.exit_code == 0, done.exception
    contents = json.loads(path.read_text())
    assert [one["name"] for one in contents["formats"]] == ["none"]
    assert "leave out --no-compile" in contents["refused"]["int8"] and "int8 is refused" in done.output
    done = CliRunner().invoke(cli, ["tune", "--formats", "int8", *flags])
    assert done.exit_code != 0 and "leave out --no-compile" in str(done.exception) + done.output


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--formats", "int5"], "there is none, int8"),
        (["--formats", "int8,int8"], "twice"),
        (["--formats", "int8", "--quantize", "int4"], "leave out --quantize int4"),
        (["--formats", "float32", "--dtype", "bfloat16"], "leave out --dtype bfloat16"),
        (["--text", __file__], "none are named"),
    ],
)
def test_formats_that_cannot_be_compared_are_refused(flags: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, ["tune", *flags])
    assert done.exit_code != 0 and says in str(done.exception) + done.output


def test_all_formats_are_the_saved_one_and_what_cpus_pack() -> None:
    config = make_config({})
    some = variants(config, "all")
    assert [one.name for one in some] == ["none", "int8", "int4", "int4:exact"]
    assert [one.of(config).quantize for one in some] == ["none", "int8", "int4", "int4:exact"]
    (half,) = variants(config, "float16")
    assert half.of(config).dtype == "float16" and half.of(config).quantize == "none"
