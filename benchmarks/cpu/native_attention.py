"""Native attention by itself against SDPA as the engine uses it without: microseconds a layer, GB/s and GFLOP/s.

Layers are called one after another, and are so many that their keys and values come from memory, as in a model's step.
Each thread takes whole layers by itself: neither the engine's barriers nor its sharing out of tasks are in it.
Our threads are pinned to a core each, SDPA's are not: on a busy machine the two columns are no fair comparison.

    python -m benchmarks.cpu.native_attention --threads 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from ctypes import byref
from dataclasses import dataclass
from threading import Barrier, Thread

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from baton.kv.rectangle import LayerShape, Rectangle
from baton.model.attention import EVERYTHING, Decode, Fill, Span, decode, fill
from baton.native import library as native
from baton.native import structs

TOGETHER = 96 << 20  # bytes of keys and values of all layers: more than any cache
REPEAT = 8  # times all layers in one measurement of ours
KINDS = {torch.float32: native.FLOAT32, torch.bfloat16: native.BFLOAT16}


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    start: int
    count: int
    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return 2 * self.rows * (self.start + self.count) * self.kv_heads * self.dim * self.dtype.itemsize

    @property
    def flops(self) -> int:
        seen = self.count * self.start + self.count * (self.count + 1) // 2
        return 4 * self.rows * seen * self.heads * self.dim

    @property
    def layers(self) -> int:
        return max(4, min(30, TOGETHER // self.bytes + 1)) // 2 * 2

    @property
    def spans(self) -> list[Span]:
        return [Span(row, self.start, self.count) for row in range(self.rows)]


SMALL, QWEN = (9, 3, 64), (16, 8, 128)
CASES = [
    Case("1 row of 300", 1, 299, 1, *SMALL, torch.bfloat16),
    Case("8 rows of 300", 8, 299, 1, *SMALL, torch.bfloat16),
    Case("8 rows of 300, float32", 8, 299, 1, *SMALL, torch.float32),
    Case("16 rows of 300", 16, 299, 1, *SMALL, torch.bfloat16),
    Case("8 rows of 4096", 8, 4095, 1, *SMALL, torch.bfloat16),
    Case("8 rows of 300, 16 / 8 heads of 128", 8, 299, 1, *QWEN, torch.bfloat16),
    Case("256 tokens at 256, 2 prompts", 2, 256, 256, *SMALL, torch.bfloat16),
    Case("512 tokens at 0, 2 prompts", 2, 0, 512, *SMALL, torch.bfloat16),
    Case("256 tokens at 256, 2 prompts, 16 / 8 heads of 128", 2, 256, 256, *QWEN, torch.bfloat16),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    if native.library is None:
        parser.exit(1, "there is no native library\n")
    if not 0 < args.threads <= len(cores()):
        parser.error(f"--threads: 1 to {len(cores())} here")
    torch.set_num_threads(args.threads)
    names = [*native.variants(), "sdpa"]
    print(
        f"{args.threads} threads; microseconds a layer, medians of {args.rounds} alternated rounds; "
        f"GB/s and GFLOP/s of {names[-2]}"
    )
    print("| work | " + " | ".join(names) + " | GB/s | GFLOP/s |")
    print("| --- |" + " --- |" * (len(names) + 2))
    for case in CASES:
        times = measure(case, args.threads, args.rounds)
        best = times[names[-2]]
        figures = [f"{1e6 * times[name]:.0f}" for name in names]
        figures += [f"{case.bytes / best / 1e9:.1f}", f"{case.flops / best / 1e9:.0f}"]
        print(f"| {case.name} | " + " | ".join(figures) + " |", flush=True)


@torch.inference_mode()
def measure(case: Case, threads: int, rounds: int) -> dict[str, float]:
    """Seconds a layer, by name."""
    rectangle = Rectangle(
        [LayerShape(case.kv_heads, case.dim, case.dim)] * case.layers,
        capacity=case.rows,
        columns=case.start + case.count,
        dtype=case.dtype,
        device=torch.device("cpu"),
    )
    for buffer in (*rectangle.keys, *rectangle.values):
        buffer.normal_()
    ways: dict[str, Callable[[], float]] = {"sdpa": sdpa(case, rectangle)}
    for name in native.variants():
        ways[name] = Ours(name, case, rectangle, threads).seconds
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, way in ways.items():
            taken = way() / case.layers
            if round_:
                times[name].append(taken)
    return {name: statistics.median(some) for name, some in times.items()}


def sdpa(case: Case, rectangle: Rectangle) -> Callable[[], float]:
    shape: Decode | Fill = decode(case.spans, rectangle) if case.count == 1 else fill(case.spans, rectangle)
    size = (case.rows, case.heads, 1) if case.count == 1 else (1, case.heads, case.rows * case.count)
    q = torch.randn(*size, case.dim, dtype=case.dtype)

    def seconds() -> float:
        began = time.perf_counter()
        for keys, values in zip(rectangle.keys, rectangle.values, strict=True):
            shape.attend(q, keys, values, case.dim**-0.5, EVERYTHING)
        return time.perf_counter() - began

    return seconds


class Ours:
    def __init__(self, variant: str, case: Case, rectangle: Rectangle, threads: int) -> None:
        tokens = case.rows * case.count
        self.kernels = native.kernels(variant)
        self.queries = torch.randn(tokens, case.heads, case.dim)
        self.out = torch.empty(threads, tokens, case.heads, case.dim)
        self.fresh = torch.randn(tokens, case.kv_heads, case.dim).to(case.dtype)
        spans = (structs.Span * case.rows)(
            *(structs.Span(span.row, span.start, span.count, span.row * span.count) for span in case.spans)
        )
        self.calls: list[list[structs.Attention]] = [[] for _ in range(threads)]
        for layer, (keys, values) in enumerate(zip(rectangle.keys, rectangle.values, strict=True)):
            thread = layer % threads
            self.calls[thread].append(self.call(case, spans, keys, values, self.out[thread]))  # type: ignore[arg-type]

    def call(
        self, case: Case, spans: Sequence[structs.Span], keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor
    ) -> structs.Attention:
        sides = [structs.Columns(buffer.data_ptr(), *buffer.stride()[:3]) for buffer in (keys, values)]
        return structs.Attention(
            heads=case.heads,
            kv_heads=case.kv_heads,
            key_dim=case.dim,
            value_dim=case.dim,
            scale=case.dim**-0.5,
            kind=KINDS[case.dtype],
            keys=sides[0],
            values=sides[1],
            fresh_keys=self.fresh.data_ptr(),
            fresh_values=self.fresh.data_ptr(),
            queries=self.queries.data_ptr(),
            query_stride=case.heads * case.dim,
            query_head_stride=case.dim,
            out=out.data_ptr(),
            spans=spans,
            span_count=len(spans),
        )

    def seconds(self) -> float:
        barrier = Barrier(len(self.calls) + 1)

        def work(core: int, calls: list[structs.Attention]) -> None:
            # Left to themselves, both threads were seen on one core for most of a measurement.
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(threading.get_native_id(), {core})
            arguments = [byref(call) for call in calls]
            barrier.wait()
            assert native.library is not None
            for argument in arguments * REPEAT:
                native.library.baton_attend(self.kernels, argument)

        threads = [Thread(target=work, args=pair) for pair in zip(cores(), self.calls, strict=False)]
        for thread in threads:
            thread.start()
        barrier.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - began) / REPEAT


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


if __name__ == "__main__":
    main()
