"""How long a running query waits for others' prompts: one decodes while attackers keep sending the longest legal ones.

For each policy, alternated: a victim decodes alone for a while, then `--attackers` queries of as many prompt tokens as
the context allows are there at any moment, each replaced when it is done, for `--seconds`. Gaps are between the
victim's tokens as its client hears them. Its text must be the beginning of what it is without attackers.

    python -m benchmarks.cpu.stall
    python -m benchmarks.cpu.stall --model models/m135 --seconds 60 --turns 2 --section stall_real_shape
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from baton.bench.drive import Response
from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.events import Event, IterationDone
from baton.core.settings import Settings
from baton.loader.loaded import Loaded
from benchmarks.report import flags, machine, parsed, percentile, table, tell
from benchmarks.stage import Stage, load, prompts

POLICIES = ("baton", "orca")


@dataclass
class Progress:
    """A sink that notes when prompts were computed, and how much of them."""

    tokens: int = 0
    times: list[float] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationDone) and event.prefilled_tokens:
            self.tokens += event.prefilled_tokens
            self.times.append(event.time)


@dataclass(frozen=True)
class Attack:
    """One run under attack. `gaps`: the victim's, in seconds, from its last token before the attack.

    `pause`: the longest time in which no token of the attackers' prompts was computed, in seconds.
    """

    policy: str
    seconds: float
    tokens: list[int]
    gaps: list[float]
    prefilled: int
    finished: int
    pause: float


def main() -> None:
    args = _arguments()
    config = Config(model=args.model, max_batch_size=str(args.rows), max_stall_ms=args.max_stall_ms)
    loaded, settings = load(config)
    dice = random.Random(args.seed)
    (prompt,) = prompts(loaded, [args.prompt], dice)
    runs: list[Attack] = []
    with tqdm(total=1 + args.turns * len(POLICIES), unit="run", disable=None) as bar:
        lone = alone(args, loaded, settings, prompt)
        bar.update()
        for _, policy in itertools.product(range(args.turns), POLICIES):
            runs.append(attack(args, loaded, settings, policy, prompt, dice))
            bar.update()
    different = sum(run.tokens != lone.tokens[: len(run.tokens)] for run in runs)
    figures = figures_of(args, lone, runs)
    tell(args, report(args, settings, figures, len(lone.tokens), different), figures | {"texts_different": different})
    if different:
        sys.exit("the victim's text differs from the one without attackers")


def alone(args: argparse.Namespace, loaded: Loaded, settings: Settings, prompt: Sequence[int]) -> Response:
    """The victim by itself."""
    stage = Stage(loaded, settings, "baton")
    answer = stage.ask("victim", prompt, args.answer)
    stage.finish()
    return answer


def attack(
    args: argparse.Namespace,
    loaded: Loaded,
    settings: Settings,
    policy: str,
    prompt: Sequence[int],
    dice: random.Random,
) -> Attack:
    progress = Progress()
    stage = Stage(loaded, settings, policy, [progress])
    victim = stage.ask("victim", prompt, args.answer)
    while len(victim.tokens) < args.before:
        stage.turn()
    began, calm, computed = monotonic(), len(victim.times), progress.tokens
    attackers: list[Response] = []
    while victim.usage is None and monotonic() - began < args.seconds:
        for _ in range(args.attackers - sum(one.usage is None for one in attackers)):
            # Of random tokens: no two begin alike, so that no prompt can be taken from another.
            legal = [dice.randrange(loaded.tokenizer.vocabulary) for _ in range(settings.max_model_len - 1)]
            attackers.append(stage.ask(f"attacker {len(attackers)}", legal, 1))
        stage.turn()
    ended = monotonic()
    times = [began, *(time for time in progress.times if time > began), ended]
    return Attack(
        policy=policy,
        seconds=ended - began,
        tokens=victim.tokens,
        gaps=victim.gaps[calm - 1 :],
        prefilled=progress.tokens - computed,
        finished=sum(one.usage is not None for one in attackers),
        pause=max(after - before for before, after in itertools.pairwise(times)),
    )


def figures_of(args: argparse.Namespace, lone: Response, runs: Sequence[Attack]) -> dict[str, Any]:
    """Milliseconds, unless said otherwise. `over`: the share of gaps longer than the bound and a usual step."""
    usual = percentile(lone.gaps, 50)
    bound = args.max_stall_ms / 1000 + usual
    figures: dict[str, Any] = {"bound": 1000 * bound, "alone": _spread(lone.gaps)}
    for policy in POLICIES:
        mine = [run for run in runs if run.policy == policy]
        gaps = [gap for run in mine for gap in run.gaps]
        figures[policy] = _spread(gaps) | {
            "longest_by_turn": [1000 * max(run.gaps, default=run.seconds) for run in mine],
            "over": sum(gap > bound for gap in gaps) / max(len(gaps), 1),
            "prefilled_tokens_per_second": statistics.median(run.prefilled / run.seconds for run in mine),
            "prompts_finished": sum(run.finished for run in mine),
            "longest_without_progress_seconds": max(run.pause for run in mine),
            "seconds": sum(run.seconds for run in mine),
        }
    return figures


def report(
    args: argparse.Namespace, settings: Settings, figures: dict[str, Any], longest: int, different: int
) -> list[str]:
    head = ["", "gaps", "p50 ms", "p95 ms", "p99 ms", "max ms (by turn)", "over the bound"]
    head += ["prompt tokens/s", "prompts finished", "longest without progress s"]
    rows = [("victim alone", *_gaps(figures["alone"]), f"{figures['alone']['max']:.0f}", "", "", "", "")]
    for policy in POLICIES:
        told = figures[policy]
        turns = ", ".join(f"{value:.0f}" for value in told["longest_by_turn"])
        rows.append(
            (
                f"`{policy}`, attacked",
                *_gaps(told),
                f"**{told['max']:.0f}** ({turns})",
                f"{told['over']:.1%}",
                f"{told['prefilled_tokens_per_second']:.0f}",
                f"{told['prompts_finished']} in {told['seconds']:.0f} s",
                f"{told['longest_without_progress_seconds']:.2f}",
            )
        )
    return [
        f"A victim of {args.prompt} prompt tokens decodes; {args.attackers} attackers of "
        f"{settings.max_model_len - 1:,} prompt tokens are there at any moment, {args.seconds:g} s a turn, "
        f"{args.turns} alternated turns, {args.rows} rows. "
        f"The bound: {args.max_stall_ms} ms (`--max-stall-ms`) and the victim's usual step alone, together "
        f"{figures['bound']:.0f} ms. {machine(args.model)}",
        "",
        *table(head, rows),
        "",
        f"Turns in which the victim's text was not what it is alone ({longest:,} tokens): {different}.",
    ]


def _gaps(told: dict[str, Any]) -> tuple[str, ...]:
    return (f"{told['count']}", *(f"{told[name]:.0f}" for name in ("p50", "p95", "p99")))


def _spread(seconds: Sequence[float]) -> dict[str, Any]:
    percentiles = {f"p{percent}": 1000 * percentile(seconds, percent) for percent in (50, 95, 99)}
    return {"count": len(seconds), **percentiles, "max": 1000 * percentile(seconds, 100)}


def _arguments() -> argparse.Namespace:
    parser = flags(__doc__, "stall")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--attackers", type=int, default=4, help="at any moment")
    parser.add_argument("--prompt", type=int, default=32, help="the victim's prompt, in tokens")
    parser.add_argument("--answer", type=int, default=512, help="the victim's answer, in tokens")
    parser.add_argument("--before", type=int, default=16, help="tokens that the victim has when the attack begins")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn's attack")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--max-stall-ms", type=int, default=200)
    return parsed(parser)


if __name__ == "__main__":
    main()
