"""Answers as they come: server-sent events, and the end of queries whose client is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.core.errors import BatonError, SlowReader
from baton.core.events import Update, Usage
from baton.engine.client import Held
from baton.server.body import end_now
from baton.server.choices import Choice, Piece
from baton.server.errors import failure, internal_error
from baton.server.workers import LIGHT, Workers, weight

_log = logging.getLogger("baton.server")
_T = TypeVar("_T")

WAITING = b": waiting\n\n"
"""A comment, which every reader of server-sent events skips. It keeps the connection alive, and proxies see it."""

_END = "\n\n"
_SLICE = 64 * 2**10
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def until_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Does the work, and drops it when the client closes its connection; then returns None.

    The request's body must have been read to its end.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
    return None if task.cancelled() else task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Events(Protocol):
    """How an API writes an answer's news as server-sent events."""

    def opening(self, index: int) -> str:
        """Comes before a choice's first piece."""

    def count(self, choice: Choice, update: Update) -> None:
        """Counts each update before its content is written."""

    def piece(self, index: int, piece: Piece) -> str: ...

    def finish(self, index: int, reason: str, stopped_by: str | None) -> str:
        """A choice has ended. `stopped_by`: the stop string that ended it."""

    def ending(self, usages: Sequence[Usage]) -> str:
        """All choices have ended; `usages` has theirs, in their order."""

    def error(self, error: BatonError) -> str:
        """Comes instead of the ending."""


class Numbering:
    """Numbers events in the field that server-sent events have for it, and leaves out the first `after` of them."""

    def __init__(self, after: int = 0) -> None:
        self._after = after
        self._count = 0

    def __call__(self, events: str) -> str:
        """`events`: whole ones."""
        numbered = []
        for event in events.split(_END)[:-1]:
            self._count += 1
            if self._count > self._after:
                numbered.append(f"id: {self._count}\n{event}{_END}")
        return "".join(numbered)


def _as_it_is(events: str) -> str:
    return events


class EventStream(Response):
    """Asks for updates when it is sent, and sends them.

    Nothing is sent before the first update, so that a refusal or an early failure has its own status. If that takes
    longer than `limits.stream_comment`, the answer begins with a comment, and a later failure is an event.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        news: AsyncGenerator[list[Update], None],
        workers: Workers,
        answers: Held,
        choices: Sequence[Choice],
        events: Events,
        numbering: Numbering | None = None,
    ) -> None:
        """`news`: the updates of these choices. `numbering`: of the events, if the client may come back for more."""
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._news = news
        self._numbering = numbering or _as_it_is
        self._workers = workers
        self._answers = answers
        self._choices = choices
        self._events = events
        self._index = {choice.query.id: index for index, choice in enumerate(choices)}
        self._usages: dict[int, Usage] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._news) as batches:
            first = await anext(batches)
            for update in first:
                if error := failure(update):
                    raise error
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._send_updates(send, first)
                async for updates in batches:
                    await self._send_updates(send, updates)
                ending = self._events.ending([self._usages[index] for index in range(len(self._choices))])
                end = self._numbering(ending)
            except BatonError as error:
                end = self._events.error(error)
            except Exception:
                _log.exception("a stream failed")
                end = self._events.error(internal_error())
        await send({"type": "http.response.body", "body": end.encode()})

    async def _send_updates(self, send: Send, updates: Sequence[Update]) -> None:
        """Sends the updates. Raises the first failure among them after sending what came before.

        Without updates: sends a comment.
        """
        if not updates:
            await send({"type": "http.response.body", "body": WAITING, "more_body": True})
            return
        good = next((at for at, update in enumerate(updates) if failure(update)), len(updates))
        if data := await self._encode(updates[:good]):
            await send_held(send, data, self._answers)
        if good < len(updates) and (error := failure(updates[good])):
            raise error

    async def _encode(self, updates: Sequence[Update]) -> bytes:
        held = sum(choice.parser.held for choice in self._choices if choice.parser is not None)
        if weight(updates) + held < LIGHT:
            return self._framed(updates)
        return await self._workers.answer(self._framed, updates)

    def _framed(self, updates: Sequence[Update]) -> bytes:
        events, pieces = self._events, []
        for update in updates:
            index = self._index[update.query_id]
            choice = self._choices[index]
            events.count(choice, update)
            if not choice.begun:
                pieces.append(events.opening(index))
            pieces += [events.piece(index, piece) for piece in choice.take(update)]
            reason, usage = choice.finish_reason(update), choice.usage(update)
            if reason is not None:
                pieces.append(events.finish(index, reason, update.stopped_by))
            if usage is not None:
                self._usages[index] = usage
        return self._numbering("".join(pieces)).encode()


class InSlices(Response):
    """A plain JSON answer, sent as fast as its client reads. Until then it counts among what is held for clients."""

    media_type = "application/json"

    def __init__(self, body: bytes, answers: Held) -> None:
        super().__init__(body)
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= _SLICE:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await send_held(send, bytes(self.body), self._answers)
        except SlowReader as error:
            # An answer that has begun can only be broken off, as if its client had left.
            raise ClientDisconnect from error
        await send({"type": "http.response.body", "body": b""})


async def send_held(send: Send, data: bytes, answers: Held) -> None:
    """Sends a part of an answer as fast as it is read. Raises SlowReader if the rest of it must be given up."""
    if len(data) <= _SLICE:
        await send({"type": "http.response.body", "body": data, "more_body": True})
        return
    timer = asyncio.timeout(None)
    hold = answers.hold(partial(end_now, timer))
    try:
        async with timer:
            for at in range(0, len(data), _SLICE):
                hold.set(len(data) - at)
                await send({"type": "http.response.body", "body": data[at : at + _SLICE], "more_body": True})
    except TimeoutError:
        raise SlowReader(all_answers(answers)) from None
    finally:
        hold.free()


def all_answers(held: Held) -> str:
    """Why an answer was given up."""
    return (
        f"all answers that are not sent yet take more than {held.most} bytes, this one the most (--max-answers-bytes)"
    )
