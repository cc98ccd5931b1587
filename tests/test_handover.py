"""A server ends while it answers, and the next one goes on: real processes, real connections.

One that is killed in between loses nothing. `STREAMS=32 pytest tests/test_handover.py` cuts so many.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from heard_answers import asked_of, requests, told
from warm import WarmProcess

STREAMS = int(os.environ.get("STREAMS", "12"))


class Server:
    """`baton serve --handover FOLDER`, in a process of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        command = ["-m", "baton", "serve", "--port", "0", "--handover", str(folder), "--threads", "1", *flags]
        command += ["--chat-template", str(Path(__file__).parent / "tools.jinja"), "--no-prefix-cache"]
        self.process = WarmProcess(command)
        self.lines: list[str] = []
        self.url = ""

    def ready(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if match := re.search(r"ready.*(http://[\d.:]+)", line):
                self.url = match[1]
                return self.url
        raise AssertionError("".join(self.lines))

    def end(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return rest


@pytest.fixture
def begun() -> Iterator[list[Server]]:
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.process.kill()
        server.process.wait()


async def slots(url: str) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        text = (await client.get("/metrics")).text
    found = re.findall(r'baton_token_slots_total\{.*?kind="(\w+)".*?\} (\S+)', text)
    return {kind: float(value) for kind, value in found}


async def test_a_restart_loses_no_answer(tmp_path: Path, begun: list[Server]) -> None:
    folder = tmp_path / "kept"
    first = Server(folder, "--max-batch-size", "8")
    begun.append(first)
    first.ready()
    uncut, cut = requests(STREAMS), requests(STREAMS)
    await asked_of(first.url, uncut, "ask")
    assert all(answer.whole for answer in uncut)

    async def end_soon() -> None:
        while sum(len(answer.events) for answer in cut) < 12 * STREAMS:
            await asyncio.sleep(0.01)
        first.process.send_signal(signal.SIGTERM)

    await asked_of(first.url, cut, "ask", end_soon)
    first.process.wait(60)
    broken = [answer for answer in cut if not answer.whole]
    assert len(broken) > STREAMS // 2
    assert all("the server restarts" in answer.trouble for answer in broken)
    assert all(path.stat().st_mode & 0o77 == 0 for path in folder.iterdir())
    killed = Server(folder, "--max-batch-size", "8")
    begun.append(killed)
    killed.ready()
    killed.process.kill()
    killed.process.wait()
    second = Server(folder, "--max-batch-size", "8")
    begun.append(second)
    second.ready()
    await asked_of(second.url, broken, "come_back")
    for one, right in zip(cut, uncut, strict=True):
        assert one.whole, one
        assert one.numbers == list(range(1, len(one.numbers) + 1))
        assert told(one) == told(right)
    assert (await slots(second.url))["recomputed"] == 0
    second.end()
