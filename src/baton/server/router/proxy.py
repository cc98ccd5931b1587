"""One request passed on to its model's process, and the answer passed back as it comes."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

import httpx
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.core.errors import BatonError, DeadlinePassed, EngineUnhealthy, QueueFull
from baton.core.limits import Limits, flag_of
from baton.engine.client import Held
from baton.server.body import body_of, parse_object
from baton.server.errors import error_body, of_messages
from baton.server.router.models import Model, Models, Process
from baton.server.stream import STREAM_HEADERS, WAITING, until_gone
from baton.server.workers import Workers

# Headers of one connection, or that are written again for each of the two.
_OWN = {b"connection", b"keep-alive", b"trailer", b"transfer-encoding", b"upgrade", b"x-request-id"}
# The server itself has checked pages' origins; a body's sender says its length.
_OF_THE_CLIENT = {*_OWN, b"content-length", b"expect", b"host", b"origin"}
_OF_THE_MODEL = {*_OWN, b"date", b"x-content-type-options"}
_CONNECT_SECONDS = 5.0
# A query ends within `query_timeout`, and streams have comments: a process that is silent for longer hangs.
_SILENCE_SECONDS = 30.0
# Pages of figures are made at once.
_FIGURES_SECONDS = 5.0

_log = logging.getLogger("baton.server")


class Forwarder:
    """Passes requests on.

    `waiting`: how many wait for a model. `held`: bytes of bodies that no model has yet.
    """

    def __init__(self, models: Models, workers: Workers, limits: Limits) -> None:
        self.models = models
        self.limits = limits
        self._workers = workers
        self.held = Held(max(limits.max_bodies_bytes, limits.max_body_bytes))
        self.waiting = 0
        # No limits of its own: waiting and running requests are bounded where they are admitted.
        timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS, read=limits.query_timeout + _SILENCE_SECONDS)
        self._http = httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None), trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, process: Process, path: str, query: str = "") -> httpx.Response:
        """Returns the whole answer to a GET. Raises EngineUnhealthy."""
        try:
            return await self._http.get(
                f"{process.address}{path}{f'?{query}' if query else ''}",
                headers=process.headers,
                timeout=_FIGURES_SECONDS,
            )
        except httpx.TransportError:
            raise _gone() from None

    async def read(self, request: Request, stack: AsyncExitStack) -> tuple[bytes, Model, bool]:
        """Returns the body of a request, its model, and whether it wants a stream.

        The body counts as held until the stack ends. Raises what reading a body does, and ModelNotFound.
        """
        body = await stack.enter_async_context(body_of(request, self.limits, self.held))
        asked = await self._workers.prepare(len(body), parse_object, body, self.limits)
        name = asked.get("model")
        # A model that is not a string is refused by the model's own server, in its own words.
        return body, self.models.named(name if isinstance(name, str) else None), asked.get("stream") is True

    async def enter(self, model: Model, comment: Callable[[], Awaitable[None]]) -> Process:
        """Returns the model's process once it serves, until `models.leave`. Sends comments meanwhile.

        Raises QueueFull, DeadlinePassed and what `Models.enter` raises.
        """
        if self.waiting >= self.limits.max_waiting and not self.models.serves(model):
            raise QueueFull(f"{self.waiting} requests wait for models ({flag_of('max_waiting')})")
        most, now = self.limits.query_timeout, asyncio.get_running_loop().time
        deadline = now() + most
        entering = asyncio.ensure_future(self.models.enter(model))
        self.waiting += 1
        try:
            while not (await asyncio.wait({entering}, timeout=self.limits.stream_comment))[0]:
                if now() > deadline:
                    raise DeadlinePassed(f"{model.name} was not loaded within {most:g} s ({flag_of('query_timeout')})")
                await comment()
            return entering.result()
        except BaseException:
            if not entering.cancel() and not entering.cancelled() and entering.exception() is None:
                self.models.leave(model)
            raise
        finally:
            self.waiting -= 1

    async def send(self, process: Process, scope: Scope, body: bytes) -> httpx.Response:
        """The beginning of the answer. Raises EngineUnhealthy."""
        headers = [(name, value) for name, value in scope["headers"] if name not in _OF_THE_CLIENT]
        headers.append((b"x-request-id", scope["state"]["request_id"].encode()))
        request = self._http.build_request(
            scope["method"], f"{process.address}{scope['path']}", headers=headers, content=body
        )
        try:
            return await self._http.send(request, stream=True)
        except httpx.TransportError:
            raise _gone() from None


class Forwarded(Response):
    """The answer of a model's process, once it has one.

    A stream that waits for its model longer than `limits.stream_comment` begins with comments; a later refusal is an
    event.
    """

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__()
        self._forwarder = forwarder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            body, model, streamed = await self._forwarder.read(Request(scope, receive), stack)
            sender = _Sender(scope["path"], send)
            await until_gone(receive, self._answer(sender, scope, body, model, streamed, stack))

    async def _answer(
        self, sender: _Sender, scope: Scope, body: bytes, model: Model, streamed: bool, stack: AsyncExitStack
    ) -> None:
        forwarder = self._forwarder
        try:
            process = await forwarder.enter(model, sender.comment if streamed else _nothing)
            try:
                response = await forwarder.send(process, scope, body)
                # The process holds the body now.
                await stack.aclose()
                try:
                    await sender.forward(response)
                finally:
                    await response.aclose()
            finally:
                forwarder.models.leave(model)
        except BatonError as error:
            if not sender.begun:
                raise
            await sender.end(error_body(error, scope["path"]))


async def _nothing() -> None:
    """The news of a plain answer while it waits: none."""


class _Sender:
    """Writes an answer. `begun`: its status was sent."""

    def __init__(self, path: str, send: Send) -> None:
        self.begun = False
        self._path = path
        self._send = send
        self._events = False

    async def comment(self) -> None:
        if not self.begun:
            kind = (b"content-type", b"text/event-stream; charset=utf-8")
            await self._begin(200, [kind, *((name.encode(), value.encode()) for name, value in STREAM_HEADERS.items())])
            self._events = True
        await self._write(WAITING)

    async def forward(self, response: httpx.Response) -> None:
        """Passes on an answer. Raises EngineUnhealthy if it breaks off."""
        try:
            if self.begun and response.status_code != 200:
                await self.end(await response.aread())
                return
            if not self.begun:
                self._events = response.headers.get("content-type", "").startswith("text/event-stream")
                await self._begin(response.status_code, _passed_on(response.headers.raw))
            async for chunk in response.aiter_raw():
                await self._write(chunk)
        except httpx.TransportError:
            if not self._events:
                raise
            raise _gone() from None
        await self._write(b"", more=False)

    async def end(self, error: bytes) -> None:
        """The last event of a stream: an error's body."""
        await self._write(_event(self._path, error), more=False)

    async def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _passed_on(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), value) for name, value in headers if name.lower() not in _OF_THE_MODEL]


def _event(path: str, body: bytes) -> bytes:
    """An error's body as an event of this path's API."""
    if of_messages(path):
        return b"event: error\ndata: " + body + b"\n\n"
    if path.endswith("/responses"):
        error = json.loads(body)["error"]
        event = {"type": "error", "code": error["code"], "message": error["message"], "param": error["param"]}
        return b"event: error\ndata: " + json.dumps({**event, "sequence_number": 0}).encode() + b"\n\n"
    return b"data: " + body + b"\n\n"


def _gone() -> EngineUnhealthy:
    return EngineUnhealthy("the process of this model ended or does not answer: try again")
