"""Ten times more than a server takes: what is refused, how fast, and whether it still tells how it is.

    python -m benchmarks.cpu.overload [--rows 8] [--waiting 16] [--tokens 128] [--times 10] [--seconds 5]

Starts `baton serve` with the built-in model in a process of its own and drives it over raw sockets, so that this client
takes little. First the throughput of as many clients as fit; then a burst of ten times as many requests at once; then
requests that arrive evenly at ten times that throughput. Meanwhile /health and /metrics are asked every 50 ms.
What is accepted must be the text that the same request gives alone; all else must be 429 within 100 ms, and health and
metrics must come within 250 ms. Exit status 1 where that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

REFUSED_SECONDS, TOLD_SECONDS = 0.1, 0.25


@dataclass(slots=True)
class Seen:
    """Seconds of each answer, by status; `wrong`: accepted, with another text than alone."""

    refused: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    told: dict[str, list[float]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    wrong: int = 0


class Connection:
    """One HTTP connection that is kept open."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> Connection:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        return self

    async def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes, float]:
        """Status, body and seconds from the request's first byte to the answer's last."""
        await self.open()
        assert self._streams is not None
        reader, writer = self._streams
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\n"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        began = time.perf_counter()
        writer.write(f"{head}\r\n".encode() + (body or b""))
        answer = await reader.readuntil(b"\r\n\r\n")
        lines = answer.lower().split(b"\r\n")
        size = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        content = await reader.readexactly(size)
        seconds = time.perf_counter() - began
        if b"connection: close" in lines:
            writer.close()
            self._streams = None
        return int(answer[9:12]), content, seconds


class Load:
    """Requests to one server."""

    def __init__(self, host: str, port: int, tokens: int) -> None:
        self._address = (host, port)
        self._body = json.dumps(
            {"prompt": "Tell me a story about a fox.", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        ).encode()
        self._free: list[Connection] = []
        self._right = ""

    async def alone(self) -> float:
        """Learns the right answer. Returns how long it takes."""
        status, body, seconds = await (await self._connection()).ask("/v1/completions", self._body)
        assert status == 200, body
        self._right = json.loads(body)["choices"][0]["text"]
        return seconds

    async def prepare(self, count: int) -> None:
        some = [Connection(*self._address) for _ in range(count)]
        for connection in some:
            self._free.append(await connection.open())

    async def one(self, seen: Seen) -> None:
        connection = await self._connection()
        status, body, seconds = await connection.ask("/v1/completions", self._body)
        self._free.append(connection)
        if status == 200:
            seen.accepted.append(seconds)
            seen.wrong += json.loads(body)["choices"][0]["text"] != self._right
        elif status == 429:
            seen.refused.append(seconds)
        else:
            seen.others.append(f"{status} {body[:100]!r}")

    async def closed(self, clients: int, seconds: float) -> float:
        """So many clients that ask again and again. Returns queries per second."""
        seen, end = Seen(), time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.one(seen)

        await asyncio.gather(*(client() for _ in range(clients)))
        return len(seen.accepted) / seconds

    async def burst(self, count: int) -> Seen:
        return await self._watched(count, [0.0] * count)

    async def steady(self, rate: float, seconds: float) -> Seen:
        return await self._watched(64, [number / rate for number in range(int(rate * seconds))])

    async def _watched(self, connections: int, arrivals: Sequence[float]) -> Seen:
        seen = Seen()
        await self.prepare(connections - len(self._free))
        telling = [asyncio.create_task(self._tell(path, seen)) for path in ("/health", "/metrics")]
        await asyncio.sleep(0.1)
        began = time.perf_counter()
        tasks = []
        for arrival in arrivals:
            if (wait := began + arrival - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self.one(seen)))
        await asyncio.gather(*tasks)
        for task in telling:
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)
        return seen

    async def _tell(self, path: str, seen: Seen) -> None:
        connection = await Connection(*self._address).open()
        while True:
            status, _, seconds = await connection.ask(path)
            seen.told.setdefault(path, []).append(seconds)
            if status != 200:
                seen.others.append(f"{path}: {status}")
            await asyncio.sleep(0.05)

    async def _connection(self) -> Connection:
        return self._free.pop() if self._free else await Connection(*self._address).open()


def row(name: str, seconds: Iterable[float]) -> str:
    values = sorted(seconds)
    if not values:
        return f"  {name:<28}none"
    cuts = [statistics.median(values), values[int(len(values) * 0.99)], values[-1]]
    told = "  ".join(
        f"{label} {value * 1000:7.1f} ms" for label, value in zip(("p50", "p99", "max"), cuts, strict=True)
    )
    return f"  {name:<28}{len(values):>6}  {told}"


def show(title: str, seen: Seen) -> bool:
    """Prints what was seen. Returns whether it is as it must be."""
    print(title)
    print(row("accepted", seen.accepted))
    print(row("refused with 429", seen.refused))
    for path, seconds in seen.told.items():
        print(row(path, seconds))
    if seen.others or seen.wrong:
        print(f"  WRONG: {seen.wrong} texts, {len(seen.others)} other answers, like {seen.others[:2]}")
    slow = sum(seconds > REFUSED_SECONDS for seconds in seen.refused)
    late = sum(seconds > TOLD_SECONDS for some in seen.told.values() for seconds in some)
    print(f"  later than promised: {slow} refusals, {late} of health and metrics")
    return not (slow or late or seen.others or seen.wrong)


async def measure(url: str, args: argparse.Namespace) -> bool:
    host, _, port = url.removeprefix("http://").rpartition(":")
    load = Load(host, int(port), args.tokens)
    await load.alone()
    print(f"one alone: {await load.alone() * 1000:.0f} ms")
    fits = args.rows + args.waiting
    rate = await load.closed(fits, args.seconds)
    print(f"{fits} clients that fit: {rate:.1f} queries/s")
    good = show(f"burst of {args.times * fits} at once", await load.burst(args.times * fits))
    title = f"{args.times * rate:.0f} requests/s for {args.seconds:g} s"
    return show(title, await load.steady(args.times * rate, args.seconds)) and good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--waiting", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("serve", nargs="*", help="more arguments of baton serve")
    args = parser.parse_args()
    command = [sys.executable, "-m", "baton", "serve", "--port", "0", "--max-batch-size", str(args.rows)]
    command += ["--max-waiting", str(args.waiting), *args.serve]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        url = next(line.split()[4] for line in server.stderr if line.startswith("ready"))
        return 0 if asyncio.run(measure(url, args)) else 1
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    sys.exit(main())
