"""What every request passes: its id, its headers' size, its host and key; and how unforeseen errors are answered.

Plain ASGI middleware, because Starlette's base class costs a task per request and hides disconnects. `auth.Origins`
stands between the two, so that pages of other origins can read refusals too.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.core.errors import BatonError, quoted
from baton.core.limits import Limits, exceeded
from baton.server.auth import Access, Hosts, Keys, authorization_of
from baton.server.errors import HeadersTooLarge, InvalidHost, InvalidKey, error_response, internal_error

_log = logging.getLogger("baton.server")


class Middleware:
    """Gives a request its id and answers HEAD as GET without the body."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        name = request_id(sent, self._limits)
        bare = scope["method"] == "HEAD"

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *stamps(name)]}
            elif bare and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        scope = {**scope, "state": {**scope.get("state", {}), "request_id": name.decode()}}
        await self._app({**scope, "method": "GET"} if bare else scope, receive, answer)


class AuthMiddleware:
    """Lets a request in or answers it. `open_paths` need no key."""

    def __init__(self, app: ASGIApp, *, access: Access, open_paths: Collection[str], limits: Limits) -> None:
        self._app = app
        self._keys = Keys(access.keys)
        self._hosts = None if access.hosts is None else Hosts(access.hosts)
        self._open_paths = frozenset(open_paths)
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            return
        except Exception as error:
            if not isinstance(error, BatonError):
                _log.exception("request %s failed", scope["state"]["request_id"])
                error = internal_error()
            if not started:
                await error_response(error, scope["path"])(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._check_size(scope)
        host = headers.get(b"host")
        # Only HTTP/1.0 allows requests without a host, and no browser sends it.
        if self._hosts is not None and host is not None and not self._hosts.admit(host):
            name = quoted(host.decode("latin-1"))
            raise InvalidHost(f"this server is not known by the request's Host {name}: --allowed-host adds a name")
        if not self._keys or scope["path"] in self._open_paths:
            return
        if not self._keys.admit(authorization_of(scope)):
            raise InvalidKey("this server needs an API key: send it as 'Authorization: Bearer KEY'")

    def _check_size(self, scope: Scope) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        most = self._limits.max_header_bytes
        if size > most:
            raise HeadersTooLarge(exceeded("max_header_bytes", most, size, "the size of all headers"))


def request_id(sent: bytes, limits: Limits) -> bytes:
    """The client's id, if it is printable ASCII of a sane length; else a new one."""
    if 1 <= len(sent) <= limits.max_request_id and all(0x20 <= byte <= 0x7E for byte in sent):
        return sent
    return secrets.token_hex(16).encode()


def stamps(request_id: bytes) -> list[tuple[bytes, bytes]]:
    """The headers that every answer has."""
    return [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff")]
