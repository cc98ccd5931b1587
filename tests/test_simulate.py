"""The simulator: the engine that serves, on a device that only takes time; its seconds can be added up by hand."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from baton import builtin
from baton.bench.costmodel import MeasuredCosts, at, in_passes, middle, read_costs, rising, save
from baton.bench.drive import Mode
from baton.bench.workload import Ask, Workload, make_workload
from baton.cli.main import cli
from baton.core.config import make_config
from baton.core.errors import BatonError, SettingError
from baton.core.footprint import Columns, Footprint
from baton.core.settings import Settings, load_settings
from baton.kv.rectangle import footprint
from baton.loader.load import load
from baton.measure.contenders import Contender
from baton.measure.fleet import Fleet
from baton.measure.replicas import Replicas, replicas_of
from baton.measure.simulate import simulated
from baton.measure.trials import settings_of, trials

COSTS = MeasuredCosts(
    decode=((1, 0.010), (8, 0.017)),
    fill=((16, 0.020), (64, 0.068)),
    column_seconds=0.0,
    pair_seconds=0.0,
    iteration_seconds=0.001,
)
FOOTPRINT = Footprint((Columns(4, count=2),))
SETTINGS = Settings(
    policy="baton",
    max_rows=4,
    max_model_len=256,
    kv_bytes=10**6,
    prefill_chunk=None,
    max_stall_seconds=0.2,
    max_waiting=256,
    seed=0,
    swap_bytes=10**6,
    prefix_cache=False,
)


def of(policy: str, workload: Workload, **changes: Any) -> Any:
    return simulated(replace(SETTINGS, policy=policy, **changes), COSTS, FOOTPRINT, workload)[0]


def test_curves_go_on_the_lines_between_what_was_measured() -> None:
    curve = ((2, 1.0), (4, 3.0), (8, 4.0))
    assert [at(curve, count) for count in (1, 2, 3, 4, 6, 8, 16)] == [1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 6.0]
    assert at(((4, 2.0),), 100) == 2.0


def test_long_forwards_are_made_in_passes_of_the_longest_measured() -> None:
    curve = ((16, 2.0), (64, 8.0))
    assert [in_passes(curve, count) for count in (8, 40, 64, 128, 136, 168)] == [2.0, 5.0, 8.0, 16.0, 18.0, 21.0]


def test_the_middle_of_passes_has_medians_that_rise_and_are_not_below_zero() -> None:
    passes = [
        replace(COSTS, decode=((1, one), (8, eight)), token_seconds=token)
        for one, eight, token in ((1.0, 2.0, -0.1), (3.0, 2.5, -0.2), (4.0, 9.0, 0.3))
    ]
    costs = middle(passes)
    assert costs.decode == ((1, 2.75), (8, 2.75)) and costs.token_seconds == 0.0
    assert (costs.fill, costs.iteration_seconds) == (COSTS.fill, COSTS.iteration_seconds)


def test_a_curve_that_falls_is_levelled() -> None:
    assert rising([(1, 1.0), (2, 3.0), (3, 2.0), (4, 4.0)]) == ((1, 1.0), (2, 2.5), (3, 2.5), (4, 4.0))
    assert rising([(1, 3.0), (2, 2.0), (3, 1.0)]) == ((1, 2.0), (2, 2.0), (3, 2.0))


def test_a_query_by_itself_takes_the_sum_of_its_forwards() -> None:
    run = of("orca", Workload("one", (Ask(0.0, 16, 5),)))
    assert run.seconds == pytest.approx((0.020 + 0.001) + 4 * (0.010 + 0.001))
    assert run.first_token["p50"] == pytest.approx(0.021)
    assert (run.generated_tokens, run.idle_ratio, run.slots["useful"]) == (5, 0.0, 20)


def test_what_a_row_reads_costs_too() -> None:
    costs = replace(COSTS, column_seconds=0.001, pair_seconds=0.0001)
    run = simulated(replace(SETTINGS, policy="orca"), costs, FOOTPRINT, Workload("one", (Ask(0.0, 16, 2),)))[0]
    assert run.seconds == pytest.approx(0.021 + 16 * 8 * 0.0001 + 0.011 + 17 * 0.001)


def test_a_row_that_is_computed_for_nobody_costs_its_forward_alone() -> None:
    costs = replace(COSTS, token_seconds=0.004)
    workload = Workload("two", (Ask(0.0, 16, 2), Ask(0.0, 16, 4)))
    run, _ = simulated(replace(SETTINGS, policy="run_to_completion"), costs, FOOTPRINT, workload)
    # 32 tokens of prompts; a step of both rows; two steps in which one of the two rows is finished.
    assert run.seconds == pytest.approx(0.001 + 0.036 + 2 * 0.004 + 3 * 0.012 + 2 * 0.004 + 2 * 0.004)


def test_batch_wise_inference_computes_what_nobody_needs_and_takes_longer() -> None:
    workload = make_workload(40, prompt="16", answer="uniform:2,60", seed=3)
    old, new = of("run_to_completion", workload), of("baton", workload)
    assert old.idle_ratio > 0.2 and new.idle_ratio == 0
    assert new.tokens_per_second > 1.2 * old.tokens_per_second
    assert old.generated_tokens == new.generated_tokens == sum(ask.answer_tokens for ask in workload.asks)
    assert of("baton", workload) == new, "nothing is left to chance"


def test_queries_come_at_their_times_and_the_clock_jumps_between() -> None:
    workload = Workload("far apart", (Ask(0.0, 16, 2), Ask(100.0, 16, 2)))
    run = Fleet(replace(SETTINGS, policy="baton"), COSTS, FOOTPRINT).run(workload, mode=Mode.TIMED)
    assert [one.asked for one in run.responses] == [0.0, 100.0]
    assert run.responses[1].first == pytest.approx(run.responses[0].first)
    assert 100 < run.seconds < 100.1


def test_a_closed_loop_keeps_so_many_at_once() -> None:
    workload = make_workload(12, prompt="16", answer="8")
    one = Fleet(SETTINGS, COSTS, FOOTPRINT).run(workload, mode=Mode.CLOSED, at_once=1)
    assert all(later.asked >= before.times[-1] for before, later in zip(one.responses, one.responses[1:], strict=False))


def test_memory_that_is_short_costs_preemptions_and_loses_nobody() -> None:
    workload = make_workload(20, prompt="32", answer="uniform:60,120", seed=1)
    run = of("baton", workload, kv_bytes=256 * 8 + 700)
    assert run.preemptions > 0 and run.failed == 0
    assert run.kv_bytes_most <= 256 * 8 + 700


def test_stored_prefixes_are_found_as_they_would_be() -> None:
    workload = Workload(
        "three begin alike",
        (
            *(Ask(0.0, tokens, 4, blocks=(1,), block_tokens=64) for tokens in (70, 80, 90)),
            Ask(0.0, 10, 4, after=2),
            Ask(0.0, 70, 4),
        ),
    )
    settings = replace(SETTINGS, prefix_cache=True)
    run = Fleet(settings, COSTS, FOOTPRINT).run(workload, mode=Mode.CLOSED, at_once=1)
    # The later turn's prompt is 90 + 4 + 10 tokens, of which 93 were computed and two blocks of 32 shared with others.
    assert [one.cached_tokens for one in run.responses] == [0, 64, 64, 64, 0]
    assert run.responses[3].prompt_tokens == 104
    without = Fleet(SETTINGS, COSTS, FOOTPRINT).run(workload, mode=Mode.CLOSED, at_once=1)
    assert [one.cached_tokens for one in without.responses] == [0] * 5 and without.seconds > 1.2 * run.seconds


def test_what_is_computed_is_what_the_engine_computes() -> None:
    workload = make_workload(12, prompt="uniform:5,40", answer="uniform:2,20", shared_prefix=70, prefixes=2, seed=5)
    config = make_config({"max_model_len": 256, "max_batch_size": 4})
    loaded = load(load_settings(config, str(builtin.path()), "m"))
    for policy in ("run_to_completion", "orca", "baton"):
        one = Contender(policy, {"policy": policy})
        settings = settings_of(config, loaded, one)
        shape = footprint(loaded.geometry.shapes, 256, loaded.dtype, loaded.device)
        how: dict[str, Any] = {"mode": Mode.CLOSED, "at_once": 1}
        real = next(trials(loaded, config, [one], workload, repeat=1, **how)).figures
        told, _ = simulated(settings, COSTS, shape, workload, **how)
        assert (told.slots, told.cached_tokens) == (real.slots, real.cached_tokens)
        assert (told.cached_tokens > 0) == (policy != "run_to_completion")


def fleet_of(workload: Workload, replicas: Replicas, **changes: Any) -> tuple[Any, Fleet]:
    settings = replace(SETTINGS, max_waiting=512, **changes)
    return simulated(settings, COSTS, FOOTPRINT, workload, mode=Mode.TIMED, replicas=replicas)


def test_four_engines_do_four_times_as_much() -> None:
    workload = make_workload(160, prompt="16", answer="uniform:10,40", seed=3)
    one, four = (fleet_of(workload, Replicas(count, count))[0] for count in (1, 4))
    assert one.generated_tokens == four.generated_tokens and four.failed == 0
    assert 3.5 < four.tokens_per_second / one.tokens_per_second <= 4.01


def test_a_burst_is_spread_over_idle_engines() -> None:
    workload = Workload("burst", tuple(Ask(0.0, 16, 8) for _ in range(16)))
    _, fleet = fleet_of(workload, Replicas(2, 2))
    useful = [engine.counts.slots.useful for engine in fleet.engines]
    assert useful[0] == useful[1] > 0


def test_a_front_that_knows_prefixes_finds_what_one_engine_would() -> None:
    workload = make_workload(60, prompt="40", answer="8", arrivals="poisson:2", turns=5, seed=2)
    shares = {}
    for name, replicas in {"one": Replicas(), "by prefix": Replicas(3, 3), "by work": Replicas(3, 3, False)}.items():
        figures, _ = fleet_of(workload, replicas, prefix_cache=True, max_model_len=512)
        shares[name] = figures.cached_tokens / figures.prompt_tokens
    assert shares["by prefix"] > 0.95 * shares["one"] > shares["by work"] > 0


def test_engines_come_and_go_with_the_load() -> None:
    """Work for two and a half engines, then nearly none: three come, and two leave, each once."""
    slow = replace(COSTS, decode=((1, 0.10), (8, 0.17)), fill=((16, 0.20), (64, 0.68)))
    busy = [Ask(at / 0.9, 16, 60) for at in range(250)]
    quiet = [Ask(300 + 40.0 * at, 16, 5) for at in range(20)]
    workload, settings = Workload("a day", (*busy, *quiet)), replace(SETTINGS, max_waiting=512)
    figures, fleet = simulated(settings, slow, FOOTPRINT, workload, mode=Mode.TIMED, replicas=Replicas(1, 8))
    assert figures.failed == 0
    counts = [there for _, there, _ in fleet.replicas_over_time]
    assert counts[0] == 1 and max(counts) in (3, 4) and counts[-1] == 1
    falls = sum(later < earlier for earlier, later in itertools.pairwise(counts))
    assert falls <= 2


@pytest.mark.parametrize("text", ["", "0", "x", "3-2", "1,", "1-", "2000", "-1"])
def test_replicas_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--replicas"):
        replicas_of(text, by_prefix=True)
    assert list(replicas_of("1,2-8", by_prefix=True)) == [" x 1", " x 2-8"]


def costs_file(folder: Path) -> str:
    path = folder / "costs.json"
    shape = {"footprint": {"columns": [{"token_bytes": 4, "most": 0, "count": 2}], "state_bytes": 0, "page": 1}}
    save(COSTS, path, {**shape, "context_tokens": 512})
    return str(path)


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    costs, more = read_costs(costs_file(tmp_path))
    assert costs == COSTS and more["context_tokens"] == 512
    for text in (
        "",
        "[]",
        "{}",
        '{"baton_costs": 1}',
        '{"baton_costs": 1, "decode": [[2, 1], [1, 2]], "fill": [[1, 1]]}',
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(SettingError, match=r"bad\.json"):
            read_costs(tmp_path / "bad.json")
    with pytest.raises(SettingError):
        read_costs(tmp_path / "none.json")


def test_the_verb(tmp_path: Path) -> None:
    path, out = costs_file(tmp_path), tmp_path / "out.json"
    small = ["simulate", "--costs", path, "--queries", "200", "--prompt", "16", "--answer", "uniform:2,40"]
    done = CliRunner().invoke(cli, [*small, "--vary", "max-batch-size=2,8", "--json", str(out)])
    assert done.exit_code == 0, done.exception
    parts = json.loads(out.read_text())["contenders"]
    assert len(parts) == 6
    rates = {name: part["runs"][0]["tokens_per_second"] for name, part in parts.items()}
    assert rates["baton max_batch_size=8"] > 2 * rates["baton max_batch_size=2"]
    assert isinstance(CliRunner().invoke(cli, [*small, "--prompt", "9000"]).exception, BatonError)
