"""Everything that an NVIDIA GPU has to show, in one command: exactness, steps against their floor, throughput, latency.

Random weights at real shapes, made on the device; lengths of the Azure conversation trace's first 256
(azure_conversations.csv). Each part, a module of `gpu/`, has a cap of seconds, and what does not fit the whole budget
is left out by name. Parts of one stage share a process, since a mistake on a GPU takes with it whatever comes after it
there. Results are written after each part as JSON and markdown. `--tiny` runs every part in small on a CPU, to find
mistakes without a GPU.

    python benchmarks/on_cuda.py --out "$OUT" --budget 460
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

import torch
import transformers
from gpu.asks import asks_of
from gpu.draws import draws
from gpu.exact import exact, logits_error
from gpu.kernel import kernel
from gpu.latency import online
from gpu.machine import machine
from gpu.memory import memory
from gpu.models import SHAPES, build
from gpu.results import Results
from gpu.steps import backend, steps
from gpu.throughput import offline

from baton.model.load import Loaded

MACHINE = "machine"
PARTS = ("machine", "exact", "kernel", "steps", "draws", "offline", "online", "memory", "experts", "float8")


def main() -> None:
    args = _arguments()
    transformers.logging.set_verbosity_error()
    if args.stage:
        one_stage(Results(args.out, args.budget, args.stage), args)
        return
    results = Results(args.out, args.budget)
    for stage in (MACHINE, *args.models):
        results.stage(stage, [sys.executable, *sys.argv])
    print((args.out / "cuda.md").read_text())


def one_stage(results: Results, args: argparse.Namespace) -> None:
    """What is measured in a process of its own; it finds there what earlier ones found."""
    device = torch.device("cpu" if args.tiny else "cuda")
    if args.tiny:
        args.rows, args.columns, args.queries = 4, 96, 6
    if args.stage == MACHINE:
        if "machine" in args.parts:
            results.part("machine", lambda: machine(device), needs=10)
        if "exact" in args.parts:
            results.part("exact", lambda: exact(args.tiny), needs=60)
        return
    bandwidth = results.known("machine").get("copy GB/s", 4300.0) * 1e9
    with contextlib.suppress(Exception):
        one_model(results, args, args.stage, device, bandwidth)


def one_model(results: Results, args: argparse.Namespace, name: str, device: torch.device, bandwidth: float) -> None:
    made: list[Loaded] = []
    results.part(
        f"{name}: logits", lambda: made.append(build(name, device, args.tiny)) or logits_error(made[0]), needs=40
    )
    loaded, large, tiny = made[0], name.startswith("llama"), args.tiny
    rows, columns = args.rows, args.columns
    asks = asks_of(args.queries, columns)
    if "kernel" in args.parts and large:
        results.part("kernel", lambda: kernel(loaded, asks, bandwidth, columns), needs=30)
    if "steps" in args.parts:
        counts = (1, 4) if tiny else (1, 8, 32, 128)
        results.part(f"{name}: steps", lambda: steps(loaded, asks, bandwidth, columns, counts, None), needs=20)
        counted = (4,) if tiny else (rows,)
        results.part(
            f"{name}: steps compiled",
            lambda: steps(loaded, asks, bandwidth, columns, counted, backend(tiny)),
            needs=90,
        )
    if "draws" in args.parts and (not large or tiny):
        results.part(f"{name}: draws", lambda: draws(loaded, (2,) if tiny else (8, 32, 128)), needs=15)
    if "offline" in args.parts:
        offline(results, loaded, asks, rows, columns, tiny)
    if "online" in args.parts and (large or tiny):
        best = [one["tokens/s"] for one in results.found.get(f"{name}: offline", []) if one["policy"] == "baton"]
        rate = max(best, default=1000.0)
        results.part(
            f"{name}: online", lambda: online(loaded, asks, rows, columns, rate, 2.0 if tiny else 10.0), needs=50
        )
    if "memory" in args.parts and (not large or tiny):
        results.part(f"{name}: memory", lambda: memory(loaded, 64 if tiny else 8192, 30.0), needs=60)


def in_float8(results: Results, args: argparse.Namespace, device: torch.device, bandwidth: float) -> None:
    """The large model's steps again, with linear layers in float8."""
    made: list[Loaded] = []
    name, counts = "llama-3.1-8b in float8", (1, 4) if args.tiny else (1, 8, 32)
    results.part(
        f"{name}: logits",
        lambda: made.append(build("llama-3.1-8b", device, args.tiny, float8=True)) or logits_error(made[0], 0.2),
        needs=50,
    )
    asks = asks_of(args.queries, args.columns)
    results.part(f"{name}: steps", lambda: steps(made[0], asks, bandwidth, args.columns, counts, None), needs=20)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--budget", type=float, default=460.0)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=sorted(SHAPES), default=["llama-3.1-8b", "qwen3-0.6b"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--columns", type=int, default=4736)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: a test of this file")
    parser.add_argument("--stage", help="this one alone, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
