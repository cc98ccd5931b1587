"""A place for batches whose lines are in a list and whose answers come into another, and who answers as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from baton.jobs.lines import Answer
from baton.jobs.runner import NoAnswer
from baton.jobs.store import Batch, LineEntry, Status, Store, now

CHAT = "/v1/chat/completions"


def line(name: str, **changed: Any) -> dict[str, Any]:
    """A request whose content is its name."""
    body = {"messages": [{"role": "user", "content": name}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body} | changed


def text_of(lines: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


class Listed:
    """The place. `finished`: by batch, the answers in their order."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.store = Store(path)
        self.names = names
        self.finished: dict[str, list[dict[str, Any]]] = {}

    def add(self, batch_id: str) -> None:
        self.store.add_batch(Batch(batch_id, "", CHAT, "file-1", seed=7, created_at=now()))

    def read(self, batch: Batch, entry: LineEntry) -> bytes:
        return json.dumps(line(self.names[entry.number - 1])).encode()

    def validate(self, batch: Batch) -> None:
        lines = [LineEntry(number, 0, 0, name) for number, name in enumerate(self.names, 1)]
        begun = replace(batch, total=len(lines)).at(Status.IN_PROGRESS, now())
        self.store.change(begun, [Status.VALIDATING], lines)

    def finish(self, batch: Batch) -> None:
        self.finished[batch.id] = [json.loads(text) for text in self.store.answers(batch.id)]
        end = Status.CANCELLED if batch.status is Status.CANCELLING else Status.COMPLETED
        self.store.change(batch.at(end, now()), [batch.status])


class Echo:
    """Answers with the request. Keeps what was asked; `gate` holds answers back, `trouble` is raised instead."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.now = self.most = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.trouble: Exception | None = None
        self.statuses: dict[str, int] = {}

    async def __call__(self, url: str, body: bytes, owner: str) -> Answer:
        sent = json.loads(body)
        self.asked.append(sent)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
        finally:
            self.now -= 1
        if self.trouble is not None:
            raise self.trouble
        name = sent["messages"][0]["content"]
        return Answer(self.statuses.get(name, 200), f"req_{name}", json.dumps({"said": name}).encode())

    @property
    def names(self) -> list[str]:
        return [sent["messages"][0]["content"] for sent in self.asked]


def not_now() -> NoAnswer:
    return NoAnswer("the engine takes nothing now")
