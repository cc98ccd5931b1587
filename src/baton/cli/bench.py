"""`baton bench`: one workload through several policies and settings, as a table, as JSON and as a page."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from tqdm import tqdm

from baton.bench.commands import workload_of
from baton.bench.drive import Mode
from baton.bench.figures import Figures, Goal
from baton.bench.interleave import Turns, handshake
from baton.bench.page import page
from baton.bench.picture import Picture
from baton.bench.table import report, runs_before, table_of
from baton.bench.workload import Workload
from baton.builtin.tasks import CHECKABLE_TASKS
from baton.compose import model_name, open_model
from baton.core.config import Config
from baton.core.errors import CheckFailed
from baton.core.files import write_text
from baton.loader.loaded import Loaded
from baton.measure.contenders import Contender, contenders
from baton.measure.testbed import about_machine
from baton.measure.trials import by_themselves, right_answers, settings_of, trials

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Results:
    """The results of all runs, by contender: the runs, the last run's picture, and answers to questions."""

    runs: dict[str, list[Figures]]
    pictures: dict[str, Picture]
    right: dict[str, dict[str, list[bool]]]


def run_bench(config: Config, asked: Options) -> None:
    """Runs the trials and writes the reports. Exits with status 1 if an answer differs from the same query alone."""
    some = contenders(asked["policies"].split(","), asked["vary"])
    workload = workload_of(asked)
    loaded, name = open_model(config), model_name(config)
    about = {"model": name, "dtype": str(loaded.dtype), "workload": workload.about, **about_machine()}
    earlier = runs_before(asked["json_file"], about, [one.name for one in some]) if asked["append"] else {}
    settings = {one.name: dataclasses.asdict(settings_of(config, loaded, one)) for one in some}
    with _turns(asked, about, some) as turns:
        results = _measure(loaded, config, some, workload, asked, turns)
    for one, runs in earlier.items():
        results.runs[one][:0] = runs
    console = Console(highlight=False)
    console.print(f"{workload.about}\n{name}, {loaded.dtype} on {loaded.device}, {asked['repeat']} alternated runs")
    console.print(table_of(results.runs, results.right))
    if asked["json_file"]:
        whole = report(about, results.runs, settings, results.right)
        write_text("--json", asked["json_file"], json.dumps(whole), param="json")
    if asked["html_file"]:
        write_text("--html", asked["html_file"], _page(about, loaded, results, settings, asked), param="html")
    if any(one.different for runs in results.runs.values() for one in runs):
        raise CheckFailed("an answer is not what its query gives alone")


@contextlib.contextmanager
def _turns(asked: Options, about: Mapping[str, Any], some: Sequence[Contender]) -> Iterator[Turns | None]:
    """Takes turns with the other bench of the same work, at the address of `--in-turn`.

    Raises SettingError, OtherIsGone.
    """
    if asked["in_turn"] is None:
        yield None
        return
    same = {name: about[name] for name in ("model", "dtype", "workload")}
    runs = asked["repeat"] * len(some)
    with contextlib.closing(handshake(asked["in_turn"], {**same, "number of runs": runs})) as turns:
        yield turns


def _measure(
    loaded: Loaded,
    config: Config,
    some: Sequence[Contender],
    workload: Workload,
    asked: Options,
    turns: Turns | None,
) -> _Results:
    questions = (asked["accuracy"] or 0) * len(CHECKABLE_TASKS)
    total = len(workload.asks) * len(some) * asked["repeat"] + asked["alone"] + questions * len(some)
    results = _Results({one.name: [] for one in some}, {}, {})
    with tqdm(total=total, unit="query", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def on_done() -> None:
            bar.update()

        alone = by_themselves(loaded, config, workload, asked["alone"], on_done) if asked["alone"] else {}
        for trial in trials(
            loaded,
            config,
            some,
            workload,
            repeat=asked["repeat"],
            mode=Mode(asked["mode"]),
            at_once=asked["at_once"],
            goal=Goal(asked["goal_first"], asked["goal_token"], asked["goal_gap"]),
            alone=alone,
            on_done=on_done,
            turns=turns,
        ):
            results.runs[trial.contender].append(trial.figures)
            results.pictures[trial.contender] = trial.picture
            bar.set_postfix_str(f"{trial.contender}: {trial.figures.tokens_per_second:.0f} tokens/s")
        if asked["accuracy"]:
            for one in some:
                results.right[one.name] = right_answers(loaded, config, one, asked["accuracy"], on_done)
    return results


def _page(
    about: Mapping[str, Any],
    loaded: Loaded,
    results: _Results,
    settings: Mapping[str, Mapping[str, Any]],
    asked: Options,
) -> str:
    facts = {
        "model": about["model"],
        "dtype and device": f"{loaded.dtype}, {loaded.device}",
        "workload": about["workload"],
        "mode": asked["mode"] + (f", {asked['at_once']} at once" if asked["mode"] == "closed" else ""),
        "machine": f"{about['cores']} cores, {about['processor']}, {about['system']}",
        "versions": about["versions"],
        "machine's speed in each run": ", ".join(
            "in turn with another" if one.pair else f"{one.machine_speed:.2f}"
            for runs in results.runs.values()
            for one in runs
        ),
    }
    command = shlex.join(["baton", *sys.argv[1:]])
    return page(results.runs, results.pictures, facts=facts, settings=settings, accuracy=results.right, command=command)
