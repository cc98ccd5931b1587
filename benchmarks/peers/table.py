"""The report of cpu_peers.py: a table for each number format, and how near steps are to their bytes."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.job import Ask
from benchmarks.report import command, machine, table

WEIGHT_BYTES: dict[str, float] = {"bfloat16": 2, "float32": 4, "int8": 1, "q4_0": 4.5 / 8, "q4_k_m": 4.8 / 8}
"""Of the 4-bit forms with their scales, and about: what has 6 bits depends on the model."""
KV_NUMBER_BYTES = {"bfloat16": 2, "float32": 4, "int8": 2, "q4_0": 2, "q4_k_m": 2}
HEAD: tuple[str, ...] = (
    "engine",
    "generated tokens/s",
    "`baton` is faster by",
    "step ms",
    "GB/s of what a step must move",
)
HEAD += ("prefill tokens/s", "first token after s", "peak MB", "of these while at work", "answers as `baton`'s")
Run = dict[str, Any]


def needed_bytes(model: Path, config: dict[str, Any], rows: int) -> Callable[[str, int], int]:
    """The fewest bytes of a step of so many rows, of a number format and KV columns of all rows: weights once, KV once.

    Of a table of embeddings that is not the output layer too, a step reads next to nothing; of experts those that rows
    choose, as if all were equally likely. States of recurrent layers are not counted.
    """
    weights: dict[str, float] = {}
    for file in model.glob("*.safetensors"):
        with file.open("rb") as opened:
            told = json.loads(opened.read(*struct.unpack("<Q", opened.read(8))))
        weights |= {name: math.prod(one["shape"]) for name, one in told.items() if name != "__metadata__"}
    if any("lm_head" in name for name in weights):
        weights = {name: count for name, count in weights.items() if "embed" not in name}
    experts = config.get("num_experts") or config.get("num_local_experts") or 0
    if experts:
        share = 1 - (1 - config["num_experts_per_tok"] / experts) ** rows
        weights = {name: count * (share if ".experts." in name else 1) for name, count in weights.items()}
    total = sum(weights.values())
    kinds = config.get("layer_types") or ["attention"] * config["num_hidden_layers"]
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads") or 0
    width = config.get("head_dim") or config["hidden_size"] // max(config.get("num_attention_heads") or 0, 1)
    column = 2 * sum("attention" in kind for kind in kinds) * heads * width
    return lambda dtype, columns: int(total * WEIGHT_BYTES[dtype]) + columns * column * KV_NUMBER_BYTES[dtype]


def report(
    args: argparse.Namespace,
    work: Sequence[Ask],
    needed: Callable[[str, int], int],
    runs: Sequence[Run],
    missing: Sequence[str],
) -> list[str]:
    """Markdown. Medians over the rounds with their range; ratios are of the same round."""
    loads = [one["load"] for one in runs]
    lines = [
        f"{len(work)} queries ({sum(len(ask.prompt) for ask in work):,} prompt tokens, "
        f"{sum(ask.tokens for ask in work):,} generated), all at once, {args.rows} rows, {args.threads} threads; "
        f"{args.rounds} alternated rounds, medians (range). Load average before the runs: "
        f"{min(loads):.1f} to {max(loads):.1f}. {machine(str(args.model))}",
    ]
    for dtype in args.dtype:
        mine = [one for one in runs if one["dtype"] == dtype]
        columns = args.rows * next((one["step_context"] for one in mine if _went(one)), 0)
        least = needed(dtype, columns)
        lines += ["", f"**{dtype}** (a step of {args.rows} rows must move {least / 1e6:,.0f} MB at least)", ""]
        able = [name for name in args.engines if any(_went(one) and one["engine"] == name for one in mine)]
        lines += table(HEAD, [_row(args, name, mine, least) for name in able])
        lines += _remarks(mine)
    if missing:
        lines += ["", f"Not installed: {', '.join(missing)}."]
    return [*lines, "", f"Again: `{command()}`"]


def _row(args: argparse.Namespace, name: str, runs: Sequence[Run], least: int) -> list[str]:
    mine = [one for one in runs if one["engine"] == name and _went(one)]
    ours = {one["round"]: one for one in runs if one["engine"] == "baton" and _went(one)}
    pairs = [(one, ours[one["round"]]) for one in mine if one["round"] in ours]
    ratios = [one["work_seconds"] / other["work_seconds"] for one, other in pairs]
    steps = [one["step_ms"] for one in mine if one["step_ms"] is not None]
    same = min((_equal(one, other) for one, other in pairs), default=None)
    itself = name == "baton"
    return [
        f"`{name}` ({mine[0]['version']})",
        f"**{_spread([one['generated_tokens'] / one['work_seconds'] for one in mine], 0)}**",
        "" if itself or not ratios else f"{_spread(ratios, 2)}x",
        _spread(steps, 1),
        f"{least / statistics.median(steps) / 1e6:.1f}" if steps else "",
        _spread([one["prefill_tokens_per_second"] for one in mine], 0),
        _spread([one["first_token_seconds"] for one in mine], 1),
        _spread([one["peak_bytes"] / 1e6 for one in mine], 0),
        _spread([one["peak_work_bytes"] / 1e6 for one in mine], 0),
        "" if itself or same is None else f"{same} of {args.queries}",
    ]


def _remarks(runs: Sequence[Run]) -> list[str]:
    """Engines that could not take part, and why."""
    told = {one["engine"]: one.get("unsupported") or "failed" for one in runs if not _went(one)}
    return ["", *(f"- `{name}`: {why}" for name, why in told.items())] if told else []


def _went(one: Run) -> bool:
    return "work_seconds" in one


def _equal(one: Run, other: Run) -> int:
    return sum(mine == theirs for mine, theirs in zip(one["tokens"], other["tokens"], strict=True))


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    middle, low, high = (f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low} to {high})"
