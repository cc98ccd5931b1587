"""Request bodies: read within limits, then strict JSON."""

from __future__ import annotations

import asyncio
import json
from typing import NoReturn

from starlette.requests import Request

from baton.server.errors import InvalidJson, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

MAX_BODY_BYTES = 4 * 2**20
MAX_BODY_SECONDS = 60
MAX_DEPTH = 64
MAX_NODES = 10_000


async def read_body(request: Request) -> bytes:
    """The whole body. Raises UnsupportedMediaType, PayloadTooLarge or RequestTimeout.

    Only `application/json` is taken: any web page may send other types without asking this server first.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType(f"content-type must be application/json, got {kind or 'none'}")
    _check_size(_announced_bytes(request))
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                _check_size(len(body))
    except TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {MAX_BODY_SECONDS} s") from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, object]:
    """The JSON object in a body. Raises InvalidJson; NaN and Infinity are no JSON."""
    try:
        found = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidJson(f"the body is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise InvalidJson(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidJson("the body must be a JSON object")
    _check_nodes(found)
    return found


def _announced_bytes(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else 0


def _check_size(size: int) -> None:
    if size > MAX_BODY_BYTES:
        raise PayloadTooLarge(f"the body has {size} bytes or more, the limit is {MAX_BODY_BYTES}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _check_nodes(root: object) -> None:
    """Bounds depth and nodes, and refuses text that is not Unicode.

    A node is a container, a key, or a value; numbers in lists are not counted, so that a prompt of token ids
    may be as long as the context: the body's limit bounds those.
    """
    nodes = 0
    level: list[object] = [root]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict):
                below.extend(value)
                below.extend(value.values())
            elif isinstance(value, list):
                below.extend(item for item in value if not isinstance(item, (int, float)))
            elif isinstance(value, str):
                _check_text(value)
        nodes += len(level)
        if nodes > MAX_NODES:
            raise InvalidJson(f"the body has more than {MAX_NODES} JSON nodes")
        if not below:
            return
        level = below
    raise InvalidJson(f"the body is nested deeper than {MAX_DEPTH}")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidJson("the body has a string with half a surrogate pair") from None
