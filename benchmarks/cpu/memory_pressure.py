"""Four times more keys and values than there is memory for: everything finishes, within the budget, as if alone.

Queries of the Azure trace's lengths, with longer answers, arrive at once. Rows and pool together (`--kv-memory` and
`--swap-memory`, half each) may hold a quarter of what all would take at their ends. The process's resident memory may
grow by that budget and a constant: what the same run takes beside its keys and values when there is memory for all,
and one row, which is there twice while it is moved. Every answer must be what stock `generate` gives for the same
query alone.

    python -m benchmarks.cpu.memory_pressure
    python -m benchmarks.cpu.memory_pressure --model models/m135 --queries 16 --clip-prompt 64 --clip-answer 128
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from baton.core.clock import monotonic
from baton.core.config import Config
from baton.core.events import Event, IterationDone, QueryMoved
from baton.core.query import State
from baton.core.settings import Settings, resolve
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from benchmarks import TRACE
from benchmarks.cpu import resident
from benchmarks.report import flags, machine, parsed, table, tell
from benchmarks.stage import Stage, load, prompts

MIB = 2**20
# Of the generated tokens.
MOST_RECOMPUTED = 0.02


@dataclass
class Memory:
    """A sink: the most that rows, pool, and both with stored prefixes took, and which queries lost what, by reason.

    `grown`: the most that resident memory grew from `base`; `beside`: beyond what those took at that moment.
    """

    base: int
    stage: Stage | None = None
    rows: int = 0
    pool: int = 0
    together: int = 0
    beside: int = 0
    grown: int = 0
    lost_rows: Counter[str] = field(default_factory=Counter)
    forgotten: Counter[str] = field(default_factory=Counter)

    def __call__(self, event: Event) -> None:
        if isinstance(event, QueryMoved):
            if event.was is State.RUNNING and event.now is State.READY:
                self.lost_rows[event.why] += 1
            elif event.was is not None and event.now is State.WAITING:
                self.forgotten[event.why] += 1
        elif isinstance(event, IterationDone) and self.stage is not None:
            held = event.kv_bytes_used + event.swap_bytes_used + self.stage.engine.queries.prefixes.bytes_used
            self.rows = max(self.rows, event.kv_bytes_used)
            self.pool = max(self.pool, event.swap_bytes_used)
            self.together = max(self.together, held)
            grown = resident.now() - self.base
            self.grown = max(self.grown, grown)
            self.beside = max(self.beside, grown - held)


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    tokens: int


Outcome = tuple[list[Request], list[list[int]], dict[str, Any]]


def main() -> None:
    args = _arguments()
    asked, answers, figures = in_a_process(args, pressed=True)
    *_, roomy = in_a_process(args, pressed=False)
    alone = one_by_one(args, asked)
    constant = roomy["beside_bytes"] + figures["row_bytes"]
    figures |= {
        "bound_bytes": figures["kv_bytes"] + figures["swap_bytes"] + constant,
        "recomputed_share": figures["recomputed_tokens"] / figures["generated_tokens"],
        "different": sum(tokens != answers[at] for at, tokens in enumerate(alone)),
        "unfinished": sum(len(answers[at]) != one.tokens for at, one in enumerate(asked)),
        "without_pressure": roomy,
    }
    tell(args, report(args, asked, figures), figures)
    kept = figures["peak_bytes"] <= figures["bound_bytes"] and figures["recomputed_share"] <= MOST_RECOMPUTED
    if not kept or figures["different"] or figures["unfinished"]:
        sys.exit("memory pressure: not what was promised, see above")


def in_a_process(args: argparse.Namespace, *, pressed: bool) -> Outcome:
    """A run in a fresh process, because memory that one run leaves in the allocator would serve the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, args, pressed).result()


def measured(args: argparse.Namespace, pressed: bool) -> Outcome:
    """The queries, token ids of each, and the run's figures; with memory for all if it is not pressed."""
    config = config_of(args)
    loaded, settings = load(config)
    asked = queries(args, loaded, settings.max_model_len)
    settings, need = squeezed(args, config, loaded, asked)
    about = {
        "need_bytes": need,
        "kv_bytes": settings.kv_bytes,
        "swap_bytes": settings.swap_bytes,
        "row_bytes": facts_of(loaded).footprint.of(settings.max_model_len),
    }
    # The first forwards of a process map code and start threads.
    run(args.policy, loaded, settings, asked[:2], "warm-up")
    what = "under pressure" if pressed else "with memory for all"
    holds = settings if pressed else replace(settings, kv_bytes=2 * need)
    answers, figures = run(args.policy, loaded, holds, asked, what)
    return asked, answers, about | figures


def config_of(args: argparse.Namespace) -> Config:
    return Config(model=args.model, policy=args.policy, max_batch_size=str(args.rows or args.queries))


def queries(args: argparse.Namespace, loaded: Loaded, context: int) -> list[Request]:
    dice = random.Random(args.seed)
    with args.trace.open() as file:
        rows = list(itertools.islice(csv.DictReader(file), args.queries))
    lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]
    answers = [min(args.longer * answer, args.clip_answer, context // 2) for _, answer in lengths]
    wanted = [
        min(prompt, args.clip_prompt, context - answer) for (prompt, _), answer in zip(lengths, answers, strict=True)
    ]
    return [Request(prompt, answer) for prompt, answer in zip(prompts(loaded, wanted, dice), answers, strict=True)]


def squeezed(
    args: argparse.Namespace, config: Config, loaded: Loaded, asked: Sequence[Request]
) -> tuple[Settings, int]:
    """Settings with the pressed budget, and the bytes that all queries would take together at their ends."""
    facts = facts_of(loaded)
    need = sum(facts.footprint.of(len(one.prompt) + one.tokens) for one in asked)
    half = int(need / args.pressure / 2)
    longest = max(len(one.prompt) + one.tokens for one in asked)
    pressed = replace(config, kv_memory=str(half), swap_memory=str(half), max_model_len=str(longest))
    return resolve(pressed, facts), need


def run(
    policy: str, loaded: Loaded, settings: Settings, asked: Sequence[Request], what: str
) -> tuple[list[list[int]], dict[str, Any]]:
    """Token ids of each query, and the run's figures; bytes are beyond what was resident before it."""
    base = resident.settled()
    resident.reset_peak()
    watch = Memory(base)
    began = monotonic()
    with tqdm(total=sum(one.tokens for one in asked), desc=what, unit="token", disable=None) as bar:
        watch.stage = stage = Stage(loaded, settings, policy, [watch], heard=bar.update)
        for at, one in enumerate(asked):
            stage.ask(f"{at}", one.prompt, one.tokens)
        stage.finish()
    peak, totals = max(resident.peak() - base, watch.grown), stage.engine.totals
    return [answer.tokens for answer in stage.answers.values()], {
        "seconds": monotonic() - began,
        "iterations": totals.iterations,
        "generated_tokens": totals.generated_tokens,
        "recomputed_tokens": totals.slots.recomputed,
        "lost_rows": dict(watch.lost_rows),
        "forgotten": dict(watch.forgotten),
        "rows_most_bytes": watch.rows,
        "pool_most_bytes": watch.pool,
        "together_most_bytes": watch.together,
        "peak_bytes": peak,
        "beside_bytes": max(watch.beside, peak - watch.together),
    }


def one_by_one(args: argparse.Namespace, asked: Sequence[Request]) -> list[list[int]]:
    """What stock `generate` gives for each query alone, with stock attention: token ids."""
    outputs: list[list[int]] = []

    def generate(model: PreTrainedModel) -> None:
        model.generation_config = GenerationConfig()
        with tqdm(total=sum(one.tokens for one in asked), unit="token alone", disable=None) as bar:
            for one in asked:
                ids = torch.tensor([one.prompt], device=model.device)
                exactly = {"max_new_tokens": one.tokens, "min_new_tokens": one.tokens, "eos_token_id": None}
                with torch.inference_mode():
                    out = model.generate(
                        ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, **exactly
                    )
                outputs.append(out[0, len(one.prompt) :].tolist())
                bar.update(one.tokens)

    load(config_of(args), before=generate)
    return outputs


def report(args: argparse.Namespace, asked: Sequence[Request], figures: dict[str, Any]) -> list[str]:
    budget, roomy = figures["kv_bytes"] + figures["swap_bytes"], figures["without_pressure"]
    where = "the process's own high-water mark" if resident.PEAK.exists() else "at the end of each iteration"
    rows = [
        ("keys and values of all queries at their ends", _mib(figures["need_bytes"])),
        ("budget: rows + pool", f"{_mib(figures['kv_bytes'])} + {_mib(figures['swap_bytes'])}"),
        (
            "most in rows / swapped out / together, with stored prefixes",
            " / ".join(_mib(figures[f"{name}_most_bytes"]) for name in ("rows", "pool", "together")),
        ),
        (f"**resident memory grew by at most** ({where})", f"**{_mib(figures['peak_bytes'])}**"),
        (
            "budget + constant (beside keys and values, without pressure; one row)",
            f"{_mib(figures['bound_bytes'])} = {_mib(budget)} + ({_mib(roomy['beside_bytes'])} + "
            f"{_mib(figures['row_bytes'])})",
        ),
        ("without pressure: keys and values, and what the process grew by", _both(roomy)),
        ("queries finished", f"{len(asked) - figures['unfinished']} of {len(asked)}"),
        ("lost their row, by reason", _counts(figures["lost_rows"])),
        ("forgotten, by reason", _counts(figures["forgotten"])),
        ("recomputed tokens, as a share of generated ones", f"{figures['recomputed_share']:.2%}"),
        ("answers different from stock `generate` alone", f"{figures['different']}"),
        ("tokens/s, and without pressure", f"{_speed(figures)}, {_speed(roomy)}"),
    ]
    return [
        f"{len(asked)} queries at once ({sum(len(one.prompt) for one in asked):,} prompt tokens, "
        f"{sum(one.tokens for one in asked):,} generated), policy `{args.policy}`, "
        f"up to {args.rows or len(asked)} rows. {machine(args.model)}",
        "",
        *table(("", f"{args.pressure:g}x the budget"), rows),
    ]


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB"


def _both(figures: dict[str, Any]) -> str:
    return f"{_mib(figures['together_most_bytes'])}, {_mib(figures['peak_bytes'])}"


def _speed(figures: dict[str, Any]) -> str:
    return f"{figures['generated_tokens'] / figures['seconds']:.0f}"


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count} for {why}" for why, count in sorted(counted.items())) or "none"


def _arguments() -> argparse.Namespace:
    parser = flags(__doc__, "memory_pressure")
    parser.add_argument("--trace", type=Path, default=TRACE, help="Azure LLM inference trace 2023, CSV")
    parser.add_argument("--policy", choices=("baton", "priority", "slo", "orca"), default="baton")
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--rows", type=int, help="most rows; as many as queries if left out: memory alone is the bound")
    parser.add_argument("--pressure", type=float, default=4.0, help="keys and values of all, in budgets")
    parser.add_argument("--clip-prompt", type=int, default=256, help="longest prompt, in tokens")
    parser.add_argument("--clip-answer", type=int, default=768, help="longest answer, in tokens")
    parser.add_argument("--longer", type=int, default=4, help="answers are so many times as long as the trace's")
    return parsed(parser)


if __name__ == "__main__":
    main()
