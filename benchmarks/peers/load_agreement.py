"""Does `baton load` measure what an independent load generator measures, and what is true?

    python -m benchmarks.peers.load_agreement [--vllm vllm-venv] [--rounds 3] [--paced] [--write docs/benchmarks.md]

`baton load` and vLLM's `bench serve` ask the same server in turns: as many queries of the same lengths, as many at a
time, random prompts, answers of a set length. With --paced the server is paced_server.py, whose tokens come at
times that are known before, whatever the clients take of the machine: there the truth is a column of the table.
Without, it is one `baton serve` (the built-in model, without the prefix store, so that nothing is remembered from round
to round), from which clients take time that it would need: then each client's own CPU seconds say how much. The server
has the first core and the clients the last (Linux). Where vLLM is not at hand it is left out, and said so.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from baton import builtin
from benchmarks.report import flags, parsed, percentile, table, tell

# `vllm bench serve` without its front door, which needs a package of the name "vllm" (the CPU build has another).
# What it takes of the CPU while it asks goes into its results.
VLLM_BENCH = """
import argparse, time
from vllm.benchmarks import serve
inner = serve.benchmark
async def benchmark(*given, **named):
    began = time.process_time()
    result = await inner(*given, **named)
    return {**result, "client_cpu_seconds": time.process_time() - began}
serve.benchmark = benchmark
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""
READY_SECONDS = 120
MS_FIGURES = (
    ("first token, p50", "first_token", "p50", "median_ttft_ms"),
    ("first token, p99", "first_token", "p99", "p99_ttft_ms"),
    ("gap between tokens, p50", "inter_token", "p50", "median_itl_ms"),
    ("gap between tokens, p99", "inter_token", "p99", "p99_itl_ms"),
    ("end to end, p50", "end_to_end", "p50", "median_e2el_ms"),
    ("end to end, p99", "end_to_end", "p99", "p99_e2el_ms"),
)
RATE, CPU, TRUTH = "tokens a second", "client's CPU seconds", "the truth"
FIGURES = (RATE, *(f"{name}, ms" for name, *_ in MS_FIGURES))

Measured = dict[str, float]
Generators = Mapping[str, Callable[[argparse.Namespace, str, Path, int], Measured]]


def main() -> None:
    parser = flags(__doc__, "load_agreement")
    parser.add_argument("--vllm", type=Path, default=Path("vllm-venv"), help="vLLM's virtual environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--answer", type=int, default=64, help="tokens")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--paced", action="store_true", help="a server whose times are known")
    args = parsed(parser)
    generators = {"baton load": ours}
    if (args.vllm / "bin" / "python").exists():
        generators["vllm bench serve"] = peers
    else:
        print(f"vllm bench serve is left out: no {args.vllm}/bin/python", file=sys.stderr)
    runs: dict[str, list[Measured]] = {name: [] for name in generators}
    truths: list[Measured] = []
    with serving(args) as url, tempfile.TemporaryDirectory() as folder:
        few = argparse.Namespace(**{**vars(args), "queries": 2 * args.at_once})
        ours(few, url, Path(folder), 1000)  # what a first run finds cold
        truth_of(args, url)
        for turn in range(args.rounds):
            order = list(generators.items())[:: 1 if turn % 2 == 0 else -1]
            for name, measure in order:
                runs[name].append(measure(args, url, Path(folder), turn))
                print(name, runs[name][-1], file=sys.stderr)
                truths += truth_of(args, url)
    tell(args, lines(args, runs, truths), {**runs, TRUTH: truths})


def truth_of(args: argparse.Namespace, url: str) -> list[Measured]:
    """The truth about the latest run, if the server knows it."""
    if not args.paced:
        return []
    told = httpx.get(f"{url}/truth", timeout=5).json()
    first, whole = told["first"], told["whole"]
    values = [percentile(some, percent) for some in (first, [told["gap"]], whole) for percent in (50, 99)]
    times = {f"{name}, ms": 1000 * value for (name, *_), value in zip(MS_FIGURES, values, strict=True)}
    return [{RATE: told["generated"] / (told["seconds"] or 1), **times, "late": 1000 * told["late p99"]}]


def lines(
    args: argparse.Namespace, runs_by_name: Mapping[str, Sequence[Measured]], truths: Sequence[Measured]
) -> Iterator[str]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    late = f" The server was itself {max(one['late'] for one in truths):.1f} ms late (p99)." if truths else ""
    yield (
        f"{args.queries} queries of {args.prompt} prompt tokens and {args.answer} generated ones, {args.at_once} at a "
        f"time; {args.rounds} rounds in turns, medians and ranges.{late} "
        f"Load average at the end (1, 5, 15 minutes): {load}."
    )
    yield ""
    head = ["", *([TRUTH] if truths else []), *(f"`{name}`" for name in runs_by_name)]
    if truths:
        head += [f"`{name}` to the truth" for name in runs_by_name]
    if len(runs_by_name) > 1:
        head.append("`baton load` to vLLM's, round by round")
    yield from table(head, (row_of(figure, runs_by_name, truths) for figure in (*FIGURES, CPU)))


def row_of(figure: str, runs_by_name: Mapping[str, Sequence[Measured]], truths: Sequence[Measured]) -> list[str]:
    columns = [[run[figure] for run in runs] for runs in runs_by_name.values()]
    row = [figure, *([span([one[figure] for one in truths if figure in one])] if truths else []), *map(span, columns)]
    if truths and figure != CPU:
        truth = statistics.median(one[figure] for one in truths)
        row += [span([value / truth for value in column], ".3f") for column in columns]
    elif truths:
        row += ["" for _ in columns]
    if len(columns) > 1:
        row.append(span([a / b for a, b in zip(*columns, strict=True)], ".3f"))
    return row


def span(values: Sequence[float], form: str = ",.1f") -> str:
    """The median, and the range if there is one."""
    if not values:
        return ""
    low, middle, high = (format(pick(values), form) for pick in (min, statistics.median, max))
    return middle if low == high else f"{middle} ({low} to {high})"


def ours(args: argparse.Namespace, url: str, folder: Path, seed: int) -> Measured:
    path = folder / "ours.json"
    lengths = ["--prompt", str(args.prompt), "--answer", str(args.answer), "--queries", str(args.queries)]
    pace = ["--mode", "closed", "--at-once", str(args.at_once), "--seed", str(seed), "--json", str(path)]
    command = on_core(-1, [sys.executable, "-m", "baton", "load", url, *lengths, *pace])
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads(path.read_text())
    run = report["contenders"]["load"]["runs"][0]
    times = {f"{name}, ms": 1000 * run[part][percent] for name, part, percent, _ in MS_FIGURES}
    check(args, run["generated_tokens"], run["prompt_tokens"], run["failed"])
    return {RATE: run["tokens_per_second"], **times, CPU: report["client_cpu_seconds"], "lag": 1000 * report["lag"]}


def peers(args: argparse.Namespace, url: str, folder: Path, seed: int) -> Measured:
    what = [
        "--backend",
        "openai",
        "--base-url",
        url,
        "--model",
        "paced" if args.paced else "baton-builtin",
        "--tokenizer",
        str(builtin.path()),
    ]
    lengths = ["--dataset-name", "random", "--random-input-len", str(args.prompt), "--random-output-len"]
    lengths += [str(args.answer), "--num-prompts", str(args.queries), "--seed", str(100 + seed), "--ignore-eos"]
    pace = ["--request-rate", "inf", "--max-concurrency", str(args.at_once), "--temperature", "0", "--disable-tqdm"]
    pace += ["--ready-check-timeout-sec", "0"]  # no query before the first
    pace += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "99"]
    result = ["--save-result", "--result-dir", str(folder), "--result-filename", "peers.json"]
    command = [str(args.vllm / "bin" / "python"), "-c", VLLM_BENCH, *what, *lengths, *pace, *result]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)  # of ours
    done = subprocess.run(on_core(-1, command), capture_output=True, text=True, env=environment, cwd=folder)
    if done.returncode:
        sys.exit(f"vllm bench serve failed:\n{done.stderr[-2000:]}")
    run = json.loads((folder / "peers.json").read_text())
    times = {f"{name}, ms": run[theirs] for name, _, _, theirs in MS_FIGURES}
    check(args, run["total_output_tokens"], run["total_input_tokens"], args.queries - run["completed"])
    return {RATE: run["output_throughput"], **times, CPU: run["client_cpu_seconds"]}


def check(args: argparse.Namespace, generated: int, prompt: int, failed: int) -> None:
    """Both must have done the same work; a random text of so many tokens may have some more when it is read again.

    A paced server has no tokenizer, and counts words of a text.
    """
    prompts = args.queries * args.prompt
    other = not args.paced and abs(prompt - prompts) > 0.02 * prompts
    if failed or other or generated != args.queries * args.answer:
        sys.exit(f"{failed} queries failed; {prompt} prompt tokens and {generated} generated ones")


@contextlib.contextmanager
def serving(args: argparse.Namespace) -> Iterator[str]:
    """The address of the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "baton", "serve", "--port", str(port), "--max-batch-size", "8"]
    command += ["--no-prefix-cache", "--log-level", "warning", "--threads", "1"]
    if args.paced:
        command = [sys.executable, str(Path(__file__).with_name("paced_server.py")), str(port)]
    server = subprocess.Popen(on_core(0, command), stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + READY_SECONDS
        while not is_ready(url):
            if server.poll() is not None or time.monotonic() > until:
                sys.exit("the server did not come up")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def on_core(number: int, command: list[str]) -> list[str]:
    """The command on a single core of this process, if the system can do that."""
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
