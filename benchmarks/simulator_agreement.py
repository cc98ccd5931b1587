"""How far the simulator is from the engine: the same workloads run and simulated with costs measured just before.

python benchmarks/simulator_agreement.py [MODEL] --queries 48 --repeat 3 --write docs/benchmarks.md
"""

from __future__ import annotations

import statistics

from report import flags, parsed, table, tell

from baton import builtin, tune
from baton.bench.workload import make_workload
from baton.compose import facts_of, set_threads
from baton.config import Config, resolve
from baton.kv.rectangle import footprint
from baton.model.load import load
from baton.simulate import simulated
from baton.trials import Contender, settings_of, trials

WORKLOADS = {
    "mixed": {"prompt": "lognormal:100,0.8", "answer": "lognormal:60,0.8"},
    "long prompts": {"prompt": "uniform:200,400", "answer": "uniform:5,30"},
    "long answers": {"prompt": "uniform:5,30", "answer": "uniform:60,200"},
}
CONTEXT = 1024


def main() -> None:
    parser = flags(__doc__, "simulator")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=3)
    args = parsed(parser)
    config = Config(model=args.model, max_model_len=str(CONTEXT), prefix_cache=False)
    set_threads(config)
    loaded = load(config, args.model or str(builtin.path()), "m")
    costs = tune.measure(loaded, resolve(config, facts_of(loaded)))
    rows = []
    for name, drawn in WORKLOADS.items():
        workload = make_workload(args.queries, **drawn, seed=args.seed).clipped(500, 200)  # type: ignore[arg-type]
        for policy in ("run_to_completion", "orca", "baton"):
            one = Contender(policy, {"policy": policy})
            settings = settings_of(config, loaded, one)
            shape = footprint(loaded.geometry.shapes, settings.max_model_len, loaded.dtype, loaded.device)
            found = simulated(settings, costs, shape, workload)
            real = [trial.figures for trial in trials(loaded, config, [one], workload, repeat=args.repeat)]
            rate = statistics.median(run.tokens_per_second for run in real)
            idle = statistics.median(run.idle_ratio for run in real)
            rows.append(
                [
                    name,
                    policy,
                    f"{rate:,.0f}",
                    f"{found.tokens_per_second:,.0f}",
                    f"{found.tokens_per_second / rate - 1:+.1%}",
                    f"{idle:.2%}",
                    f"{found.idle_ratio:.2%}",
                ]
            )
            print(rows[-1], flush=True)
    head = ("workload", "policy", "tokens/s, run", "simulated", "off by", "idle, run", "simulated")
    lines = [f"{args.queries} queries each, medians of {args.repeat} runs.", "", *table(head, rows)]
    tell(args, lines, {"rows": rows})


if __name__ == "__main__":
    main()
