"""What preemption by priority gives urgent queries, and what it takes from others: `priority` against `baton`.

A batch full of long, less urgent answers, and more of them waiting; every so many iterations an urgent query arrives.
The same queries at the same iterations under both policies, alternated; under `baton`, which has no priorities, the
urgent ones wait for their turn. All texts must be equal between the two.

    python -m benchmarks.cpu.priority
    python -m benchmarks.cpu.priority --model models/m135 --less 10 --answers 48:128 --urgent 3 --turns 2
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from baton.bench.drive import Response
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.settings import Settings
from baton.loader.loaded import Loaded
from benchmarks.report import flags, machine, parsed, percentile, table, tell
from benchmarks.stage import Stage, load, prompts

POLICIES = ("priority", "baton")
URGENT, LESS_URGENT = 0, 10


@dataclass(frozen=True)
class Request:
    """A query, and the iteration in which it arrives."""

    name: str
    at: int
    prompt: list[int]
    tokens: int
    priority: int


@dataclass(frozen=True)
class Run:
    policy: str
    seconds: float
    answers: dict[str, Response]
    recomputed: int

    def urgent(self) -> list[Response]:
        return [answer for name, answer in self.answers.items() if name.startswith("urgent")]

    @property
    def tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self.answers.values())


def main() -> None:
    args = _arguments()
    loaded, settings = load(Config(model=args.model, max_batch_size=str(args.rows), policy="priority"))
    asked = queries(args, loaded)
    turns: list[dict[str, Run]] = []
    total = sum(one.tokens for one in asked) * args.turns * len(POLICIES)
    with tqdm(total=total, unit="token", disable=None) as bar:
        run("baton", loaded, settings, asked[:2], bar)  # the first forwards of a process warm its memory up
        bar.reset()
        for _ in range(args.turns):
            turns.append({policy: run(policy, loaded, settings, asked, bar) for policy in POLICIES})
    figures = figures_of(turns)
    different = figures["texts_different"]
    tell(args, report(args, asked, figures), figures)
    if different:
        sys.exit("texts differ between the policies")


def queries(args: argparse.Namespace, loaded: Loaded) -> list[Request]:
    """In the order of their arrival."""
    dice = random.Random(args.seed)
    shortest, longest = args.answers
    texts = prompts(loaded, [args.prompt] * (args.less + args.urgent), dice)
    less = [
        Request(f"less {at}", 0, text, dice.randint(shortest, longest), LESS_URGENT)
        for at, text in enumerate(texts[: args.less])
    ]
    urgent = [
        Request(f"urgent {at}", args.every * (at + 1), text, args.urgent_answer, URGENT)
        for at, text in enumerate(texts[args.less :])
    ]
    return [*less, *urgent]


def run(policy: str, loaded: Loaded, settings: Settings, asked: Sequence[Request], bar: tqdm) -> Run:
    stage = Stage(loaded, settings, policy, heard=bar.update)
    began, later = monotonic(), deque(asked)
    for turn in itertools.count():
        while later and later[0].at <= turn:
            one = later.popleft()
            stage.ask(one.name, one.prompt, one.tokens, priority=one.priority if policy == "priority" else 0)
        if stage.engine.busy:
            stage.turn()
        elif not later:
            break
    return Run(policy, monotonic() - began, stage.answers, stage.engine.totals.slots.recomputed)


def figures_of(turns: Sequence[dict[str, Run]]) -> dict[str, Any]:
    """Seconds. `added`: how much later a query ended under `priority` than under `baton` in the same turn."""
    figures: dict[str, Any] = {}
    for policy in POLICIES:
        mine = [turn[policy] for turn in turns]
        urgent = [answer for run in mine for answer in run.urgent()]
        figures[policy] = {
            "first_token": _spread([answer.first for answer in urgent]),
            "last_token": _spread([answer.whole for answer in urgent]),
            "tokens_per_second": statistics.median(run.tokens / run.seconds for run in mine),
            "seconds": [run.seconds for run in mine],
            "preemptions": sum(_preemptions(answer) for run in mine for answer in run.answers.values()),
            "recomputed_tokens": sum(run.recomputed for run in mine),
        }
    displaced, others = list[Any](), list[Any]()
    for turn in turns:
        for name, answer in turn["priority"].answers.items():
            if name.startswith("less"):
                added = answer.whole - turn["baton"].answers[name].whole
                (displaced if _preemptions(answer) else others).append(added)
    texts = {name: answer.text for name, answer in turns[0]["baton"].answers.items()}
    runs = [run for turn in turns for run in turn.values()]
    return {
        **figures,
        "added_to_displaced": _spread(displaced),
        "added_to_others": _spread(others),
        "texts_different": sum(run.answers[name].text != text for run in runs for name, text in texts.items()),
    }


def report(args: argparse.Namespace, asked: Sequence[Request], figures: dict[str, Any]) -> list[str]:
    head = ["policy", "urgent: first token p50 / p95 / max s", "last token p50 / p95 / max s", "preemptions"]
    head += ["recomputed tokens", "tokens/s of all"]
    rows = [
        (
            f"`{policy}`",
            f"**{_three(told['first_token'])}**",
            _three(told["last_token"]),
            f"{told['preemptions']}",
            f"{told['recomputed_tokens']}",
            f"{told['tokens_per_second']:.0f}",
        )
        for policy, told in ((policy, figures[policy]) for policy in POLICIES)
    ]
    displaced, others = figures["added_to_displaced"], figures["added_to_others"]
    return [
        f"{args.less} less urgent queries at once, {args.prompt} prompt tokens, answers of {args.answers[0]} to "
        f"{args.answers[1]} ({sum(one.tokens for one in asked):,} tokens with the urgent ones), {args.rows} rows; "
        f"{args.urgent} urgent ones, one every {args.every} iterations, answers of {args.urgent_answer}; "
        f"{args.turns} alternated turns. {machine(args.model)}",
        "",
        *table(head, rows),
        "",
        "What the less urgent lost, in seconds later at their end than under `baton` (p50 / p95 / max): "
        f"those that were displaced {_three(displaced)} ({displaced['count']}), "
        f"the others {_three(others)} ({others['count']}). "
        f"Texts that differ between policies or turns: {figures['texts_different']}.",
    ]


def _preemptions(answer: Response) -> int:
    return answer.usage.preemptions if answer.usage else 0


def _spread(seconds: Sequence[float]) -> dict[str, Any]:
    percentiles = (
        {name: percentile(seconds, at) for name, at in (("p50", 50), ("p95", 95), ("max", 100))} if seconds else {}
    )
    return {"count": len(seconds), **percentiles}


def _three(told: dict[str, Any]) -> str:
    return " / ".join(f"{told[name]:.2f}" for name in ("p50", "p95", "max")) if told["count"] else "none"


def _arguments() -> argparse.Namespace:
    parser = flags(__doc__, "priority")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--less", type=int, default=16, help="less urgent queries, all there from the start")
    parser.add_argument("--prompt", type=int, default=64, help="every prompt, in tokens")
    parser.add_argument(
        "--answers", type=_range, default=(128, 384), metavar="FROM:TO", help="of the less urgent, tokens"
    )
    parser.add_argument("--urgent", type=int, default=10, help="urgent queries")
    parser.add_argument("--urgent-answer", type=int, default=32, help="in tokens")
    parser.add_argument("--every", type=int, default=40, help="iterations from one urgent query to the next")
    parser.add_argument("--turns", type=int, default=3)
    return parsed(parser)


def _range(text: str) -> tuple[int, int]:
    low, high = map(int, text.split(":"))
    return low, high


if __name__ == "__main__":
    main()
