"""This engine and its peers on the same folder, queries and cores: alternated runs, medians, ratios.

The work: prompts and answers as long as those of the first conversations of the Azure trace, clipped; random token ids,
the same for every engine; exactly so many tokens generated; all queued at once, at most `--rows` running. Each run is a
fresh process of the engine's own worker (benchmarks/peers/run_*.py) in the engine's own environment; the measuring
itself (benchmarks/peers/job.py) is the same for all. scripts/install_peers.sh installs the peers; one that is not
installed is named and left out. Run it on a machine that does nothing else: the loads it saw stand in the report.

    python -m benchmarks.make_shape smollm2-135m models/m135 --dtype bfloat16
    python -m benchmarks.peers.cpu_peers models/m135 --dtype bfloat16,float32,int8 --rounds 3 --out peers.json
    python -m benchmarks.peers.cpu_peers models/m06b --dtype q4_0,q4_k_m --engines baton,llama.cpp --rounds 5
    python -m benchmarks.peers.cpu_peers models/m135 --engines baton,llama.cpp,llama.cpp-active,vllm,vllm-auto --rows 16
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import TRACE
from benchmarks.peers.job import FIRST_WORD_ID, Ask, Job
from benchmarks.peers.random_gguf import FORMS
from benchmarks.peers.table import needed_bytes, report
from benchmarks.report import write_section

HERE = Path(__file__).resolve().parent
PEERS = HERE.parents[2] / "peers"
DTYPES = ("bfloat16", "float32", "int8", *FORMS)
GGUF = {"bfloat16": "bf16", "float32": "f32", "int8": "q8_0"}
"""What llama.cpp's converter makes of a folder. The 4-bit forms are random blocks, which all engines read."""
TIME_LIMIT_SECONDS = 3600
SPARE_COLUMNS = 256
"""Of each row, for engines that keep keys and values in blocks."""


@dataclass(frozen=True)
class Peer:
    """`script` of benchmarks/peers; `needs`: the part of the peers' folder that it uses; `python`: its own, in it."""

    script: str
    needs: str = ""
    python: str = ""
    environment: dict[str, str] = field(default_factory=dict)


LLAMA = Peer("run_llama_cpp.py", needs="llama/build/bin/llama-server")
WHEEL = Peer("run_xllamacpp.py", needs="xllamacpp/bin/python", python="xllamacpp/bin/python")
VLLM = Peer("run_vllm.py", needs="vllm/bin/python", python="vllm/bin/python")
STATIC, CONTINUOUS = Peer("run_transformers_static.py"), Peer("run_transformers_cb.py")
ACTIVE = {"OMP_WAIT_POLICY": "active"}
ENGINES = {
    "baton": Peer("run_baton.py"),
    "transformers-static": STATIC,
    "transformers-cb": CONTINUOUS,
    "llama.cpp": LLAMA,
    "xllamacpp": WHEEL,
    "vllm": VLLM,
    # Others of the same: threads that spin while they wait, and vLLM as it binds itself (one core is its scheduler's).
    "baton-active": Peer("run_baton.py", environment=ACTIVE),
    "transformers-static-active": replace(STATIC, environment=ACTIVE),
    "xllamacpp-active": replace(WHEEL, environment=ACTIVE),
    "llama.cpp-active": replace(LLAMA, environment=ACTIVE),
    "vllm-auto": replace(VLLM, environment={"VLLM_CPU_OMP_THREADS_BIND": "auto"}),
}
USUAL = "baton,transformers-static,transformers-cb,llama.cpp,vllm"


def main() -> None:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # not without ending the run that goes on
    config = json.loads((args.model / "config.json").read_text())
    work = queries(args, config["vocab_size"])
    missing = [name for name in args.engines if not (args.peers / ENGINES[name].needs).exists()]
    for name in missing:
        print(f"{name}: left out, there is no {args.peers / ENGINES[name].needs} (scripts/install_peers.sh)")
    engines = [name for name in args.engines if name not in missing]
    print(f"{len(work)} queries, {sum(len(a.prompt) for a in work):,} + {sum(a.tokens for a in work):,} tokens")

    needed = needed_bytes(args.model, config, args.rows)
    jobs = {dtype: job(args, dtype, config["vocab_size"], work, needed, engines) for dtype in args.dtype}
    runs: list[dict[str, Any]] = []
    turns = list(itertools.product(range(args.rounds), args.dtype, engines))
    with tqdm(total=len(turns), unit="run", disable=None) as bar:
        for turn, dtype, name in turns:
            load = os.getloadavg()[0]
            figures = run(args, name, jobs[dtype])
            runs.append({"round": turn, "dtype": dtype, "engine": name, "load": load, **figures})
            tqdm.write(f"round {turn + 1} {dtype} {name}: {_line(figures)}", file=sys.stderr)
            bar.update()
            if args.out:
                args.out.write_text(json.dumps({"command": sys.orig_argv, "config": config, "runs": runs}) + "\n")
    text = "\n".join(report(args, work, needed, runs, missing))
    print(text)
    if args.write:
        write_section(args.write, args.section, text)
    if any("failed" in one for one in runs):
        sys.exit("an engine failed")


def queries(args: argparse.Namespace, vocabulary: int) -> list[Ask]:
    """The trace's first conversations by their lengths, clipped, of seeded random tokens."""
    with args.trace.open() as file:
        rows = list(itertools.islice(csv.DictReader(file), args.queries))
    if len(rows) < args.queries:
        sys.exit(f"--queries {args.queries}: {args.trace} has {len(rows)}; --trace takes a longer one")
    dice = random.Random(args.seed)
    asks = []
    for row in rows:
        length, tokens = min(int(row["ContextTokens"]), args.context), min(int(row["GeneratedTokens"]), args.generate)
        asks.append(Ask([dice.randrange(FIRST_WORD_ID, vocabulary) for _ in range(length)], tokens))
    return asks


def job(
    args: argparse.Namespace,
    dtype: str,
    vocabulary: int,
    work: Sequence[Ask],
    needed: Callable[[str, int], int],
    engines: Sequence[str],
) -> Job:
    longest = args.context + args.generate
    return Job(
        model=str(args.model),
        dtype=dtype,
        rows=args.rows,
        threads=args.threads,
        longest=longest,
        vocabulary=vocabulary,
        work=list(work),
        peers=str(args.peers),
        started=0.0,
        kv_bytes=needed(dtype, args.rows * (longest + SPARE_COLUMNS)) - needed(dtype, 0),
        gguf=gguf(args, dtype) if dtype in FORMS or any("llama" in ENGINES[name].script for name in engines) else None,
    )


def gguf(args: argparse.Namespace, dtype: str) -> str:
    """The folder in llama.cpp's format, made if it is missing or older than the folder's weights."""
    folder, form = args.model.resolve(), GGUF.get(dtype, dtype)
    file = args.peers / "gguf" / f"{'-'.join(folder.parts[1:])}-{form}.gguf"
    newest = max(path.stat().st_mtime for path in folder.glob("*.safetensors"))
    if not file.exists() or file.stat().st_mtime < newest:
        file.parent.mkdir(parents=True, exist_ok=True)
        converter = args.peers / "llama" / "source" / "vendor" / "llama.cpp"
        by_converter = [HERE / "to_gguf.py", folder, form, file, "--converter", converter]
        command = [sys.executable, *([HERE / "random_gguf.py", folder, form, file] if form in FORMS else by_converter)]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"no GGUF file of {folder}:\n{done.stderr}")
    return str(file)


def run(args: argparse.Namespace, name: str, job: Job) -> dict[str, Any]:
    """The engine worker's answer; `failed` with its last output if there is no answer."""
    peer = ENGINES[name]
    threads = {f"{library}_NUM_THREADS": str(args.threads) for library in ("OMP", "MKL", "OPENBLAS")}
    environment = {**os.environ, **threads, "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    python = args.peers / peer.python if peer.python else sys.executable
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        asked = Path(folder) / "job.json"
        replace(job, started=time.monotonic()).write(asked)
        process = subprocess.Popen(
            [str(python), str(HERE / peer.script), str(asked)],
            env=environment | peer.environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,  # so that what it started ends with it
        )
        try:
            told, _ = process.communicate(timeout=TIME_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            told = ""
        finally:
            _end(process)
        if process.returncode == 0 and told.strip():
            return json.loads(told.splitlines()[-1])
        log.seek(0)
        return {"failed": log.read()[-3000:]}


def _end(process: subprocess.Popen[str]) -> None:
    """Nothing of a run is left when the next one begins, whatever became of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _line(figures: dict[str, Any]) -> str:
    if "work_seconds" not in figures:
        return figures.get("unsupported") or f"failed\n{figures['failed']}"
    seconds, tokens = figures["work_seconds"], figures["generated_tokens"]
    return f"{seconds:.1f} s, {tokens} tokens, {tokens / seconds:.0f} tokens/s"


def _arguments() -> argparse.Namespace:
    def several(known: Sequence[str]) -> Any:
        def split(text: str) -> list[str]:
            names = text.split(",")
            unknown = [name for name in names if name not in known]
            if unknown:
                raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there is {', '.join(known)}")
            return names

        return split

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder in Hugging Face's format")
    parser.add_argument("--dtype", type=several(DTYPES), default=["bfloat16"], help="one or more, by commas")
    parser.add_argument("--engines", type=several(list(ENGINES)), default=USUAL.split(","), help=", ".join(ENGINES))
    parser.add_argument("--queries", type=int, default=32)
    parser.add_argument("--context", type=int, default=512, help="longest prompt, in tokens")
    parser.add_argument("--generate", type=int, default=128, help="longest answer, in tokens")
    parser.add_argument("--rows", type=int, default=8, help="most queries that run at once")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--trace", type=Path, default=TRACE, help="CSV with ContextTokens and GeneratedTokens")
    parser.add_argument("--peers", type=Path, default=PEERS, help="where they are installed (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="every run's figures as JSON, after each run")
    parser.add_argument("--section", default="cpu_peers", help="which markers of the file")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with markers for the tables")
    args = parser.parse_args()
    if args.write and f"<!-- {args.section}: begin -->" not in args.write.read_text():
        parser.error(f"--write {args.write}: it has no markers of section {args.section}")
    return args


if __name__ == "__main__":
    main()
