"""Answers the lines of batches as requests are answered, and behind all requests."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from baton.core.errors import (
    BatonError,
    EngineUnhealthy,
    QueueFull,
    ShuttingDown,
    Unsupported,
)
from baton.core.limits import exceeded
from baton.core.query import in_background
from baton.core.threads import started
from baton.engine.client import Client, Held
from baton.jobs.lines import Answer
from baton.jobs.runner import NoAnswer
from baton.server.errors import PayloadTooLarge, error_body
from baton.server.generate import Generating, Job
from baton.server.ignored import IgnoredFields
from baton.server.workers import Line, Workers

ROWS_AHEAD = 2
"""The most queries of lines in the engine, per row: a free row finds the next query waiting."""
_THREADS = 2
_AGAIN_SECONDS = 0.2


class Background:
    """Answers lines with one engine. Used on one event loop, which need not be the server's."""

    def __init__(self, client: Client, workers: Workers) -> None:
        limits = client.settings.limits
        held = Held(limits.max_answers_bytes)
        line = Line(client, workers, Held(limits.max_bodies_bytes))
        self._generating = Generating(client, workers, line, held, IgnoredFields(lambda names: None))
        self._limits = limits
        # Threads of its own, so that requests never wait for the preparation of lines.
        self._threads: ThreadPoolExecutor = started(_THREADS, "baton-lines")
        self.at_once = ROWS_AHEAD * client.settings.max_rows
        self._free = self.at_once
        self._room = asyncio.Condition()
        self._turn = asyncio.Lock()

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    async def ask(self, url: str, body: bytes, owner: str) -> Answer:
        """Returns what a request with this body would get. Raises NoAnswer while the engine takes no queries."""
        request_id = f"req_{secrets.token_hex(12)}"
        try:
            return Answer(200, request_id, await self._asked(self._generating.job_of[url], body, owner))
        except (ShuttingDown, EngineUnhealthy) as error:
            raise NoAnswer(error.message) from None
        except BatonError as error:
            return Answer(error.status, request_id, error_body(error, url))

    async def _asked(self, make_job: Callable[[bytes, str], Job], body: bytes, owner: str) -> bytes:
        if len(body) > self._limits.max_body_bytes:
            raise PayloadTooLarge(exceeded("max_body_bytes", self._limits.max_body_bytes, len(body), "the body's size"))
        job = await self._made(make_job, body, owner)
        if job.asked.stream:
            raise Unsupported("stream is not honoured in a batch", param="stream")
        if any(choice.query.priority for choice in job.choices):
            raise Unsupported("priority is not honoured in a batch: its lines wait for all requests", param="priority")
        for choice in job.choices:
            choice.query = in_background(choice.query)
        async with self._rows_for(len(job.choices)):
            return await self._generating.plain(job)

    async def _made(self, make_job: Callable[[bytes, str], Job], body: bytes, owner: str) -> Job:
        while True:
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, make_job, body, owner)
            except QueueFull:  # too many forms are being compiled
                await asyncio.sleep(_AGAIN_SECONDS)

    @asynccontextmanager
    async def _rows_for(self, queries: int) -> AsyncGenerator[None, None]:
        """Waits until so many queries may enter the engine. A line with more than the limit is there alone."""
        wanted = min(queries, self.at_once)
        # In turn, so that others cannot overtake a line with many queries for ever.
        async with self._turn, self._room:
            await self._room.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            async with self._room:
                self._free += wanted
                self._room.notify_all()
