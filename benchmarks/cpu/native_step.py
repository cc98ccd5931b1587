"""A decode step and a fill by themselves: where their time goes, and how near they come to the bytes they must move.

    python -m benchmarks.cpu.native_step models/m135 --dtype bfloat16 [--rows 1 8 16] [--fill 64 256 512]
        [--int8] [--torch] [--neighbours 1] [--write docs/benchmarks.md --section native_step]

No engine, no server: the forward alone, over rows of `--columns` tokens each with random keys and values. The floor is
the bytes of all weights and of the rows' keys and values over the read bandwidth that this run measured (the best of
several sums of a large tensor). `--torch`: the same model without native steps. `--neighbours`: so many other processes
compute meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from baton.kv.rectangle import Rectangle
from baton.loader.choose import choose
from baton.loader.formats import FORMATS
from baton.model.port import Forward
from baton.model.visibility import Span
from baton.native.forward import NativeForward
from benchmarks.report import command, machine, table, write_section

TURNS = 21
WARM = 4
READ_BYTES = 1 << 29


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--columns", type=int, default=290)
    parser.add_argument("--fill", type=int, nargs="+", default=[64, 256, 512])
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--torch", action="store_true", help="without native steps")
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--section", default="native_step")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    weights = sum(p.numel() for p in model.parameters()) * (1 if args.int8 else dtype.itemsize)
    operations = 2 * sum(p.numel() for p in model.model.layers.parameters())
    choice = choose(model, native=not args.torch, format=FORMATS["int8" if args.int8 else "none"], release=True)
    bandwidth = read_bandwidth()
    busy = [multiprocessing.Process(target=compute, daemon=True) for _ in range(args.neighbours)]
    for process in busy:
        process.start()
    lines = [f"{choice.description}. {machine(args.model)}", ""]
    lines.append(
        f"{args.dtype}{', weights in 8 bits' * args.int8}; {torch.get_num_threads()} threads, {args.neighbours} busy "
        f"neighbours; reading {bandwidth / 1e9:.0f} GB/s. Medians of {TURNS}, by part in ms."
    )
    lines += ["", *steps(choice.forward, args.rows, args.columns, dtype, weights, bandwidth)]
    lines += ["", *fills(choice.forward, args.fill, dtype, operations), "", f"Again: `{command()}`"]
    for process in busy:
        process.terminate()
    print("\n".join(lines))
    if args.write:
        write_section(args.write, args.section, "\n".join(lines))


def steps(
    forward: Forward, rows: Sequence[int], columns: int, dtype: torch.dtype, weights: int, bandwidth: float
) -> list[str]:
    lines = []
    for count in rows:
        rectangle = rectangle_of(forward, count, columns + 1, dtype)
        spans = [Span(row, columns, 1) for row in range(count)]
        seconds, parts = timed(forward, rectangle, spans)
        kept = sum(t[:, :columns].numel() for t in (*rectangle.keys, *rectangle.values)) * dtype.itemsize
        floor = (weights + kept) / bandwidth
        lines.append([str(count), f"{1e3 * seconds:.1f}", f"{1e3 * floor:.1f}", f"{seconds / floor:.2f}x", parts])
    return table(("rows", "step ms", "floor ms", "of the floor", "products, attention, the rest"), lines)


def fills(forward: Forward, lengths: Sequence[int], dtype: torch.dtype, operations: int) -> list[str]:
    lines = []
    for length in lengths:
        rectangle = rectangle_of(forward, 1, length, dtype)
        seconds, parts = timed(forward, rectangle, [Span(0, 0, length)])
        rate = length * operations / seconds / 1e9
        lines.append([str(length), f"{1e3 * seconds:.0f}", f"{length / seconds:,.0f}", f"{rate:.0f}", parts])
    head = ("prompt tokens at once", "ms", "tokens/s", "GFLOP/s of products alone", "products, attention, the rest")
    return table(head, lines)


def timed(forward: Forward, rectangle: Rectangle, spans: Sequence[Span]) -> tuple[float, str]:
    tokens = [5] * sum(span.count for span in spans)
    run = forward.decode if all(span.count == 1 for span in spans) else forward.fill
    program = forward.program if isinstance(forward, NativeForward) else None
    seconds = []
    for turn in range(WARM + TURNS):
        if turn == WARM and program is not None:
            program.profile(True)
        began = time.perf_counter()
        _, ran = run(rectangle, spans, tokens)
        ran.commit()
        if turn >= WARM:
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds)
    if program is None:
        return median, ""
    by_kind: dict[str, float] = defaultdict(float)
    for kind, took in program.parts():
        by_kind[kind] += 1e3 * took / TURNS
    program.profile(False)
    rest = sum(by_kind.values()) - by_kind["PRODUCT"] - by_kind["ATTEND"]
    return median, f"{by_kind['PRODUCT']:.1f}, {by_kind['ATTEND']:.1f}, {rest:.1f}"


def rectangle_of(forward: Forward, rows: int, columns: int, dtype: torch.dtype) -> Rectangle:
    rectangle = Rectangle(
        forward.geometry.shapes, capacity=rows, columns=columns, dtype=dtype, device=torch.device("cpu")
    )
    for tensor in (*rectangle.keys, *rectangle.values):
        tensor.normal_()
    return rectangle


def read_bandwidth() -> float:
    """Bytes a second, the best of a few readings."""
    numbers = torch.ones(READ_BYTES // 4)
    best = 0.0
    for _ in range(6):
        began = time.perf_counter()
        numbers.sum()
        best = max(best, READ_BYTES / (time.perf_counter() - began))
    return best


def compute() -> None:
    for _ in itertools.count():
        pass


if __name__ == "__main__":
    main()
