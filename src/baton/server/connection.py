"""One HTTP/1 connection. What arrives too late, too large or broken gets an error like any other, and is closed.

Over uvicorn's protocol and h11's parser, whose own answers are plain text or none at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from baton.core.errors import BatonError, Overloaded, RequestError
from baton.core.limits import Limits, exceeded, flag_of
from baton.engine.client import Held
from baton.server.crowd import Crowd
from baton.server.errors import HeadersTooLarge, MethodNotAllowed, PayloadTooLarge, RequestTimeout, error_response
from baton.server.middleware import request_id, stamps

LINGER_SECONDS = 5.0
"""How long a client that was answered early may go on sending. After that it is cut off and may lose the answer."""

# If a header came twice, two servers could read two different values: which key, which type.
_SINGLE = (b"authorization", b"content-type", b"x-api-key")
_FOLDED = re.compile(rb"\n[ \t]")


class Connection(H11Protocol):
    """uvicorn's protocol, with limits on headers, on their time, and on the time that an answer may stay unread."""

    def __init__(self, *args: Any, limits: Limits, crowd: Crowd, answers: Held, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._limits = limits
        self._crowd = crowd
        self._unsent = answers.hold(self._leave)
        self.timeout_keep_alive = limits.keep_alive_timeout  # type: ignore[assignment]
        self.conn: Parser = Parser(limits, self.refuse)
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: Any) -> None:
        lingering: Any = LingeringTransport(transport, self.loop, self._limits.send_timeout, self._unread)
        super().connection_made(lingering)
        if self._crowd.admit(self):
            self._crowd.waits(self, self._leave)
            self._await_head()
        elif self._crowd.refuse(self):
            self.refuse(Overloaded(f"there are {self._crowd.most} connections already ({flag_of('max_connections')})"))
        else:
            self._leave()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.left(self)
        self._unsent.free()
        _cancel(self._head_timer, self._unread_timer, self.timeout_keep_alive_task)
        super().connection_lost(exc)
        self.transport.lost()  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        # What follows an answer that ends the connection is only taken off the wire.
        if self.transport.is_closing() or self.conn.their_state in (h11.MUST_CLOSE, h11.CLOSED):
            return
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._crowd.works(self)
            _cancel(self._head_timer)
            self._head_timer = None
        elif self.conn.trailing_data[0]:
            self._unset_keepalive_if_required()
            self._await_head()
        whole = self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)
        if whole and self.flow.read_paused and self._has_room():
            # While reading is paused, a client that leaves is not noticed.
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE:
            self._crowd.waits(self, self._leave)

    def refuse(self, error: BatonError) -> None:
        """Answers what never became a whole request, and closes. To the application its client has left."""
        if self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(self._answer(error))
        self._refused = True
        self.transport.close()

    def shutdown(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent.set(self.transport.get_write_buffer_size())
        self._unread_timer = self.loop.call_later(self._limits.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent.free()
        _cancel(self._unread_timer)

    def _leave(self) -> None:
        self.transport.abort()

    def _should_upgrade(self) -> bool:
        # Clients that offer HTTP/2 in this way get HTTP/1.1, as they expect of servers without HTTP/2.
        return False

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.header_timeout, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        message = f"the headers did not arrive within {self._limits.header_timeout:g} s ({flag_of('header_timeout')})"
        self.refuse(RequestTimeout(message))

    def _unread(self) -> bool:
        """Whether the client may still be sending."""
        return self._refused or self.conn.their_state is h11.SEND_BODY

    def _has_room(self) -> bool:
        return len(self.conn.trailing_data[0]) <= self._limits.max_header_bytes

    def _answer(self, error: BatonError) -> bytes:
        request = self.conn.request if self.conn.our_state is h11.SEND_RESPONSE else None
        sent = next((value for name, value in request.headers if name == b"x-request-id"), b"") if request else b""
        response = error_response(error)
        headers = [*self.server_state.default_headers, *response.raw_headers, *stamps(request_id(sent, self._limits))]
        head = h11.Response(
            status_code=error.status,
            headers=[*headers, (b"connection", b"close")],
            reason=HTTPStatus(error.status).phrase.encode(),
        )
        body = b"" if request and request.method == b"HEAD" else bytes(response.body)
        parts: list[bytes] = [self.conn.send(part) for part in (head, h11.Data(data=body), h11.EndOfMessage())]
        return b"".join(parts)


class Parser(h11.Connection):
    """h11's parser, which hands errors over instead of raising, and refuses what two servers could read differently.

    `request` is the last one whose headers were whole. After an error there is nothing more to read.
    """

    def __init__(self, limits: Limits, refuse: Callable[[BatonError], None]) -> None:
        super().__init__(h11.SERVER, limits.max_header_bytes)
        self._limits = limits
        self._refuse = refuse
        self._chunks = 0
        self.request: h11.Request | None = None

    def next_event(self) -> Any:
        before = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self._refuse(self._explained(error, before))
            return h11.NEED_DATA
        trouble = None
        if isinstance(event, h11.Request):
            self.request, self._chunks = event, 0
            trouble = self._trouble(event, before[: len(before) - len(self.trailing_data[0])])
        elif isinstance(event, h11.Data) and event.chunk_start:
            self._chunks += 1
            trouble = self._trouble_of_chunks()
        if trouble is not None:
            self._refuse(trouble)
            return h11.NEED_DATA
        return event

    def send(self, event: Any) -> Any:
        if isinstance(event, h11.Response) and self.their_state is h11.SEND_BODY:
            # The answer comes before the body, and the body may never come.
            headers = [*event.headers, (b"connection", b"close")]
            event = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
        return super().send(event)

    def _explained(self, error: h11.RemoteProtocolError, head: bytes) -> RequestError:
        if head and error.error_status_hint == 431:
            return self._too_large(len(head))
        return RequestError(f"this is not HTTP/1.1: {error}")

    def _trouble(self, request: h11.Request, head: bytes) -> RequestError | None:
        names = {name for name, _ in request.headers}
        if len(head) > self._limits.max_header_bytes:
            return self._too_large(len(head))
        if request.http_version not in (b"1.0", b"1.1"):
            return RequestError("only HTTP/1.1 and HTTP/1.0 are spoken here")
        if _FOLDED.search(head):
            return RequestError("a header goes on in the next line, which HTTP/1.1 has given up")
        if len(request.headers) > len(names) and (twice := _twice(request)):
            return RequestError(f"the request has two headers {twice}")
        if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
            return RequestError("the request tells the length of its body in two ways")
        if request.method == b"CONNECT":
            return MethodNotAllowed("this server is no proxy", ("GET", "HEAD", "POST"))
        if not request.target.startswith(b"/") and request.target != b"*":
            return RequestError("the request's target must be a path that begins with /")
        if any(name == b"upgrade" and b"websocket" in value.lower() for name, value in request.headers):
            return RequestError("there is no WebSocket here: streams are server-sent events")
        return None

    def _too_large(self, size: int) -> HeadersTooLarge:
        most = self._limits.max_header_bytes
        return HeadersTooLarge(exceeded("max_header_bytes", most, size, "the size of all headers, or more,"))

    def _trouble_of_chunks(self) -> RequestError | None:
        most = self._limits.max_chunks
        if self._chunks <= most:
            return None
        return PayloadTooLarge(exceeded("max_chunks", most, self._chunks, "the number of the body's chunks, or more,"))


def _twice(request: h11.Request) -> str:
    """Returns the name of a header that came twice and may come only once; "" if there is none."""
    sent = [name for name, _ in request.headers]
    return next((name.decode() for name in _SINGLE if sent.count(name) > 1), "")


class LingeringTransport:
    """A transport that, while something may be `unread`, takes what the client still sends before it closes.

    If it were closed with unread bytes, the kernel would reset the connection, and the client would lose the answer.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        send_seconds: float,
        unread: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._send_seconds = send_seconds
        self._unread = unread
        self._lingering = False
        self._timers: list[asyncio.TimerHandle] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingering or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        # A client that does not read the rest would keep its connection for ever.
        self._timers.append(self._loop.call_later(self._send_seconds, self._transport.abort))
        if self._unread():
            self._lingering = True
            with contextlib.suppress(OSError):  # the client has left already
                self._transport.write_eof()
                self._transport.resume_reading()
                self._timers.append(self._loop.call_later(LINGER_SECONDS, self._transport.close))
                return
        self._transport.close()

    def lost(self) -> None:
        _cancel(*self._timers)


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()
