"""`baton simulate`: workloads and policies against measured costs, without a device.

The engine, the policies and the accounting are the real ones; only the forward is a number of seconds, by which a clock
is moved (`measure/fleet.py`). So what cannot be run here can be tried: thousands of queries, other costs, more
rows.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from tqdm import tqdm

from baton.bench.commands import workload_of
from baton.bench.costmodel import MeasuredCosts, read_costs
from baton.bench.drive import Mode
from baton.bench.figures import NO_GOAL, Figures, Goal, figures
from baton.bench.table import report, table_of
from baton.bench.workload import Workload
from baton.core.config import Config
from baton.core.errors import SettingError
from baton.core.files import write_text
from baton.core.footprint import Columns, Footprint
from baton.core.settings import Facts, Settings, resolve
from baton.measure.contenders import changed, contenders
from baton.measure.fleet import Fleet
from baton.measure.replicas import ONE, Replicas, replicas_of
from baton.measure.trials import check_lengths
from baton.policy.port import traits
from baton.policy.table import policy_named


def simulated(
    settings: Settings,
    costs: MeasuredCosts,
    footprint: Footprint,
    workload: Workload,
    *,
    mode: Mode = Mode.OFFLINE,
    at_once: int = 8,
    goal: Goal = NO_GOAL,
    replicas: Replicas = ONE,
    on_done: Callable[[], object] = lambda: None,
) -> tuple[Figures, Fleet]:
    """The figures that `baton bench` would have measured, and the engines as they are at the end."""
    fleet = Fleet(settings, costs, footprint, replicas)
    run = fleet.run(workload, mode=mode, at_once=at_once, on_done=on_done)
    return figures(run, fleet.slots, preemptions=fleet.preemptions, kv_bytes_most=fleet.kv_bytes_most, goal=goal), fleet


def run_simulate(config: Config, asked: dict[str, Any]) -> None:
    """Runs the contenders one after the other and shows their figures. Raises SettingError."""
    costs, more = read_costs(asked["costs"])
    shape, context = _shape(more, asked["costs"])
    facts = Facts(context, shape, asked["memory"], "cpu", "float32", 1, True)
    some = contenders(asked["policies"].split(","), asked["vary"])
    workload = workload_of(asked)
    settings = {one.name: _settings(changed(config, one), facts) for one in some}
    check_lengths(workload, min(one.max_model_len for one in settings.values()))
    fleets = replicas_of(asked["engines"], by_prefix=asked["by_prefix"])
    mode, goal = Mode(asked["mode"]), Goal(asked["goal_first"], asked["goal_token"], asked["goal_gap"])
    runs: dict[str, list[Figures]] = {}
    shown: dict[str, dict[str, Any]] = {}
    told: list[str] = []
    total = len(some) * len(fleets) * len(workload.asks)
    with tqdm(total=total, unit="query", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        for one, (engines, replicas) in itertools.product(some, fleets.items()):
            name = f"{one.name}{engines}"
            bar.set_postfix_str(name)
            how: dict[str, Any] = {"mode": mode, "at_once": asked["at_once"], "goal": goal, "replicas": replicas}
            figures, fleet = simulated(settings[one.name], costs, shape, workload, **how, on_done=bar.update)
            runs[name] = [figures]
            shown[name] = {**dataclasses.asdict(settings[one.name]), "replicas": dataclasses.asdict(replicas)}
            told += _told(name, fleet)
    console = Console(highlight=False)
    console.print(f"{workload.about}\nsimulated with the costs of {costs.about or asked['costs']}")
    console.print(table_of(runs))
    for line in told:
        console.print(line)
    if asked["json_file"]:
        about = {"model": "simulated", "dtype": "none", "workload": workload.about}
        write_text("--json", asked["json_file"], json.dumps(report(about, runs, shown)), param="json")


def _told(name: str, fleet: Fleet) -> list[str]:
    """How many engines there were, if their number followed the load."""
    if not fleet.replicas_over_time:
        return []
    counts = [there for _, there, _ in fleet.replicas_over_time]
    changes = sum(one != other for one, other in itertools.pairwise(counts))
    mean = sum(counts) / len(counts)
    return [f"{name}: {mean:.1f} engines on average, {min(counts)} to {max(counts)}, changed {changes} times"]


def _settings(config: Config, facts: Facts) -> Settings:
    return resolve(config, facts, traits(policy_named(config.policy)))


def _shape(more: Mapping[str, Any], path: str) -> tuple[Footprint, int]:
    """What a query takes in memory, and the context, as `baton tune` wrote them."""
    try:
        shape = more["footprint"]
        columns = tuple(Columns(**one) for one in shape["columns"])
        return Footprint(columns, int(shape["state_bytes"]), int(shape["page"])), int(more["context_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(f"{path} has no footprint and context_tokens as baton tune writes: {error!r}") from None
