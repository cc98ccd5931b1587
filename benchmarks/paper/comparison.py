r"""The paper's comparison (BATON, arXiv 2410.18701) on one engine: run to completion, Orca, BATON; and what came of it.

Same model, same loop, same clients; the methods differ in their policy and in how the batch's rows are shaped:

- run to completion: a batch is filled, padded in front, and left alone until its last query is done;
- Orca: newcomers at any iteration, whole prompts in it, attention request by request (selective batching);
- BATON as in the paper: prefill apart, keys and values embedded, rows aligned at their ends with padding in front, one
  write column that all share, an explicit mask, the batch shifted when a longer query joins (`--shaping aligned`);
- BATON on ragged rows: the same policy on baton's own rectangle.

Four experiments: offline with lengths that are alike and lengths that are not; rising load; batch sizes; preemption by
urgent queries. Runs alternate; medians. Every answer must be the same whatever the method.

    python -m benchmarks.paper.comparison --write docs/benchmarks.md --picture docs/pictures/paper.png
    python -m benchmarks.paper.comparison --model models/m135b --native --section paper_native \
        --write docs/benchmarks.md

With `--native`, steps are native calls where they can be, and the paper's shaping, which only torch computes, is left
out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from baton.bench.drive import Mode
from baton.bench.workload import Workload, make_workload
from baton.core.config import Config
from baton.loader.loaded import Loaded
from benchmarks.paper.methods import METHODS, NATIVE, ORCA, Measured, measured
from benchmarks.paper.picture import draw
from benchmarks.paper.preemption import Urgent, urgent_queries
from benchmarks.report import flags, machine, parsed, percentile, table, tell
from benchmarks.stage import load

ALIKE, MIXED = "alike", "mixed"


@dataclass(frozen=True)
class Condition:
    """One workload under one circumstance, which all methods are measured in."""

    experiment: str
    name: str
    workload: Workload
    mode: Mode = Mode.OFFLINE
    rows: int | None = None


Runs = dict[Condition, dict[str, list[Measured]]]


def main() -> None:
    args = _arguments()
    methods = NATIVE if args.native else METHODS
    config = Config(
        model=args.model,
        max_batch_size=str(args.rows),
        max_model_len=str(args.longest),
        prefix_cache=False,
        compile=args.native,
    )
    loaded, _ = load(config)
    # The first runs of a process touch memory that others find warm; and this is how the load is known.
    pilot = measured(loaded, config, methods[ORCA], workload(args, MIXED))
    some = list(conditions(args, pilot.figures.queries_per_second))
    runs: Runs = {one: defaultdict(list) for one in some}
    urgent: dict[str, list[Urgent]] = defaultdict(list)
    with tqdm(total=args.repeat * (len(some) + 1) * len(methods), unit="run", disable=None, file=sys.stderr) as bar:
        for _ in range(args.repeat):
            for one in some:
                for name, changes in methods.items():
                    bar.set_postfix_str(f"{one.experiment} {one.name}: {name}")
                    rows = {} if one.rows is None else {"max_batch_size": str(one.rows)}
                    runs[one][name].append(measured(loaded, config, {**changes, **rows}, one.workload, one.mode))
                    bar.update()
            for name, run in preempted(loaded, config, methods, args):
                urgent[name].append(run)
                bar.update()
    different = differences(runs, urgent)
    figures = as_json(runs, urgent) | {"different": different}
    tell(args, report(args, runs, urgent, different), figures)
    if args.picture:
        draw(
            args.picture,
            {one.name: by_method for one, by_method in runs.items() if one.experiment == "load"},
            offline(runs),
        )
    if different:
        sys.exit(f"{different} answers are not the same in all methods")


def workload(args: argparse.Namespace, lengths: str, arrivals: str = "at-once") -> Workload:
    """Of about equally many tokens either way."""
    drawn: dict[str, Any] = {
        ALIKE: {"prompt": f"uniform:{args.prompt - 8},{args.prompt + 8}", "answer": f"{args.answer}"},
        MIXED: {
            "prompt": f"lognormal:{args.prompt * 0.75:.0f},0.8",
            "answer": f"lognormal:{args.answer * 0.75:.0f},0.8",
        },
    }[lengths]
    made = make_workload(args.queries, **drawn, arrivals=arrivals, seed=args.seed)
    most = args.longest // 2
    return made.clipped(most, most)


def conditions(args: argparse.Namespace, capacity: float) -> Iterator[Condition]:
    """`capacity`: queries a second that Orca answers offline."""
    for lengths in (ALIKE, MIXED):
        yield Condition("offline", lengths, workload(args, lengths))
    for share in args.loads:
        timed = workload(args, MIXED, f"poisson:{share * capacity:.4f}")
        yield Condition("load", f"{share:.0%}", timed, Mode.TIMED)
    for rows in args.sizes:
        yield Condition("rows", f"{rows}", workload(args, MIXED), rows=rows)


def preempted(
    loaded: Loaded, config: Config, methods: Mapping[str, Mapping[str, str]], args: argparse.Namespace
) -> Iterator[tuple[str, Urgent]]:
    """The methods that cannot preempt let an urgent query wait for its turn."""
    for name, changes in methods.items():
        changes = {**changes, "policy": "priority"} if changes["policy"] == "baton" else changes
        yield name, urgent_queries(loaded, config, changes, less=args.rows + 4, urgent=4, seed=args.seed)


def differences(runs: Runs, urgent: Mapping[str, Sequence[Urgent]]) -> int:
    """Answers that differ from the first method's first run."""
    count = 0
    for methods in runs.values():
        every = [run.figures.digests for some in methods.values() for run in some]
        count += sum(one != other for digests in every for one, other in zip(every[0], digests, strict=True))
    texts = [run.texts for some in urgent.values() for run in some]
    return count + sum(told[name] != text for told in texts for name, text in texts[0].items())


def offline(runs: Runs) -> dict[str, list[Measured]]:
    return next(every for one, every in runs.items() if (one.experiment, one.name) == ("offline", MIXED))


# The report


def report(
    args: argparse.Namespace, runs: Runs, urgent: Mapping[str, Sequence[Urgent]], different: int
) -> Iterator[str]:
    shape = workload(args, MIXED)
    prompts, answers = (sum(getattr(ask, name) for ask in shape.asks) for name in ("prompt_tokens", "answer_tokens"))
    how = "native steps where they can be" if args.native else "every step in torch"
    yield (
        f"{args.queries} queries ({prompts:,} prompt tokens, {answers:,} generated, of mixed lengths: medians "
        f"{args.prompt * 0.75:.0f} and {args.answer * 0.75:.0f}), {args.rows} rows unless said otherwise, {how}; "
        f"{args.repeat} alternated runs, medians (range). {machine(args.model)}"
    )
    yield from ("", "**Offline**: all queries at once. Speeds against Orca's in the same round.", "")
    yield from table(
        ("lengths", "method", "tokens/s", "against Orca", "idle ratio", "padded KV columns", "end to end p50 / p95 s"),
        (_offline_row(*each) for each in _each(runs, "offline")),
    )
    yield from ("", "**Where the seconds go** (mixed lengths, median run):", "")
    yield from table(
        (
            "method",
            "iterations without prompts",
            "rows in each",
            "ms each",
            "seconds",
            "iterations with prompts",
            "seconds",
            "rows waiting while others are shaped in, s",
            "rest (between iterations), s",
        ),
        (_account_row(name, some) for name, some in offline(runs).items()),
    )
    yield from ("", "**Rising load**: Poisson arrivals, as a share of what Orca answers offline.", "")
    yield from table(
        (
            "load",
            "method",
            "tokens/s",
            "against Orca",
            "first token p50 / p95 s",
            "between tokens p50 / p99 / max ms",
            "end to end p50 / p95 s",
        ),
        (_load_row(*each) for each in _each(runs, "load")),
    )
    yield from ("", "**Batch sizes**: offline, mixed lengths, tokens/s (most bytes of keys and values, MB).", "")
    sizes = [one for one in runs if one.experiment == "rows"]
    yield from table(
        ("method", *(f"{one.name} rows" for one in sizes)),
        ([name, *(_size_cell(runs[one][name]) for one in sizes)] for name in offline(runs)),
    )
    yield from (
        "",
        f"**Preemption**: {args.rows + 4} answers of 96 to 192 tokens at once, and every 30 iterations an urgent query "
        "of 16; BATON takes a row for it and keeps the keys and values of whoever had it.",
        "",
    )
    yield from table(
        (
            "method",
            "urgent: first token p50 / max s",
            "others: last token p50 / max s",
            "tokens/s",
            "preemptions",
            "recomputed tokens",
        ),
        (_urgent_row(name, some) for name, some in urgent.items()),
    )
    yield from ("", f"Answers that are not the same in all methods and runs: {different}.")


def _each(runs: Runs, experiment: str) -> Iterator[tuple[Condition, str, list[Measured], list[Measured]]]:
    """Condition, method, its runs, and Orca's."""
    for one, methods in runs.items():
        if one.experiment == experiment:
            for name, some in methods.items():
                yield one, name, some, methods[ORCA]


def _offline_row(one: Condition, name: str, some: Sequence[Measured], orca: Sequence[Measured]) -> list[str]:
    return [
        one.name,
        name,
        f"**{_range([run.figures.tokens_per_second for run in some])}**",
        _against(orca, some),
        f"{_median(some, lambda run: run.figures.idle_ratio):.3f}",
        f"{_median(some, lambda run: run.account.columns_padded):.2f}",
        _waits(some, "wholes"),
    ]


def _account_row(name: str, some: Sequence[Measured]) -> list[str]:
    run = sorted(some, key=lambda run: run.figures.seconds)[len(some) // 2]
    account = run.account
    alone, prompts = sum(account.alone), sum(account.with_prompts)
    return [
        name,
        f"{len(account.alone):,}",
        f"{account.alone_rows / max(1, len(account.alone)):.1f}",
        f"{1000 * statistics.median(account.alone or [0.0]):.1f}",
        f"{alone:.2f}",
        f"{len(account.with_prompts):,}",
        f"{prompts:.2f}",
        f"{account.moving:.2f}",
        f"{run.figures.seconds - alone - prompts:.2f}",
    ]


def _load_row(one: Condition, name: str, some: Sequence[Measured], orca: Sequence[Measured]) -> list[str]:
    gaps = [gap for run in some for gap in run.figures.gaps]
    between = " / ".join(f"{1000 * percentile(gaps, at):.0f}" for at in (50, 99, 100))
    return [
        one.name,
        name,
        _range([run.figures.tokens_per_second for run in some]),
        _against(orca, some),
        _waits(some, "first_tokens"),
        between,
        _waits(some, "wholes"),
    ]


def _size_cell(some: Sequence[Measured]) -> str:
    most = max(run.account.kv_bytes_most for run in some) / 1e6
    return f"{_median(some, lambda run: run.figures.tokens_per_second):.0f} ({most:.0f})"


def _urgent_row(name: str, some: Sequence[Urgent]) -> list[str]:
    first, others = ([wait for run in some for wait in getattr(run, kind)] for kind in ("first", "others"))
    return [
        name,
        f"**{percentile(first, 50):.2f} / {max(first):.2f}**",
        f"{percentile(others, 50):.2f} / {max(others):.2f}",
        _range([run.tokens_per_second for run in some]),
        f"{some[0].preemptions}",
        f"{some[0].recomputed}",
    ]


def _against(orca: Sequence[Measured], some: Sequence[Measured]) -> str:
    """Speed against Orca's of the same round."""
    pairs = zip(some, orca, strict=True)
    ratios = [mine.figures.tokens_per_second / other.figures.tokens_per_second for mine, other in pairs]
    return f"{_range(ratios, 2)}x"


def _median(some: Sequence[Measured], read: Callable[[Measured], float]) -> float:
    return statistics.median(map(read, some))


def _waits(some: Sequence[Measured], kind: str) -> str:
    every = [wait for run in some for wait in getattr(run.figures, kind)]
    return f"{percentile(every, 50):.2f} / {percentile(every, 95):.2f}"


def _range(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def as_json(runs: Runs, urgent: Mapping[str, Sequence[Urgent]]) -> dict[str, Any]:
    return {
        "runs": [
            {
                "experiment": one.experiment,
                "condition": one.name,
                "method": name,
                "tokens_per_second": [run.figures.tokens_per_second for run in some],
                "idle_ratio": [run.figures.idle_ratio for run in some],
                "end_to_end": [run.figures.end_to_end for run in some],
                "first_token": [run.figures.first_token for run in some],
            }
            for one, methods in runs.items()
            for name, some in methods.items()
        ],
        "urgent": {name: [run.first for run in some] for name, some in urgent.items()},
    }


def _arguments() -> argparse.Namespace:
    parser = flags(__doc__, "paper")
    parser.add_argument("--native", action="store_true", help="native steps, without the paper's own shaping")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=96, help="mean tokens of a prompt, about")
    parser.add_argument("--answer", type=int, default=64, help="mean tokens of an answer, about")
    parser.add_argument("--longest", type=int, default=640, help="context: half of it for each of the two at most")
    parser.add_argument("--loads", type=_numbers, default=(0.5, 0.9, 1.3), metavar="SHARE,...", help="of Orca's rate")
    parser.add_argument("--sizes", type=_numbers, default=(2, 4, 16), metavar="ROWS,...", help="batch sizes")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--picture", type=Path, metavar="FILE.png")
    args = parsed(parser)
    args.sizes = tuple(int(rows) for rows in args.sizes)
    return args


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
