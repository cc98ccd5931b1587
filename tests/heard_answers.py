"""Requests of many kinds, and what their clients heard, for tests in which servers and engines end under them."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

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
                if number is None and ('"error": {"' in data or '"response.failed"' in data):
                    self.trouble = data
                else:
                    self.numbers += [] if number is None else [number]
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
    # Which of several choices ends last is a matter of time.
    last = None if answer.body.get("stream") and events[-1].get("choices") else events[-1]
    return joined, last


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
