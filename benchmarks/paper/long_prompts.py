r"""Long prompts under load: at equal throughput, how long does an answer stand still while another prompt is computed?

Orca computes a newcomer's whole prompt inside one iteration, so all running answers wait for it. baton computes prompts
in chunks beside the running rows. Two workloads with Poisson arrivals: prompts around 600 tokens, and the lengths of a
real trace, not clipped (`benchmarks/azure_conversations.csv`: lengths of Azure's public conversations). Runs alternate;
medians. Every answer must be the same whatever the policy.

    python -m benchmarks.make_shape smollm2-135m models/m135b --dtype bfloat16
    python -m benchmarks.paper.long_prompts --model models/m135b --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from baton.bench.drive import Mode
from baton.bench.workload import Ask, Workload, make_workload
from baton.core.config import Config
from benchmarks.paper.methods import COMPLETION, NATIVE, ORCA, Measured, measured
from benchmarks.report import flags, machine, parsed, percentile, table, tell
from benchmarks.stage import load

LENGTHS = Path(__file__).parents[1] / "azure_conversations.csv"
AROUND, TRACE = "around 600 tokens", "of the trace, not clipped"
Runs = dict[str, dict[str, list[Measured]]]


def main() -> None:
    args = _arguments()
    methods = {name: changes for name, changes in NATIVE.items() if name != COMPLETION}
    config = Config(model=args.model, max_batch_size=str(args.rows), prefix_cache=False)
    loaded, settings = load(config)
    longest = settings.max_model_len
    # What Orca answers at once says what the machine can do; and the first run warms it up.
    runs: Runs = defaultdict(lambda: defaultdict(list))
    workloads = {}
    for name in (AROUND, TRACE):
        at_once = workload(args, name, longest, "at-once")
        capacity = measured(loaded, config, methods[ORCA], at_once).figures.queries_per_second
        workloads[name] = workload(args, name, longest, f"poisson:{args.load * capacity:.4f}")
    with tqdm(total=args.repeat * len(workloads) * len(methods), unit="run", disable=None, file=sys.stderr) as bar:
        for _ in range(args.repeat):
            for name, one in workloads.items():
                for method, changes in methods.items():
                    bar.set_postfix_str(f"{name}: {method}")
                    runs[name][method].append(measured(loaded, config, changes, one, Mode.TIMED))
                    bar.update()
    different = differences(runs)
    tell(args, report(args, workloads, runs, different), as_json(runs))
    if different:
        sys.exit(f"{different} answers are not the same under both policies")


def workload(args: argparse.Namespace, name: str, longest: int, arrivals: str) -> Workload:
    """Queries whose prompts and answers fit the context together; arrivals are those of a drawn workload."""
    drawn = make_workload(
        args.queries, prompt="lognormal:600,0.3", answer="uniform:32,96", arrivals=arrivals, seed=args.seed
    )
    if name == AROUND:
        return drawn
    with LENGTHS.open(newline="") as file:
        lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(file)]
    fitting = [(prompt, answer) for prompt, answer in lengths if prompt + answer <= longest]
    some = random.Random(args.seed).sample(fitting, args.queries)
    asks: list[Ask] = [
        dataclasses.replace(ask, prompt_tokens=prompt, answer_tokens=answer)
        for ask, (prompt, answer) in zip(drawn.asks, some, strict=True)
    ]
    return dataclasses.replace(drawn, asks=tuple(asks))


def differences(runs: Runs) -> int:
    """Answers that differ from the first policy's first run."""
    count = 0
    for methods in runs.values():
        every = [run.figures.digests for some in methods.values() for run in some]
        count += sum(one != other for digests in every for one, other in zip(every[0], digests, strict=True))
    return count


def report(args: argparse.Namespace, workloads: dict[str, Workload], runs: Runs, different: int) -> Iterator[str]:
    told = [
        f"{name}: {sum(ask.prompt_tokens for ask in one.asks):,} prompt tokens (longest "
        f"{max(ask.prompt_tokens for ask in one.asks):,}), {sum(ask.answer_tokens for ask in one.asks):,} generated"
        for name, one in workloads.items()
    ]
    yield (
        f"{args.queries} queries; {'; '.join(told)}. Poisson arrivals at {args.load:.0%} of what Orca answers at once, "
        f"{args.rows} rows; {args.repeat} alternated runs, medians (range). {machine(args.model)}"
    )
    yield ""
    yield from table(
        (
            "prompts",
            "method",
            "tokens/s",
            "longest gap of a query p50 / p99 s",
            f"answers without a gap above {args.goal_gap:g} s",
            "first token p50 / p95 s",
            "end to end p50 / p95 s",
        ),
        (_row(args, name, method, some) for name, methods in runs.items() for method, some in methods.items()),
    )
    yield from ("", f"Answers that are not the same under both policies and in all runs: {different}.")


def _row(args: argparse.Namespace, name: str, method: str, some: Sequence[Measured]) -> list[str]:
    speeds = [run.figures.tokens_per_second for run in some]
    gaps = [gap for run in some for gap in longest_gaps(run)]
    return [
        name,
        method,
        f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})",
        f"**{percentile(gaps, 50):.2f} / {percentile(gaps, 99):.2f}**",
        f"{sum(gap <= args.goal_gap for gap in gaps) / len(gaps):.0%}",
        _waits(some, "first_tokens"),
        _waits(some, "wholes"),
    ]


def longest_gaps(run: Measured) -> list[float]:
    """Returns each query's longest wait between two of its tokens, in seconds."""
    return [max(gaps) for gaps in run.gaps if gaps]


def _waits(some: Sequence[Measured], kind: str) -> str:
    every = [wait for run in some for wait in getattr(run.figures, kind)]
    return f"{percentile(every, 50):.2f} / {percentile(every, 95):.2f}"


def as_json(runs: Runs) -> dict[str, object]:
    return {
        name: {method: [run.figures.as_json() for run in some] for method, some in methods.items()}
        for name, methods in runs.items()
    }


def _arguments() -> argparse.Namespace:
    parser = flags(__doc__, "paper_long")
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--load", type=float, default=0.7, help="arrivals, as a share of what Orca answers at once")
    parser.add_argument("--goal-gap", type=float, default=0.5, help="seconds that an answer may stand still")
    parser.add_argument("--repeat", type=int, default=3)
    return parsed(parser)


if __name__ == "__main__":
    main()
