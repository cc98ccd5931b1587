"""A server ends while it answers, and the next one goes on: real processes, real connections.

One that is killed in between loses nothing.

`STREAMS=32 pytest tests/test_handover.py` cuts so many.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

STREAMS = int(os.environ.get("STREAMS", "12"))
START_SECONDS = 90.0

LONG = {"max_tokens": 90, "min_tokens": 60}
SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "minItems": 30}}}
SCHEMA["required"] = ["a"]
TOOL: dict[str, Any] = {"name": "look", "parameters": {"type": "object", "properties": {"words": {"type": "string"}}}}
TOOL["parameters"]["required"] = ["words"]
TOOLS = [{"type": "function", "function": TOOL}]
TALK = [{"role": "user", "content": "Count to one hundred."}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USAGE = {"stream_options": {"include_usage": True}}
KINDS: Sequence[tuple[str, dict[str, Any]]] = (
    (CHAT, {"messages": TALK, **LONG, "temperature": 1.0, "stream": True, **USAGE}),
    (COMPLETIONS, {"prompt": "1, 2, 3,", **LONG, "temperature": 0, "stream": True, "logprobs": 2, "echo": True}),
    (CHAT, {"messages": TALK, **LONG, "n": 3, "temperature": 0.9, "presence_penalty": 0.7, "stream": True, **USAGE}),
    ("/v1/responses", {"input": "Tell a story.", "max_output_tokens": 70, "temperature": 1.3, "stream": True}),
    ("/v1/messages", {"messages": TALK, "max_tokens": 70, "temperature": 1.0, "stream": True}),
    (CHAT, {"messages": TALK, "max_tokens": 90, "structured_outputs": {"json": SCHEMA}, "stream": True}),
    (COMPLETIONS, {"prompt": ["a", "b"], **LONG, "temperature": 1.4, "stop": ["zq", "the "], "stream": True}),
    (CHAT, {"messages": TALK, **LONG, "temperature": 1.1, "frequency_penalty": 0.5}),
    (CHAT, {"messages": TALK, "max_tokens": 60, "tools": TOOLS, "tool_choice": "required", "stream": True}),
    ("/v1/messages", {"messages": TALK, "max_tokens": 60, "temperature": 1.1}),
    (COMPLETIONS, {"prompt": "x" * 90, **LONG, "temperature": 1.0, "logit_bias": {"40": 4}, "stream": True, **USAGE}),
    ("/v1/responses", {"input": "Tell a story.", "max_output_tokens": 70, "temperature": 1.0}),
)  # fmt: skip


class Server:
    """`baton serve --handover FOLDER`, in a process of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "baton", "serve", "--port", "0", "--handover", str(folder), *flags]
        command += ["--chat-template", str(Path(__file__).parent / "tools.jinja"), "--no-prefix-cache"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
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


@dataclass
class Answer:
    """What a client heard of one answer: the data of events, or one body."""

    path: str
    body: dict[str, Any]
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    events: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    whole: bool = False
    trouble: str = ""

    async def ask(self, client: httpx.AsyncClient) -> None:
        await self._hear(client, "POST", self.path, json=self.body)

    async def come_back(self, client: httpx.AsyncClient) -> None:
        after = f"?after={len(self.events)}" if self.body.get("stream") else ""
        await self._hear(client, "GET", f"/v1/baton/streams/{self.request_id}{after}")

    async def _hear(self, client: httpx.AsyncClient, method: str, path: str, **given: Any) -> None:
        headers = {"x-request-id": self.request_id}
        async with client.stream(method, path, headers=headers, **given) as response:
            if response.status_code != 200 or not self.body.get("stream"):
                text = (await response.aread()).decode()
                self.whole = response.status_code == 200
                self.trouble = "" if self.whole else text
                self.events += [text] if self.whole else []
                return
            async for block in _blocks(response):
                number, data = _event(block)
                if number is None:
                    self.trouble = data
                else:
                    self.numbers.append(number)
                    self.events.append(data)
        last = self.events[-1] if self.events else ""
        self.whole = any(end in last for end in ("[DONE]", "response.completed", "response.incomplete", "message_stop"))


async def _blocks(response: httpx.Response) -> Any:
    text = ""
    async for piece in response.aiter_text():
        *blocks, text = (text + piece).split("\n\n")
        for block in blocks:
            if not block.startswith(":"):
                yield block


def _event(block: str) -> tuple[int | None, str]:
    lines = dict(line.split(": ", 1) for line in block.splitlines())
    return (int(lines["id"]) if "id" in lines else None), lines["data"]


VOLATILE = {"id", "created", "created_at", "completed_at", "item_id", "call_id", "type", "sequence_number"}


def bare(value: Any) -> Any:
    """A value without ids and times, and with log-probabilities to four digits."""
    if isinstance(value, dict):
        return {name: bare(inner) for name, inner in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [bare(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


class Joined(dict[str, Any]):
    """What deltas add up to: texts and lists by where they stand."""

    def add(self, where: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                self.add(f"{where}.{name}", inner)
        elif isinstance(value, list):
            self.setdefault(where, []).extend(value)
        elif isinstance(value, str):
            self[where] = self.get(where, "") + value


def told(answer: Answer) -> Any:
    """What an answer says, however its tokens were put together into events, and its last event."""
    joined = Joined()
    events = [bare(json.loads(event)) for event in answer.events if event != "[DONE]"]
    for event, data in zip(events, answer.events, strict=False):
        for choice in event.get("choices", ()):
            where = str(choice["index"])
            for one in choice.get("delta", {}).pop("tool_calls", ()):
                joined.add(f"{where} call {one['index']}", one)
            joined.add(where, choice)
        if '_delta"' in data or '.delta"' in data:
            joined.add(f"block {event.get('index')}", event.get("delta"))
    return joined, events[-1]


def requests(count: int) -> list[Answer]:
    asked = []
    for at in range(count):
        path, body = KINDS[at % len(KINDS)]
        seed = {} if path == "/v1/messages" else {"seed": 100 + at}
        asked.append(Answer(path, {**body, **seed, **({"temperature": 0} if path == "/v1/messages" else {})}))
    return asked


async def asked_of(url: str, answers: Sequence[Answer], verb: str, then: Any = None) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        tasks = [asyncio.ensure_future(getattr(answer, verb)(client)) for answer in answers]
        if then is not None:
            await then()
        await asyncio.gather(*tasks)


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
