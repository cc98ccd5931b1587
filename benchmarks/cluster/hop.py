"""What the way through a front costs: a paced engine asked directly, through a front, and behind HAProxy.

    python -m benchmarks.cluster.hop [--rounds 5] [--tokens 64] [--step 0.01] [--json FILE] [--write docs/cluster.md]

Each engine has one thread and the built-in model, and its iterations begin so many seconds after each other, as a
larger model's would. Contenders are asked in turn, round by round: `direct`, a `baton serve`; `front`, a
`baton serve --replicas 1`; `front, 2 engines`; and `HAProxy`, Ray Serve's proxy in front of a server with its engine in
one process (`baton.cli.serve_whole`). All stay up meanwhile. Streams are read from sockets by hand, so that the client
costs little. `first`: to the first token, median of all streams. `between`: of the times of two tokens one after the
other, mean. `tokens/s`: of a round, from its first request to its last token; median.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.cluster.served import end_on_sigterm, serving
from benchmarks.report import flags, parsed, table, tell

STREAMS = (1, 8)
MODEL = "baton-builtin"


@dataclass
class Heard:
    """Of one contender with so many streams."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        return {
            "first ms": 1e3 * statistics.median(self.first),
            "between ms": 1e3 * statistics.mean(self.between),
            "tokens/s": statistics.median(self.rates),
        }


async def stream(url: str, tokens: int, number: int, heard: Heard) -> int:
    """One answer. Returns how many tokens came."""
    host, port = url.removeprefix("http://").split(":")
    asked = {"prompt": f"Tell me a story {number}", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    body = json.dumps({"model": MODEL, "stream": True, **asked}).encode()
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    times: list[float] = []
    told = b""
    while data := await reader.read(65536):
        now, told = time.perf_counter(), told + data
        times += [now] * (told.count(b'"text":"') - len(times))
    writer.close()
    if not times:
        raise RuntimeError(told[:500].decode(errors="replace"))
    heard.first.append(times[0] - began)
    heard.between.append((times[-1] - times[0]) / max(1, len(times) - 1))
    return len(times)


async def ask(url: str, streams: int, tokens: int, heard: Heard) -> None:
    """One round."""
    began = time.perf_counter()
    counts = await asyncio.gather(*(stream(url, tokens, at, heard) for at in range(streams)))
    heard.rates.append(sum(counts) / (time.perf_counter() - began))


async def compare(urls: dict[str, str], rounds: int, tokens: int) -> dict[str, dict[int, Heard]]:
    found = {name: {count: Heard() for count in STREAMS} for name in urls}
    for url in urls.values():
        await ask(url, max(STREAMS), tokens // 4, Heard())
    for round in range(rounds):
        order = list(urls.items())
        for name, url in order if round % 2 else reversed(order):
            for count in STREAMS:
                await ask(url, count, tokens, found[name][count])
    return found


@contextlib.contextmanager
def behind_haproxy(environment: dict[str, str]) -> Iterator[str]:
    """A server behind HAProxy, in a Ray of its own. Yields its address."""
    command = [sys.executable, "-m", "benchmarks.cluster.haproxy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        url = next((line.split()[1] for line in process.stdout if line.startswith("ready ")), "")
        if not url:
            raise RuntimeError("the server behind HAProxy did not start")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    end_on_sigterm()
    parser = flags(__doc__, "hop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--step", type=float, default=0.01, help="seconds between two iterations' beginnings")
    parser.add_argument("--only", nargs="+", default=["front", "front, 2 engines", "HAProxy"], help="beside direct")
    args = parsed(parser)
    paced = {"BATON_TEST_MODE": "1", "BATON_FAULTS": f"iteration_paced@1:{args.step}"}
    each = ("--replica-cpus", "1", "--max-batch-size", "8")
    with contextlib.ExitStack() as up:
        urls = {"direct": up.enter_context(serving("--threads", "1", "--max-batch-size", "8", environment=paced)).url}
        for name, engines in (("front", "1"), ("front, 2 engines", "2")):
            if name in args.only:
                urls[name] = up.enter_context(serving("--replicas", engines, *each, environment=paced)).url
        if "HAProxy" in args.only:
            urls["HAProxy"] = up.enter_context(behind_haproxy({**os.environ, **paced}))
        found = asyncio.run(compare(urls, args.rounds, args.tokens))
    figures = {name: {count: heard.figures() for count, heard in of.items()} for name, of in found.items()}
    rows = []
    for name, of in figures.items():
        one, eight = of[1], of[8]
        share = eight["tokens/s"] / figures["direct"][8]["tokens/s"]
        times = (one["first ms"], one["between ms"], eight["first ms"], eight["between ms"])
        rows.append((name, *(f"{time:.1f}" for time in times), f"{eight['tokens/s']:.0f}", f"{share:.0%}"))
    head = ("", "1 stream: first ms", "between ms", "8 streams: first ms", "between ms", "tokens/s", "of direct")
    about = f"Steps of {1e3 * args.step:g} ms, {args.tokens} tokens each, {args.rounds} rounds in turn."
    tell(args, [about, "", *table(head, rows)], figures)


if __name__ == "__main__":
    main()
