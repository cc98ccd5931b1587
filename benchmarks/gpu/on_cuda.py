"""Everything that an NVIDIA GPU has to show, in one command: exactness, steps against their floor, throughput, latency.

Random weights at real shapes, made on the device; lengths of the Azure conversation trace's first 256 queries. Each
part, a module beside this one, has a cap of seconds, and what does not fit the whole budget is left out by name. Parts
of one stage share a process, since a mistake on a GPU takes with it whatever comes after it there. Results are written
after each part as JSON and Markdown. `--tiny` runs every part in small on a CPU, to find mistakes without a GPU.

    python -m benchmarks.gpu.on_cuda --out "$OUT" --budget 460
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from baton.loader.loaded import Loaded
from benchmarks.gpu.aside import aside
from benchmarks.gpu.asks import Ask, asks_of
from benchmarks.gpu.draws import draws
from benchmarks.gpu.exact import exact, logits_error
from benchmarks.gpu.experts import experts
from benchmarks.gpu.fills import fills, streams
from benchmarks.gpu.kernel import kernel
from benchmarks.gpu.latency import online
from benchmarks.gpu.machine import machine
from benchmarks.gpu.memory import memory
from benchmarks.gpu.models import SHAPES, build
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import backend, steps
from benchmarks.gpu.throughput import offline

SHOWN = ("machine", "exact", "steps", "offline", "online", "memory")
"""What must be shown on a GPU."""
DECIDED = ("kernel", "draws", "fills", "aside", "experts", "float8")
"""What the figures decide."""
SMALL, LARGE = "qwen3-0.6b", "llama-3.1-8b"
# Stages that belong to no one model, and their parts.
STAGES = {"machine": ("machine", "exact"), "mapped": ("memory",), "experts": ("experts",), "in-float8": ("float8",)}
# The share of the remaining time that a stage may take, relative to later stages.
WEIGHTS = {"machine": 2.0, LARGE: 2.4, SMALL: 1.4, "mapped": 0.5, "experts": 0.4, "in-float8": 0.5}


def main() -> None:
    args = _arguments()
    transformers.logging.set_verbosity_error()
    if args.stage:
        with contextlib.suppress(Exception):
            one_stage(Results(args.out, args.budget, args.stage), args)
        return
    results = Results(args.out, args.budget)
    stages = _stages(args)
    for at, stage in enumerate(stages):
        if args.tiny and at:
            # A process's imports take longer than its small parts: only the first has one of its own.
            _in_this_process(results, args, stage)
            continue
        share = WEIGHTS[stage] / sum(WEIGHTS[later] for later in stages[at:])
        results.stage(stage, [sys.executable, *sys.orig_argv[1:]], share=share)
    print((args.out / "cuda.md").read_text())


def _in_this_process(results: Results, args: argparse.Namespace, stage: str) -> None:
    some = Results(args.out, results.left, stage)
    one_stage(some, argparse.Namespace(**{**vars(args), "stage": stage}))
    results.by_part |= some.by_part
    results.write()


def _stages(args: argparse.Namespace) -> list[str]:
    wanted = set(args.parts)
    others = {name: wanted.intersection(parts) for name, parts in STAGES.items()}
    of_models = wanted.difference(*STAGES.values())
    order = ("machine", *(args.models if of_models else ()), "mapped", "experts", "in-float8")
    return [stage for stage in order if others.get(stage, True)]


def one_stage(results: Results, args: argparse.Namespace) -> None:
    """The measurements of one process; it can read those of earlier ones."""
    device, parts, tiny = torch.device("cpu" if args.tiny else "cuda"), args.parts, args.tiny
    if tiny:
        args.rows, args.columns, args.queries = 4, 96, 6
    bandwidth = results.known("machine").get("copy GB/s", 4300.0) * 1e9
    if args.stage == "machine":
        if "machine" in parts:
            results.part("machine", lambda: machine(device), needs=10)
        if "exact" in parts:
            results.part("exact", lambda: exact(tiny, results.left), needs=40)
    elif args.stage == "mapped":
        loaded = _built(results, args, args.models[-1], device)
        results.part(f"{loaded.name}: memory", lambda: memory(loaded, 64 if tiny else 8192, _cap(results, 2)), needs=30)
    elif args.stage == "experts":
        counts = (1, 4) if tiny else (1, 8, 32)
        results.part("experts", lambda: experts(device, bandwidth, counts, tiny), needs=25)
    elif args.stage == "in-float8":
        loaded = _built(results, args, LARGE, device, float8=True)
        asks, counts = asks_of(args.queries, args.columns), (1, 4) if tiny else (1, 8, 32)
        of = (loaded, asks, bandwidth, args.columns, counts, None)
        results.part(f"{LARGE} in float8: steps", lambda: steps(*of), needs=15)
    else:
        one_model(results, args, _built(results, args, args.stage, device), bandwidth)


def one_model(results: Results, args: argparse.Namespace, loaded: Loaded, bandwidth: float) -> None:
    name, parts, tiny = loaded.name, args.parts, args.tiny
    rows, columns, large = args.rows, args.columns, loaded.name == LARGE
    asks = asks_of(args.queries, columns)
    if "steps" in parts:
        counts, counted = ((1, 4), (4,)) if tiny else ((1, 8, 32, 128), (1, rows))
        results.part(f"{name}: steps", lambda: steps(loaded, asks, bandwidth, columns, counts, None), needs=15)
        compiled = backend(tiny)
        results.part(
            f"{name}: steps compiled", lambda: steps(loaded, asks, bandwidth, columns, counted, compiled), needs=40
        )
    if "offline" in parts:
        offline(results, loaded, asks, rows, columns, tiny)
    if "online" in parts and (large or tiny):
        best = [one["tokens/s"] for one in results.by_part.get(f"{name}: offline", []) if one["policy"] == "baton"]
        rate = max(best, default=1000.0)
        cap = 2.0 if tiny else min(10.0, _cap(results, 4))
        results.part(f"{name}: online", lambda: online(loaded, asks, rows, columns, rate, cap), needs=20)
    if "draws" in parts and (not large or tiny):
        results.part(f"{name}: draws", lambda: draws(loaded, (2,) if tiny else (8, 32, 128)), needs=15)
    if "fills" in parts and (large or tiny):
        _fills(results, loaded, asks, rows, columns)
    if "aside" in parts and (not large or tiny):
        aside(results, loaded, tiny)
    # Last, as it maps memory: what goes wrong there ends the process.
    if "kernel" in parts and large:
        results.part("kernel", lambda: kernel(loaded, asks, bandwidth, columns), needs=20)


def _fills(results: Results, loaded: Loaded, asks: Sequence[Ask], rows: int, columns: int) -> None:
    product = results.known("machine").get("product TFLOP/s", 750.0) * 1e12
    results.part(f"{loaded.name}: fills", lambda: fills(loaded, asks, product, columns), needs=15)
    cap = min(15.0, _cap(results, 4))
    results.part(
        f"{loaded.name}: fills beside steps",
        lambda: streams(loaded, asks[: 3 * rows], rows, columns, cap),
        needs=35,
    )


def _built(
    results: Results, args: argparse.Namespace, name: str, device: torch.device, *, float8: bool = False
) -> Loaded:
    """Raises if the model cannot be made, which has been reported by then."""
    made: list[Loaded] = []

    def build_and_check() -> object:
        made.append(build(name, device, args.tiny, float8=float8))
        return logits_error(made[0], 0.2 if float8 else None)

    results.part(f"{name}{' in float8' if float8 else ''}: logits", build_and_check, needs=20)
    return made[0]


def _cap(results: Results, runs: int) -> float:
    """Seconds for each of so many runs in the remaining time, besides the work before and after them."""
    return max(2.0, 0.75 * results.left / runs)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--budget", type=float, default=460.0)
    parser.add_argument("--parts", nargs="+", choices=(*SHOWN, *DECIDED), default=list(SHOWN))
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=[LARGE, SMALL])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--columns", type=int, default=4736)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: a test of this file")
    parser.add_argument("--stage", help="this one alone, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
