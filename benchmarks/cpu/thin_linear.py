"""What a small parallel region costs: thin linear layers on 1 and 2 threads, with and without a moment of spinning.

Each variant is a process of its own, because libgomp reads its variables once. Medians, microseconds.

    python -m benchmarks.cpu.thin_linear
"""

from __future__ import annotations

import os
import subprocess
import sys

VARIANTS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads, passive": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "2 threads, passive, spinning 10000": {
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "10000",
    },
    "2 threads, active": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "active"},
}
MEASURE = """
import statistics, time, torch
with torch.inference_mode():
    for rows, inner, outer in [(8, 256, 256), (8, 256, 704), (8, 576, 1536)]:
        x, w = torch.randn(rows, inner), torch.randn(outer, inner)
        times = []
        for _ in range(400):
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            times.append(time.perf_counter() - began)
        print(f"{1e6 * statistics.median(times[50:]):.0f}", end=" | ")
"""


def main() -> None:
    print("| threads | 8 x 256 x 256 | 8 x 256 x 704 | 8 x 576 x 1536 |\n| --- | --- | --- | --- |")
    for name, variables in VARIANTS.items():
        done = subprocess.run(
            [sys.executable, "-c", MEASURE], env={**os.environ, **variables}, capture_output=True, text=True, check=True
        )
        print(f"| {name} | {done.stdout.strip()}")


if __name__ == "__main__":
    main()
