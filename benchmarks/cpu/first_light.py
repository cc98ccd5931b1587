"""The three policies under the Azure conversation trace, over HTTP, by the official openai client, with streaming.

For each policy, alternated and repeated: a fresh `baton serve`, the first queries of the trace with their own prompt
and answer lengths (clipped to the model's context) at the trace's spacing divided by --factor. Before that, each query
is sent alone; every text of every run must equal that.

    python -m benchmarks.cpu.first_light --trace AzureLLMInferenceTrace_conv.csv --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from benchmarks.report import command, write_section

POLICIES = ("run_to_completion", "orca", "baton")
KINDS = ("useful", "empty_row", "finished_row", "padding", "recomputed")


@dataclass(frozen=True)
class Request:
    """One query of the trace: when, which prompt, how many tokens to generate."""

    at_seconds: float
    prompt: list[int]
    tokens: int


@dataclass
class Answer:
    """One streamed answer: its text, when it was asked, when each piece came."""

    asked: float
    text: str = ""
    tokens: int = 0
    times: list[float] = field(default_factory=list)


@dataclass
class Run:
    """One policy's run over all queries."""

    policy: str
    wall_seconds: float
    answers: list[Answer]
    slots: dict[str, float]
    columns: dict[str, float]
    different: int


def main() -> None:
    args = _arguments()
    with server(args.model, "baton", args.rows) as url:
        context = _get(f"{url}/v1/models")["data"][0]["max_model_len"]
        asked = queries(args, context, url)
        print(
            f"{len(asked)} queries, {sum(len(a.prompt) for a in asked):,} prompt tokens, "
            f"{sum(a.tokens for a in asked):,} to generate; each alone first ...",
            flush=True,
        )
        began = time.perf_counter()
        alone = [answer.text for answer in asyncio.run(one_by_one(url, asked))]
        print(f"alone: {time.perf_counter() - began:.1f} s", flush=True)
    runs: list[Run] = []
    for turn in range(args.repeat):
        for policy in POLICIES:
            runs.append(run(args, policy, asked, alone))
            print(
                f"turn {turn + 1} {policy:18} {runs[-1].wall_seconds:7.1f} s, {runs[-1].different} different",
                flush=True,
            )
    report = report_of(args, asked, runs)
    print(report)
    if args.write:
        write_section(args.write, args.section, report)
    if any(r.different for r in runs):
        sys.exit("texts differ from the same query alone")


def run(args: argparse.Namespace, policy: str, asked: Sequence[Request], alone: Sequence[str]) -> Run:
    with server(args.model, policy, args.rows) as url:
        asyncio.run(one_by_one(url, asked[:1]))  # the first query of a process warms its memory up
        before = _metrics(url)
        began = time.perf_counter()
        answers = asyncio.run(crowd(url, asked))
        wall = time.perf_counter() - began
        after = _metrics(url)
    counted = {key: value - before.get(key, 0.0) for key, value in after.items()}
    return Run(
        policy=policy,
        wall_seconds=wall,
        answers=answers,
        slots={kind: counted[f'baton_token_slots_total kind="{kind}"'] for kind in KINDS},
        columns={kind: counted[f'baton_kv_columns_total kind="{kind}"'] for kind in ("needed", "padding")},
        different=sum(a.text != text or a.tokens != q.tokens for a, text, q in zip(answers, alone, asked, strict=True)),
    )


@contextlib.contextmanager
def server(model: str | None, policy: str, rows: int) -> Iterator[str]:
    """A fresh server process on a free port, until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "baton", "serve", *([model] if model else []), "--port", str(port)]
    process = subprocess.Popen([*command, "--policy", policy, "--max-batch-size", str(rows)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/ready")
                break
            if process.poll() is not None:
                sys.exit(f"{' '.join(command)} ended with status {process.returncode}")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def queries(args: argparse.Namespace, context: int, url: str) -> list[Request]:
    """The trace's first queries: lengths clipped to the context, prompts of text it knows."""
    with args.trace.open() as file:
        rows = list(itertools.islice(csv.DictReader(file), args.queries))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    text = _conversation()
    ids = _post(f"{url}/tokenize", {"prompt": text})["tokens"]
    asked = []
    for index, (at, row) in enumerate(zip(times, rows, strict=True)):
        tokens = min(int(row["GeneratedTokens"]), context // 2, args.clip_answer)
        length = min(int(row["ContextTokens"]), context - tokens, args.clip_prompt)
        start = index * 97 % (len(ids) - length)
        asked.append(Request((at - times[0]) / args.factor, ids[start : start + length], tokens))
    return asked


def _conversation() -> str:
    """Enough text for any prompt: questions of all kinds, one after the other."""
    from baton.builtin import tasks

    lines = [q.text for task in tasks.CHECKABLE_TASKS for q in tasks.questions(task, 60, seed=5)]
    return "\n".join(lines * 4)


async def one_by_one(url: str, asked: Sequence[Request]) -> list[Answer]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        return [await answer(client, one, 0.0) for one in asked]


async def crowd(url: str, asked: Sequence[Request]) -> list[Answer]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        return list(await asyncio.gather(*(answer(client, one, one.at_seconds) for one in asked)))


async def answer(client: AsyncOpenAI, asked: Request, wait_seconds: float) -> Answer:
    await asyncio.sleep(wait_seconds)
    reply = Answer(time.perf_counter())
    stream = await client.completions.create(
        model=(await _model(client)),
        prompt=asked.prompt,
        max_tokens=asked.tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].finish_reason is None:
            reply.times.append(time.perf_counter())
            reply.text += chunk.choices[0].text
        if chunk.usage:
            reply.tokens = chunk.usage.completion_tokens
    return reply


_names: dict[str, str] = {}


async def _model(client: AsyncOpenAI) -> str:
    url = str(client.base_url)
    if url not in _names:
        _names[url] = (await client.models.list()).data[0].id
    return _names[url]


def report_of(args: argparse.Namespace, asked: Sequence[Request], runs: Sequence[Run]) -> str:
    """The table in Markdown: medians over the repeats, with the range of wall times."""
    head = (
        "| policy | wall s (range) | tokens/s | idle ratio | finished rows | padding | empty rows | recomputed "
        "| KV columns padded | TTFT p50 / p95 s | between tokens p50 / p95 / max ms | texts different |"
    )
    lines = [head, "| --- " * 12 + "|"]
    for policy in POLICIES:
        mine = [r for r in runs if r.policy == policy]
        lines.append(_line(policy, mine))
    walls = {p: statistics.median(r.wall_seconds for r in runs if r.policy == p) for p in POLICIES}
    return "\n".join(
        [
            f"{len(asked)} queries ({sum(len(a.prompt) for a in asked):,} prompt tokens, "
            f"{sum(a.tokens for a in asked):,} generated), {args.rows} rows, arrivals over "
            f"{asked[-1].at_seconds:.1f} s; {args.repeat} alternated turns, medians. "
            f"Model: {args.model or 'built in'}. "
            f"Machine: {os.cpu_count()} cores, {platform.processor() or platform.machine()}; "
            f"{datetime.now().date()}.",
            "",
            *lines,
            "",
            f"Wall time against `baton`: run_to_completion {walls['run_to_completion'] / walls['baton']:.2f}x, "
            f"orca {walls['orca'] / walls['baton']:.2f}x. Every text was compared with the same query sent alone.",
            "",
            f"Again: `{command()}`",
        ]
    )


def _line(policy: str, mine: Sequence[Run]) -> str:
    def median(values: Iterator[float]) -> float:
        return statistics.median(values)

    wall = median(r.wall_seconds for r in mine)
    tokens = median(sum(a.tokens for a in r.answers) / r.wall_seconds for r in mine)
    totals = [sum(r.slots.values()) for r in mine]

    def share(kind: str) -> float:
        return median(r.slots[kind] / total for r, total in zip(mine, totals, strict=True))

    padded = median(r.columns["padding"] / sum(r.columns.values()) for r in mine)
    first = [a.times[0] - a.asked for r in mine for a in r.answers if a.times]
    gaps = [1000 * (b - a) for r in mine for one in r.answers for a, b in zip(one.times, one.times[1:], strict=False)]
    walls = [r.wall_seconds for r in mine]
    return (
        f"| `{policy}` | {wall:.1f} ({min(walls):.1f} to {max(walls):.1f}) | {tokens:.0f} "
        f"| **{1 - share('useful'):.3f}** | {share('finished_row'):.3f} | {share('padding'):.3f} "
        f"| {share('empty_row'):.3f} | {share('recomputed'):.3f} "
        f"| {padded:.2f} | {_at(first, 50):.2f} / {_at(first, 95):.2f} "
        f"| {_at(gaps, 50):.0f} / {_at(gaps, 95):.0f} / {max(gaps):.0f} | {sum(r.different for r in mine)} |"
    )


def _at(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


def _metrics(url: str) -> dict[str, float]:
    """Samples of /metrics by name and label, without the model's name."""
    with urllib.request.urlopen(f"{url}/metrics") as page:
        lines = page.read().decode().splitlines()
    values = {}
    for line in lines:
        if line.startswith("baton_") and "{" in line:
            name, rest = line.split("{", 1)
            labels, value = rest.rsplit("} ", 1)
            kept = ",".join(part for part in labels.split(",") if not part.startswith("model_name="))
            values[f"{name} {kept}".strip()] = float(value)
    return values


def _get(url: str) -> Any:
    with urllib.request.urlopen(url) as page:
        return json.load(page)


def _post(url: str, body: object) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as page:
        return json.load(page)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="Azure LLM inference trace 2023, CSV")
    parser.add_argument("--model", help="hub id or folder; the built-in model if left out")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument(
        "--factor", type=float, default=4.0, help="arrivals come so many times faster than in the trace"
    )
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--clip-prompt", type=int, default=10**9, help="longest prompt, in tokens")
    parser.add_argument("--clip-answer", type=int, default=10**9, help="longest answer, in tokens")
    parser.add_argument("--section", default="first_light", help="which markers of the file")
    parser.add_argument("--write", type=Path, help="a Markdown file with markers for the table")
    return parser.parse_args()


if __name__ == "__main__":
    main()
