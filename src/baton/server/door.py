"""What every request passes: its id, its headers' size, the key; and what becomes of an unforeseen error.

A plain ASGI middleware, because Starlette's base class costs a task per request and hides disconnects.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Collection

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.errors import BatonError
from baton.server.errors import HeadersTooLarge, InvalidKey, error_response, internal_error

MAX_HEADER_BYTES = 32 * 2**10
MAX_REQUEST_ID_CHARACTERS = 128

_log = logging.getLogger("baton.server")


class Door:
    """Lets a request in or answers it. `open_paths` need no key."""

    def __init__(self, app: ASGIApp, *, api_key: str | None, open_paths: Collection[str]) -> None:
        self._app = app
        self._expected = None if api_key is None else api_key.encode()
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id", b""))
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                extra = [(b"x-request-id", request_id), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            return
        except BatonError as error:
            await self._refuse(error, started, scope, receive, answer)
        except Exception:
            _log.exception("request %s failed", request_id.decode())
            await self._refuse(internal_error(), started, scope, receive, answer)

    async def _refuse(self, error: BatonError, started: bool, scope: Scope, receive: Receive, send: Send) -> None:
        if not started:
            await error_response(error)(scope, receive, send)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size > MAX_HEADER_BYTES:
            raise HeadersTooLarge(f"the headers have {size} bytes, the limit is {MAX_HEADER_BYTES}")
        if self._expected is None or scope["path"] in self._open_paths:
            return
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._expected):
            raise InvalidKey("this server needs its API key: send it as 'Authorization: Bearer KEY'")


def _request_id(sent: bytes) -> bytes:
    """What the client sent, if it is printable ASCII of a sane length; else one of ours."""
    if 1 <= len(sent) <= MAX_REQUEST_ID_CHARACTERS and all(0x20 <= byte <= 0x7E for byte in sent):
        return sent
    return secrets.token_hex(16).encode()
