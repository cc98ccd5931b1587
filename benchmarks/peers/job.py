"""A worker's task and its answer: one engine, one fresh process, measured the same way for every engine.

Only the standard library and psutil, because workers run in their engine's own environment. A worker is started as
`python run_NAME.py JOB.json`; its answer is the last line on its standard output, in JSON.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

STEP_CONTEXT, STEP_TOKENS = 256, 64
"""Prompt and answer of the queries that the decode step is measured with: about 290 tokens a row on average."""
FIRST_WORD_ID = 3
"""Ids below are special tokens in the folders that make_shape.py makes."""


class Unsupported(Exception):
    """The engine has no such thing, for instance no int8 weights."""


@dataclass(frozen=True)
class Ask:
    """One query: these prompt tokens, exactly so many generated, greedily, whatever they are."""

    prompt: list[int]
    tokens: int


@dataclass
class Answer:
    """The token ids that came and, if asked for, when each of them came (seconds of one monotonic clock)."""

    tokens: list[int]
    times: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """`model`: a Hugging Face folder; `gguf`: the same for llama.cpp.

    `dtype`: bfloat16, float32, or int8 weights; or q4_0 or q4_k_m, which are those of `gguf` for every engine.
    `rows`: most queries that run at once. `longest`: most tokens of a query, prompt and generated. `vocabulary`: token
    ids are below it. `peers`: where other engines are installed. `started`: `time.monotonic()` before the process was.
    `kv_bytes`: what keys and values of all rows take, for engines that allocate them at once.
    """

    model: str
    dtype: str
    rows: int
    threads: int
    longest: int
    vocabulary: int
    work: list[Ask]
    peers: str
    started: float
    kv_bytes: int
    gguf: str | None = None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(path: Path) -> Job:
        told: dict[str, Any] = json.loads(path.read_text())
        return Job(**{**told, "work": [Ask(**ask) for ask in told["work"]]})


class Engine(Protocol):
    """A loaded engine. `version`: its name in tables. `processes`: the ones that hold its memory."""

    version: str
    processes: Sequence[int]

    def run(self, asks: Sequence[Ask], *, timed: bool) -> list[Answer]:
        """Runs all at once, at most `rows` of them at a time.

        Returns answers in the same order, with times if `timed`.
        """

    def close(self) -> None: ...


def answer(load: Callable[[Job], Engine]) -> None:
    """Measures the engine that `load` makes, as the file named on the command line asks, and prints the figures."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine's libraries print is no answer
    job = Job.read(Path(sys.argv[1]))
    try:
        figures = measure(job, load)
    except Unsupported as reason:
        figures = {"unsupported": str(reason)}
    print(json.dumps(figures), file=told, flush=True)


def measure(job: Job, load: Callable[[Job], Engine]) -> dict[str, Any]:
    """Seconds, milliseconds and bytes as the names say. The work comes first, after a short warm-up."""
    dice = random.Random(1)
    engine = load(job)
    try:
        loaded = time.monotonic() - job.started
        run(engine, [_random(job, dice, 16, 1)])
        first = time.monotonic() - job.started
        run(engine, [_random(job, dice, 64, 8) for _ in range(job.rows)])

        before = peak_bytes(engine.processes)
        reset_peak(engine.processes)
        seconds, answers = run(engine, job.work)
        after = peak_bytes(engine.processes)

        context, tokens = min(STEP_CONTEXT, job.longest // 2), min(STEP_TOKENS, job.longest // 2)
        _, steps = run(engine, [_random(job, dice, context, tokens) for _ in range(job.rows)], timed=True)
        prompts = [_random(job, dice, job.longest - 1, 1) for _ in range(job.rows)]
        filling, _ = run(engine, prompts)
    finally:
        engine.close()
    return {
        "version": engine.version,
        "load_seconds": loaded,
        "first_token_seconds": first,
        "work_seconds": seconds,
        "prompt_tokens": sum(len(ask.prompt) for ask in job.work),
        "generated_tokens": sum(len(one.tokens) for one in answers),
        "step_ms": step_ms([one.times for one in steps]),
        "step_context": context + tokens // 2,
        "prefill_tokens_per_second": sum(len(ask.prompt) for ask in prompts) / filling,
        "peak_bytes": max(before, after),
        "peak_work_bytes": after,
        "tokens": [one.tokens for one in answers],
    }


def run(engine: Engine, asks: Sequence[Ask], *, timed: bool = False) -> tuple[float, list[Answer]]:
    """Seconds and answers. Raises RuntimeError if one has not exactly as many tokens as were asked for."""
    began = time.monotonic()
    answers = engine.run(asks, timed=timed)
    seconds = time.monotonic() - began
    for ask, one in zip(asks, answers, strict=True):
        if len(one.tokens) != ask.tokens or (timed and len(one.times) != ask.tokens):
            message = f"{len(one.tokens)} tokens ({len(one.times)} times) came where {ask.tokens} were asked for"
            raise RuntimeError(message)
    return seconds, answers


def step_ms(times: Sequence[Sequence[float]]) -> float | None:
    """The median gap between two tokens of the query that began last, while all others still ran; None if too short.

    The last one has only decode steps of full rows after its first token, until the first query ends.
    """
    last = max(times, key=lambda own: own[0])
    end = min(own[-1] for own in times)
    inside = [at for at in last if at <= end]
    gaps = [after - before for before, after in itertools.pairwise(inside)]
    return 1000 * statistics.median(gaps) if len(gaps) >= 3 else None


def family() -> list[int]:
    """This process and all that it started."""
    own = psutil.Process()
    return [own.pid, *(child.pid for child in own.children(recursive=True))]


def peak_bytes(processes: Sequence[int]) -> int:
    """The high-water marks of resident memory, added up: shared pages count once for each process."""
    total = 0
    for pid in processes:
        with contextlib.suppress(OSError):  # it has ended
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return total


def reset_peak(processes: Sequence[int]) -> None:
    """Resets the high-water marks."""
    for pid in processes:
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _random(job: Job, dice: random.Random, prompt: int, tokens: int) -> Ask:
    return Ask([dice.randrange(FIRST_WORD_ID, job.vocabulary) for _ in range(prompt)], tokens)
