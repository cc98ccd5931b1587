"""Times the native linear products at several widths beside what the machine can do, measured in the same run.

    python -m benchmarks.cpu.native_linear [--variant avx512bf16] [--kinds bfloat16 int8]
        [--shapes 576x1536] [--rows 1 8] [--compare 3] [--write docs/benchmarks.md --section native_linear]

Needs a C++ compiler. Compiles native_linear.cpp with the kernels' source and runs it on two threads, which spin while
they wait: beside busy neighbours take `--threads 1`, which counts processor time and not what passes. GB/s: of packed
weights, which no cache holds.
The percentages are of the read bandwidth and of the multiply-add rate; the higher of
the two says how near a product is to its limit. `--compare`: so many rounds, in which kinds take turns, and a table of
medians that has them side by side.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.report import command, processor, table, write_section

NAMES = ("linear", "linear4", "linear8", "linear_half")
HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "src/baton/native/source"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
FLAGS = {
    "plain": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
}
# The kernels' number of each, and bytes of an activation.
KINDS = {"float32": (0, 0), "bfloat16": (1, 0), "int8": (2, 0), "int4": (3, 1), "int4:exact": (3, 2), "float16": (4, 0)}


def compiled(variant: str, folder: str, threads: int, passes: int) -> str:
    """The path of the program."""
    out = f"{folder}/native_linear"
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    options = ["-O3", "-std=c++17", "-ffp-contract=fast", "-pthread", "-Wno-psabi", f"-I{SOURCE}"]
    files = (HERE / "native_linear.cpp", *(SOURCE / f"{name}.cpp" for name in NAMES))
    sources = [str(file) for file in files]
    chosen = [*FLAGS[variant], f"-DVARIANT={variant}", f"-DTHREADS={threads}", f"-DPASSES={passes}"]
    subprocess.run([*compiler, *options, *chosen, *sources, "-o", out], check=True)
    return out


def measured(program: str, kind: str, shape: str, rows: list[int]) -> Iterator[list[str]]:
    """First the limits, then a line for each number of rows: numbers as the program prints them."""
    outputs, inputs = shape.split("x")
    command = [program, *map(str, KINDS[kind]), outputs, inputs, *map(str, rows)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            yield line.split()
    if running.returncode:
        raise SystemExit(f"{shlex.join(command)} failed: {running.returncode}")


def show(program: str, kind: str, shape: str, rows: list[int]) -> None:
    lines = measured(program, kind, shape, rows)
    _, read, rate = next(lines)
    print(f"\n{kind} {shape}: the machine reads {read} GB/s and multiplies {rate} GFLOP/s")
    print("| rows | µs | GB/s | of reading | GFLOP/s | of multiplying |\n|--:|--:|--:|--:|--:|--:|")
    for count, took, speed, flops in lines:
        shares = f"{float(speed) / float(read):.0%}", f"{float(flops) / float(rate):.0%}"
        print(f"| {count} | {took} | {speed} | {shares[0]} | {flops} | {shares[1]} |", flush=True)


def compared(program: str, kinds: list[str], shape: str, rows: list[int], rounds: int) -> list[str]:
    """Median microseconds of each kind, and how many times as long the others take as the first."""
    took: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for kind in kinds:
            for count, microseconds, *_ in list(measured(program, kind, shape, rows))[1:]:
                took.setdefault((kind, int(count)), []).append(float(microseconds))
    lines = []
    for many in rows:
        medians = [statistics.median(took[kind, many]) for kind in kinds]
        ratios = [f"{one:,.1f} ({one / medians[0]:.2f}x)" for one in medians[1:]]
        lines.append([shape, str(many), f"{medians[0]:,.1f}", *ratios])
    return table(("outputs x inputs", "rows", *kinds), lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=FLAGS, default="avx512bf16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shapes", nargs="+", default=["576x1536", "1536x576", "49152x576"], help="OUTPUTSxINPUTS")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 12, 16, 32, 256, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passes", type=int, default=30, help="over all weights; a quarter of them beyond 64 rows")
    parser.add_argument("--compare", type=int, metavar="ROUNDS")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--section", default="native_linear")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compiled(chosen.variant, folder, chosen.threads, chosen.passes)
        flags = " ".join(sys.argv[1:]) or "as it stands"
        print(f"{chosen.variant}, {chosen.threads} threads, {os.cpu_count()} cores; {flags}")
        if chosen.compare:
            parts = [compared(program, chosen.kinds, shape, chosen.rows, chosen.compare) for shape in chosen.shapes]
            run = f"{chosen.variant} kernels, threads: {chosen.threads}; {processor()}"
            lines = [
                f"{run}. Microseconds, each product at the best of its passes, medians of {chosen.compare} rounds."
            ]
            lines += ["", *parts[0], *(line for part in parts[1:] for line in part[2:]), "", f"Again: `{command()}`"]
            print("\n".join(lines))
            if chosen.write:
                write_section(chosen.write, chosen.section, "\n".join(lines))
            return
        for kind in chosen.kinds:
            for shape in chosen.shapes:
                show(program, kind, shape, chosen.rows)


if __name__ == "__main__":
    main()
