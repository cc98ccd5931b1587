"""How far the simulator is from the engine: the same workloads run and simulated with costs measured around each run.

This machine's speed changes from minute to minute. So costs are measured right before and right after every run, in a
pass of seconds, and each run is held against the simulation with those two passes; policies and workloads alternate.
What is told is the median over the turns, and in brackets how far single turns lay apart.

python -m benchmarks.cpu.simulator_agreement [MODEL] --queries 48 --repeat 5 --write docs/benchmarks.md
"""

from __future__ import annotations

import statistics
from collections import defaultdict

from baton import builtin
from baton.bench.costmodel import middle
from baton.bench.figures import Figures
from baton.bench.workload import Workload, make_workload
from baton.compose import set_threads
from baton.core.config import Config
from baton.core.settings import load_settings, resolve
from baton.kv.rectangle import footprint
from baton.loader.facts import facts_of
from baton.loader.load import load
from baton.loader.loaded import Loaded
from baton.measure.calibrate import Calibration
from baton.measure.contenders import Contender
from baton.measure.simulate import simulated
from baton.measure.trials import settings_of, trials
from benchmarks.report import flags, parsed, table, tell

WORKLOADS = {
    "mixed": {"prompt": "lognormal:100,0.8", "answer": "lognormal:60,0.8"},
    "long prompts": {"prompt": "uniform:200,400", "answer": "uniform:5,30"},
    "long answers": {"prompt": "uniform:5,30", "answer": "uniform:60,200"},
    "shared prefixes": {"prompt": "uniform:100,200", "answer": "uniform:20,60", "shared_prefix": 256, "prefixes": 3},
}
POLICIES = ("run_to_completion", "orca", "baton")
CONTEXT = 1024

Pair = tuple[Figures, Figures]
"""Of a real run, and simulated."""


def main() -> None:
    parser = flags(__doc__, "simulator")
    parser.add_argument("name", nargs="?", metavar="MODEL")
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="which of them (default: all)")
    args = parsed(parser)
    config = Config(model=args.name, max_model_len=str(CONTEXT))
    set_threads(config)
    loaded = load(load_settings(config, args.name or str(builtin.path()), "m"))
    workloads = {
        name: make_workload(args.queries, **WORKLOADS[name], seed=args.seed).clipped(500, 200)  # type: ignore[arg-type]
        for name in args.workloads.split(",")
    }
    pairs_by_name = measured(loaded, config, workloads, args.repeat)
    rows = [row(*names, pairs) for names, pairs in pairs_by_name.items()]
    head = ("workload", "policy", "tokens/s, run", "simulated", "off by", "single turns", "idle, run", "simulated")
    many = f"{args.queries} queries each, medians of {args.repeat} turns; costs measured before and after each run."
    tell(args, [many, "", *table(head, rows)], {"rows": rows})


def measured(
    loaded: Loaded, config: Config, workloads: dict[str, Workload], repeat: int
) -> dict[tuple[str, str], list[Pair]]:
    """By workload and policy, a pair for each turn."""
    calibration = Calibration(loaded, resolve(config, facts_of(loaded)))
    before = calibration.measure()
    pairs: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for turn in range(repeat):
        for name, workload in workloads.items():
            for policy in POLICIES:
                one = Contender(policy, {"policy": policy})
                settings = settings_of(config, loaded, one)
                shape = footprint(loaded.geometry.shapes, settings.max_model_len, loaded.dtype, loaded.device)
                real = next(trials(loaded, config, [one], workload, repeat=1)).figures
                after = calibration.measure()
                told, _ = simulated(settings, middle([before, after]), shape, workload)
                before = after
                pairs[name, policy].append((real, told))
                off = told.tokens_per_second / real.tokens_per_second - 1
                print(f"{turn} {name}, {policy}: {real.tokens_per_second:,.0f} tokens/s, {off:+.1%}", flush=True)
    return pairs


def row(workload: str, policy: str, pairs: list[Pair]) -> list[str]:
    off = sorted(told.tokens_per_second / real.tokens_per_second - 1 for real, told in pairs)
    rate, told = (statistics.median(one[side].tokens_per_second for one in pairs) for side in (0, 1))
    idle, idle_told = (statistics.median(one[side].idle_ratio for one in pairs) for side in (0, 1))
    return [
        workload,
        policy,
        f"{rate:,.0f}",
        f"{told:,.0f}",
        f"{statistics.median(off):+.1%}",
        f"{off[0]:+.0%} to {off[-1]:+.0%}",
        f"{idle:.2%}",
        f"{idle_told:.2%}",
    ]


if __name__ == "__main__":
    main()
