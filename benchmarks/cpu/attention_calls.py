"""Decode attention on SDPA: all rows in one masked call against one call per row, at several spreads of lengths.

What one more call costs, in bytes of K and V that could be read meanwhile, is `CALL_BYTES` in `model/attention.py`.

    python -m benchmarks.cpu.attention_calls --threads 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from baton.kv.rectangle import LayerShape, Rectangle
from baton.model.attention import CALL_BYTES, EVERYTHING, Decode, Span, decode

HEADS, DIM = 3, 64
SPREADS = {
    "8 rows of 32 to 64": [32, 36, 40, 45, 50, 55, 60, 64],
    "8 rows of 512": [512] * 8,
    "8 rows of 30 to 2000": [30, 100, 200, 400, 700, 1000, 1500, 2000],
    "7 short rows, one of 2000": [32, 36, 40, 45, 50, 55, 60, 2000],
    "2 rows of 20 and 2000": [20, 2000],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, float32, {3 * HEADS} query heads, {HEADS} KV heads of {DIM}; medians, us a layer")
    print("| rows | one masked call | one call per row | padding bytes per call saved | together is chosen |")
    print("| --- | --- | --- | --- | --- |")
    for name, lens in SPREADS.items():
        rectangle = Rectangle(
            [LayerShape(HEADS, DIM, DIM)], capacity=8, columns=2048, dtype=torch.float32, device=torch.device("cpu")
        )
        rectangle.keys[0].normal_()
        rectangle.values[0].normal_()
        shape = decode([Span(row, count - 1, 1) for row, count in enumerate(lens)], rectangle)
        chosen = shape.together
        times = {}
        q = torch.randn(len(lens), 3 * HEADS, 1, DIM)
        for together in (True, False):
            shape.together = together
            times[together] = median(attend(shape, q, rectangle), args.repeat)
        padding = (len(lens) * max(lens) - sum(lens)) * rectangle.footprint.token_bytes
        per_call = padding // max(len(lens) - 1, 1)
        print(f"| {name} | {times[True]:.0f} | {times[False]:.0f} | {per_call // 1024} KiB | {chosen} |")
    print(f"CALL_BYTES is {CALL_BYTES // 1024} KiB")


def attend(shape: Decode, q: torch.Tensor, rectangle: Rectangle) -> Callable[[], object]:
    return lambda: shape.attend(q, rectangle.keys[0], rectangle.values[0], DIM**-0.5, EVERYTHING)


@torch.inference_mode()
def median(run: Callable[[], object], repeat: int) -> float:
    for _ in range(5):
        run()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1e6 * statistics.median(seconds)


if __name__ == "__main__":
    main()
