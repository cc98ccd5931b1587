"""Does `baton compare` keep quiet where nothing changed, and speak where something did?

    python benchmarks/compare_gate.py [--reports 6] [--repeat 5] [--write docs/benchmarks.md]

Makes reports of one engine, one after the other, and compares each with the next: none may fail. Then one of the same
engine with a tenth of each iteration's time slept away, and one in which a single token is another: both must fail.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from report import flags, parsed, table, tell

from baton import builtin, trials
from baton.bench.compare import differences, verdicts
from baton.bench.drive import Run, drive
from baton.bench.figures import Figures
from baton.bench.table import report
from baton.bench.workload import Workload, make_workload
from baton.config import Config
from baton.model.load import Loaded, load
from baton.policy.port import Plan, Policy, View

CONTENDER = trials.Contender("baton", {"policy": "baton"})


class Slowed:
    """A policy that sleeps a share of what passed since its last plan before it makes the next."""

    def __init__(self, policy: Policy, share: float) -> None:
        self._policy = policy
        self._share = share
        self._planned = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def plan(self, view: View) -> Plan:
        now = time.perf_counter()
        if self._planned and now - self._planned < 1.0:  # else it was idle
            time.sleep(self._share * (now - self._planned))
        plan = self._policy.plan(view)
        self._planned = time.perf_counter()
        return plan


def main() -> None:
    parser = flags(__doc__, "compare_gate")
    parser.add_argument("--reports", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--slower", type=float, default=0.10)
    args = parsed(parser)
    config = Config(model=args.model, max_batch_size="8")
    loaded = load(config, args.model or str(builtin.path()), "model")
    workload = make_workload(args.queries, prompt="lognormal:60,0.6", answer="lognormal:60,0.5", seed=args.seed)

    def reported(name: str) -> dict[str, Any]:
        print(name, file=sys.stderr)
        return made(loaded, config, workload, args.repeat)

    # The first runs of a process are slower than all others.
    made(loaded, config, workload, 1)
    same = [reported(f"report {number + 1} of {args.reports}") for number in range(args.reports)]
    with slowed(args.slower):
        slow = reported("slowed")
    with flipped():
        other = reported("one token flipped")
    quiet = [judged(f"{n + 1} and {n + 2}, the same", a, b) for n, (a, b) in enumerate(itertools.pairwise(same))]
    loud = [
        judged(f"{args.reports} and one {args.slower:.0%} slower", same[-1], slow),
        judged(f"{args.reports} and one with another token", same[-1], other),
    ]
    tell(args, lines(args, quiet, loud), {"comparisons": [*quiet, *loud]})
    if any(one["fails"] for one in quiet) or not all(one["fails"] for one in loud):
        sys.exit("the gate does not hold")


def lines(args: argparse.Namespace, quiet: Sequence[dict[str, Any]], loud: Sequence[dict[str, Any]]) -> list[str]:
    load_average = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    passed = sum(not one["fails"] for one in quiet)
    slower, flip = ("found" if one["fails"] else "**not found**" for one in loud)
    spread = max(one["spread"] for one in (*quiet, *loud))
    noisy = (
        f" The runs of one report lay up to {spread:.0%} apart, because of other work on the machine: what is smaller "
        "than that cannot be told by so few."
    )
    return [
        f"{args.queries} queries, {args.repeat} runs a report. Load average (1, 5, 15 minutes): {load_average}.",
        f"Of {len(quiet)} comparisons of the same engine {passed} passed; the slower one was {slower}, "
        f"the other token {flip}." + (noisy if spread > args.slower else ""),
        "",
        *table(
            ("reports", "time a token, B to A", "spread of A's runs", "slower figures", "outputs", "verdict"),
            rows([*quiet, *loud]),
        ),
    ]


def made(loaded: Loaded, config: Config, workload: Workload, repeat: int) -> dict[str, Any]:
    runs: list[Figures] = [
        trial.figures for trial in trials.trials(loaded, config, [CONTENDER], workload, repeat=repeat)
    ]
    return report({"workload": workload.about}, {"baton": runs}, {"baton": {}})


def judged(name: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    speeds, changed = verdicts(a, b), differences(a, b)
    worse = [one.figure for one in speeds if one.word == "worse"]
    runs = [run["tokens_per_second"] for run in a["contenders"]["baton"]["runs"]]
    return {
        "name": name,
        "ratio": speeds[0].ratio,
        "adjusted": speeds[0].adjusted,
        "spread": (max(runs) - min(runs)) / statistics.median(runs),
        "worse": worse,
        "changed": [one.what for one in changed],
        "fails": bool(worse or changed),
    }


def rows(found: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    for one in found:
        ratio = f"{one['ratio']:.3f} ({one['adjusted']:.3f} with the machine's speed taken out)"
        worse, changed = ", ".join(one["worse"]) or "none", ", ".join(one["changed"]) or "the same"
        yield [one["name"], ratio, f"{one['spread']:.1%}", worse, changed, "**fails**" if one["fails"] else "passes"]


@contextmanager
def slowed(share: float) -> Iterator[None]:
    stock = trials.POLICIES["baton"]
    trials.POLICIES["baton"] = lambda: Slowed(stock(), share)  # type: ignore[assignment,return-value]
    try:
        yield
    finally:
        trials.POLICIES["baton"] = stock


@contextmanager
def flipped() -> Iterator[None]:
    """In each run one token in the middle of the middle query's answer is another."""

    def driven(client: Any, workload: Workload, *given: Any, **named: Any) -> Run:
        run = drive(client, workload, *given, **named)
        heard = list(run.heard)
        middle = heard[len(heard) // 2]
        middle.tokens[len(middle.tokens) // 2] ^= 1
        return replace(run, heard=heard)

    trials.drive = driven  # type: ignore[assignment]
    try:
        yield
    finally:
        trials.drive = drive


if __name__ == "__main__":
    main()
