"""Requests made from below the framework, for tests of what is sent when."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from server.scripted import ScriptedLoop, app_of


class Wire:
    """One request by hand: what the app sent, and a connection that can be closed."""

    def __init__(self, loop: ScriptedLoop, body: dict[str, Any], path: str = "/v1/completions") -> None:
        self.sent: list[dict[str, Any]] = []
        self.close = asyncio.Event()
        self.news = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        self.task = asyncio.create_task(app_of(loop)(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.close.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.news.set()

    async def heard(self, count: int) -> None:
        while len(self.sent) < count:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 10)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


async def submitted(loop: ScriptedLoop) -> None:
    await asyncio.wait_for(asyncio.to_thread(loop.came.wait), 10)
