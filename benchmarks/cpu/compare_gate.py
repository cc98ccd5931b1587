"""Does `baton compare` keep quiet where nothing changed, and speak where something did?

    python -m benchmarks.cpu.compare_gate [--same 17] [--slow 5] [--flips 1] [--keep FILE] [--write docs/benchmarks.md]

Real runs of the engine: each comparison starts two new processes (from a server that has read Python's modules), which
load the model and make `--pairs` runs each, iteration by iteration in turn, as `baton bench --in-turn` does. Of the
same engine: none may fail. With a tenth of each iteration's time spun away in one of the two; with one token of all
that one of the two draws another: each must fail. --keep adds to what an earlier call of the same flags found.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from baton import builtin
from baton.bench.compare import Verdict, differences, verdicts
from baton.bench.interleave import handshake
from baton.bench.table import report
from baton.bench.workload import make_workload
from baton.compose import set_threads
from baton.core.config import Config
from baton.core.settings import load_settings
from baton.engine.engine import Engine
from baton.loader.load import load
from baton.measure import trials
from baton.sampling.sampler import Sampler
from benchmarks.report import flags, parsed, table, tell

CONTENDER = trials.Contender("baton", {"policy": "baton"})
SAME, SLOW, FLIP = "same", "slow", "flip"
FLIPPED_DRAW = 100


def main() -> None:
    parser = flags(__doc__, "compare_gate")
    parser.add_argument("--same", type=int, default=17, help="comparisons of the same engine")
    parser.add_argument("--slow", type=int, default=5, help="comparisons with a slower one")
    parser.add_argument("--flips", type=int, default=1, help="comparisons with one that draws another token once")
    parser.add_argument("--pairs", type=int, default=12, help="of runs, in each comparison")
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--slower", type=float, default=0.10)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="what was found so far, and is added to")
    args = parsed(parser)
    comparisons: list[dict[str, Any]] = []
    if args.keep and args.keep.exists():
        comparisons = json.loads(args.keep.read_text())
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["baton.measure.trials"])
    # Mixed, so that each kind meets the machine at all times.
    left = {SAME: args.same, SLOW: args.slow, FLIP: args.flips}
    for _ in range(sum(left.values())):
        kind = max(left, key=lambda name: left[name] / max(1, vars(args)[{FLIP: "flips"}.get(name, name)]))
        left[kind] -= 1
        began = time.monotonic()
        comparisons.append(compared(processes, kind, args))
        print(f"{kind}: {comparisons[-1]} in {time.monotonic() - began:.1f} s", file=sys.stderr)
        if args.keep:
            args.keep.write_text(json.dumps(comparisons))
    tell(args, lines(args, comparisons), {"comparisons": comparisons})
    if any(one["fails"] != (one["kind"] != SAME) for one in comparisons):
        sys.exit("the gate does not hold")


def compared(processes: Any, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """One comparison of two new processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ends, started = [], []
    for change in ("", kind):
        here, there = processes.Pipe()
        ends.append(here)
        started.append(processes.Process(target=side, args=(there, port, change, vars(args))))
        started[-1].start()
        there.close()
    reports = [end.recv() for end in ends]
    for process in started:
        process.join()
    return judged(kind, *reports)


def side(pipe: Connection, port: int, change: str, args: Mapping[str, Any]) -> None:
    """In a process of its own: the runs' report."""
    if change == SLOW:
        slow_down(args["slower"])
    if change == FLIP:
        flip_one()
    config = Config(model=args["model"], max_batch_size="8")
    set_threads(config)
    loaded = load(load_settings(config, config.model or str(builtin.path()), "model"))
    workload = make_workload(args["queries"], prompt="lognormal:60,0.6", answer="lognormal:60,0.5", seed=args["seed"])
    turns = handshake(port, {})
    some = trials.trials(loaded, config, [CONTENDER], workload, repeat=args["pairs"], turns=turns)
    runs = [trial.figures for trial in some]
    turns.close()
    pipe.send(report({"workload": workload.about}, {"baton": runs}, {"baton": {}}))


def slow_down(share: float) -> None:
    """Each iteration takes so much longer: its core is kept busy for that share of what it took."""
    stock = Engine.iterate

    def slower(self: Engine) -> bool:
        began = time.perf_counter()
        computed = stock(self)
        until = time.perf_counter()
        until += share * (until - began)
        while time.perf_counter() < until:
            pass
        return computed

    Engine.iterate = slower  # type: ignore[method-assign]


def flip_one() -> None:
    """The first token of one draw in this process is another."""
    stock, drawn = Sampler.__call__, [0]

    def flipped(self: Sampler, logits: Any, draws: Any) -> list[int | None]:
        tokens = stock(self, logits, draws)
        drawn[0] += 1
        if drawn[0] == FLIPPED_DRAW and tokens[0] is not None:
            tokens[0] ^= 1
        return tokens

    Sampler.__call__ = flipped  # type: ignore[method-assign]


def judged(kind: str, a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    speeds, changed = verdicts(a, b), differences(a, b)
    worse = [one for one in speeds if one.word == "worse"]
    runs = [run["seconds"] for run in a["contenders"]["baton"]["runs"]]
    return {
        "kind": kind,
        "ratio": speeds[0].ratio,
        "half": (speeds[0].high - speeds[0].low) / 2,
        "ratios": {one.figure: one.ratio for one in speeds},
        "seconds": statistics.median(runs),
        "spread": (max(runs) - min(runs)) / statistics.median(runs),
        "worse": [one.figure for one in worse],
        "said": [str(one) for one in first(worse)] + [one.what for one in changed],
        "fails": bool(worse or changed),
    }


def first(some: Sequence[Verdict]) -> Sequence[Verdict]:
    return some[:1]


def lines(args: argparse.Namespace, comparisons: Sequence[dict[str, Any]]) -> list[str]:
    load_average = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return [
        f"{len(comparisons)} comparisons, each of two new processes and {args.pairs} pairs of runs of {args.queries} "
        f"queries, {statistics.median(one['seconds'] for one in comparisons):.2f} s each. Runs of one report lay "
        f"{statistics.median(one['spread'] for one in comparisons):.0%} apart (median; at most "
        f"{max(one['spread'] for one in comparisons):.0%}). Load average (1, 5, 15 minutes): {load_average}.",
        "",
        *table(
            ("B is", "comparisons", "failed", "B takes, tokens a second", "half of the 95 % interval", "what is said"),
            rows(args, comparisons),
        ),
    ]


def rows(args: argparse.Namespace, comparisons: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    names = {SAME: "the same", SLOW: f"{args.slower:.0%} slower", FLIP: "another in one token"}
    for kind, name in names.items():
        some = [one for one in comparisons if one["kind"] == kind]
        if not some:
            continue
        ratios = sorted(one["ratio"] for one in some)
        said = next((one["said"][-1 if kind == FLIP else 0] for one in some if one["said"]), "nothing")
        span = f"{statistics.median(ratios):.3f}x ({ratios[0]:.3f} to {ratios[-1]:.3f})"
        half = f"{statistics.median(one['half'] for one in some):.3f}"
        yield [name, str(len(some)), f"**{sum(one['fails'] for one in some)}**", span, half, said]


if __name__ == "__main__":
    main()
