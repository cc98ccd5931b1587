"""Does `baton load` measure what an independent load generator measures?

    python benchmarks/load_agreement.py [--vllm /work/peers/vllm] [--rounds 3] [--together] [--write docs/benchmarks.md]

One `baton serve` (the built-in model, without the prefix store, so that nothing is remembered from round to round) is
asked by `baton load` and by vLLM's `bench serve` in turns: as many queries of the same lengths, as many at a time,
random prompts, answers of a set length. The server has the first core and the clients the last (Linux), so that what a
client takes it does not take from what it measures. Other work on the machine slows both, so what counts are ratios of
neighbouring runs; with --together both ask the same server at the same time, so that both see the same slowness. Where
vLLM is not at hand it is left out, and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from report import flags, parsed, table, tell

from baton import builtin

# `vllm bench serve` without its front door, which needs a package of the name "vllm" (the CPU build has another).
VLLM_BENCH = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
READY_SECONDS = 120
FIGURES = ("tokens a second", "first token, median ms")

Measured = dict[str, float]
Generators = Mapping[str, Callable[[argparse.Namespace, str, Path, int], Measured]]


def main() -> None:
    parser = flags(__doc__, "load_agreement")
    parser.add_argument("--vllm", type=Path, default=Path("/work/peers/vllm"), help="vLLM's virtual environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument(
        "--together", action="store_true", help="both at the same time, for machines that are not quiet"
    )
    args = parsed(parser)
    generators = {"baton load": ours}
    if (args.vllm / "bin" / "python").exists():
        generators["vllm bench serve"] = peers
    else:
        print(f"vllm bench serve is left out: no {args.vllm}/bin/python", file=sys.stderr)
    found: dict[str, list[Measured]] = {name: [] for name in generators}
    with serving() as url, tempfile.TemporaryDirectory() as folder:
        few = argparse.Namespace(**{**vars(args), "queries": 2 * args.at_once})
        ours(few, url, Path(folder), 1000)  # what a first run finds cold
        for turn in range(args.rounds):
            measure = together if args.together else apart
            for name, measured in measure(args, generators, url, Path(folder), turn).items():
                found[name].append(measured)
                print(name, measured, file=sys.stderr)
    tell(args, lines(args, found), found)


def apart(args: argparse.Namespace, some: Generators, url: str, folder: Path, turn: int) -> dict[str, Measured]:
    """One after the other, each first in every other round."""
    order = list(some.items()) if turn % 2 == 0 else list(some.items())[::-1]
    return {name: measure(args, url, folder, turn) for name, measure in order}


def together(args: argparse.Namespace, some: Generators, url: str, folder: Path, turn: int) -> dict[str, Measured]:
    """Ours begins when the server has the first query of the other, which takes longer to start."""
    with ThreadPoolExecutor() as pool:
        begun = {}
        for name, measure in reversed(some.items()):
            begun[name] = pool.submit(measure, args, url, folder, turn)
            while len(begun) < len(some) and not begun[name].done() and not is_busy(url):
                time.sleep(0.02)
        return {name: one.result() for name, one in begun.items()}


def lines(args: argparse.Namespace, found: Mapping[str, list[Measured]]) -> list[str]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    how = "with both at the same time" if args.together else "in turns"
    head = (
        f"{args.queries} queries of {args.prompt} prompt tokens and {args.answer} generated ones, {args.at_once} at a "
        f"time; {args.rounds} rounds {how}, medians and ranges. "
        f"Load average at the end (1, 5, 15 minutes): {load}."
    )
    rows = [[name, *(span([run[figure] for run in runs]) for figure in FIGURES)] for name, runs in found.items()]
    if len(found) > 1:
        ratios = {figure: pairwise(found, figure) for figure in FIGURES}
        rows.append(["`baton load` to vLLM's, round by round", *(span(ratios[figure], ".3f") for figure in FIGURES)])
    named = [[f"`{name}`" if name in found else name, *rest] for name, *rest in rows]
    return [head, "", *table(("load generator", *FIGURES), named)]


def pairwise(found: Mapping[str, list[Measured]], figure: str) -> list[float]:
    first, second = found.values()
    return [a[figure] / b[figure] for a, b in zip(first, second, strict=True)]


def span(values: list[float], form: str = ",.1f") -> str:
    low, middle, high = (format(pick(values), form) for pick in (min, statistics.median, max))
    return f"{middle} ({low} to {high})"


def ours(args: argparse.Namespace, url: str, folder: Path, seed: int) -> Measured:
    path = folder / "ours.json"
    lengths = ["--prompt", str(args.prompt), "--answer", str(args.answer), "--queries", str(args.queries)]
    pace = ["--mode", "closed", "--at-once", str(args.at_once), "--seed", str(seed), "--json", str(path)]
    command = on_core(-1, [sys.executable, "-m", "baton", "load", url, *lengths, *pace])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads(path.read_text())
    run = report["contenders"]["load"]["runs"][0]
    return {
        "tokens a second": run["tokens_per_second"],
        "first token, median ms": 1000 * run["first_token"]["p50"],
        "generated": run["generated_tokens"],
        "prompt": run["prompt_tokens"],
        "failed": run["failed"],
        "client lag ms": 1000 * report["lag"],
    }


def peers(args: argparse.Namespace, url: str, folder: Path, seed: int) -> Measured:
    what = ["--backend", "openai", "--base-url", url, "--model", "baton-builtin", "--tokenizer", str(builtin.path())]
    lengths = ["--dataset-name", "random", "--random-input-len", str(args.prompt), "--random-output-len"]
    lengths += [str(args.answer), "--num-prompts", str(args.queries), "--seed", str(100 + seed), "--ignore-eos"]
    pace = ["--request-rate", "inf", "--max-concurrency", str(args.at_once), "--temperature", "0", "--disable-tqdm"]
    pace += ["--ready-check-timeout-sec", "0"]  # no query before the first
    result = ["--save-result", "--result-dir", str(folder), "--result-filename", "peers.json"]
    command = [str(args.vllm / "bin" / "python"), "-c", VLLM_BENCH, *what, *lengths, *pace, *result]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)  # of ours
    done = subprocess.run(on_core(-1, command), capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        sys.exit(f"vllm bench serve failed:\n{done.stderr[-2000:]}")
    run = json.loads((folder / "peers.json").read_text())
    return {
        "tokens a second": run["output_throughput"],
        "first token, median ms": run["median_ttft_ms"],
        "generated": run["total_output_tokens"],
        "prompt": run["total_input_tokens"],
        "failed": args.queries - run["completed"],
    }


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of a server of the built-in model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "baton", "serve", "--port", str(port), "--max-batch-size", "8"]
    command += ["--no-prefix-cache", "--log-level", "warning", "--threads", "1"]
    server = subprocess.Popen(on_core(0, command), stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + READY_SECONDS
        while not is_ready(url):
            if server.poll() is not None or time.monotonic() > until:
                sys.exit("baton serve did not come up")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def is_busy(url: str) -> bool:
    return bool(httpx.get(f"{url}/load", timeout=5).json()["running"])


def on_core(number: int, command: list[str]) -> list[str]:
    """The command on one of this process' cores alone, where the system has a way to say so."""
    if not shutil.which("taskset"):
        return command
    return ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[number]), *command]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    main()
