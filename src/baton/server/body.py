"""Request bodies: read within limits, then strict JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NoReturn

from starlette.datastructures import Headers
from starlette.requests import Request

from baton.core.errors import Overloaded
from baton.core.limits import Limits, exceeded, flag_of
from baton.core.strict_json import RepeatedName, unrepeated
from baton.engine.client import Held
from baton.server.errors import InvalidJson, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

_UNREAD = object()
_CHARSETS = ("utf-8", "utf8", "us-ascii")


@asynccontextmanager
async def body_of(request: Request, limits: Limits, held: Held) -> AsyncGenerator[bytes, None]:
    """Yields the whole body, which counts among the bodies that are `held` until the block ends.

    Raises UnsupportedMediaType, PayloadTooLarge, RequestTimeout, or Overloaded if all bodies together are too large and
    this one is the largest of those that have not ended.
    """
    _check_kind(request.headers)
    _check_size(_announced_bytes(request), limits)
    timer = asyncio.timeout(limits.body_timeout)
    hold = held.hold(partial(end_now, timer))
    body = bytearray()
    try:
        async with timer:
            async for chunk in request.stream():
                body += chunk
                _check_size(len(body), limits)
                hold.set(len(body))
                if hold.gone:
                    raise TimeoutError
            hold.kept = True
        whole = bytes(body)
        body.clear()
        yield whole
    except TimeoutError:
        if hold.gone:
            message = exceeded("max_bodies_bytes", held.most, held.most, "the size of all bodies that are being read")
            raise Overloaded(message) from None
        if hold.kept:
            raise
        message = f"the body did not arrive within {limits.body_timeout:g} s ({flag_of('body_timeout')})"
        raise RequestTimeout(message) from None
    finally:
        hold.free()


def end_now(timer: asyncio.Timeout) -> None:
    """Makes a timer expire at once, for the task that waits under it."""
    with contextlib.suppress(RuntimeError):  # the timer has expired already
        timer.reschedule(0.0)


def parse_object(body: bytes, limits: Limits) -> dict[str, object]:
    """Returns the JSON object in a body. Raises InvalidJson; NaN and Infinity are not JSON."""
    try:
        value = _loaded(body.decode())
    except RecursionError:
        raise _too_deep(limits) from None
    except RepeatedName as error:
        raise InvalidJson(f"the body is ambiguous: {error}", param=error.name) from None
    except ValueError as error:
        raise InvalidJson(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidJson("the body must be a JSON object")
    _check_nodes(value, limits)
    return value


def _loaded(text: str) -> object:
    hooks: dict[str, Any] = {
        "parse_constant": _refuse_constant,
        "parse_float": _number,
        "object_pairs_hook": unrepeated,
    }
    try:
        return json.loads(text, **hooks)
    except (json.JSONDecodeError, RepeatedName):
        raise
    except ValueError:
        result = json.loads(text, parse_int=_whole, **hooks)
        fields = result.items() if isinstance(result, dict) else ()
        name = next((name for name, value in fields if _is_in(_UNREAD, value)), None)
        message = f"the body has a whole number of more than {sys.get_int_max_str_digits()} digits"
        raise InvalidJson(message if name is None else f"{message}, in {name}", param=name) from None


def _check_kind(headers: Headers) -> None:
    """Raises UnsupportedMediaType for all but plain `application/json` in UTF-8.

    Any web page may send other types without asking this server first. Compressed bodies are refused, because how large
    they become would be known too late.
    """
    kind, _, parameters = headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "application/json":
        raise UnsupportedMediaType(f"content-type must be application/json, got {kind.strip().lower() or 'none'}")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _CHARSETS:
            raise UnsupportedMediaType(f"content-type must have JSON in UTF-8, got charset {value.strip()}")
    codings = [coding.strip().lower() for sent in headers.getlist("content-encoding") for coding in sent.split(",")]
    for coding in codings:
        if coding not in ("", "identity"):
            raise UnsupportedMediaType(f"content-encoding {coding} is not honoured: send the body as it is")


def _announced_bytes(request: Request) -> int:
    length = request.headers.get("content-length", "0")
    return int(length) if length.isascii() and length.isdecimal() and len(length) < 19 else 0


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.max_body_bytes:
        raise PayloadTooLarge(exceeded("max_body_bytes", limits.max_body_bytes, size, "the body's size, or more,"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _whole(text: str) -> object:
    """Replaces a whole number of thousands of digits, which Python refuses to read."""
    return _UNREAD if len(text) > sys.get_int_max_str_digits() else 0


def _is_in(wanted: object, value: object) -> bool:
    """Whether the value is this one, or contains it."""
    todo = [value]
    while todo:
        one = todo.pop()
        if one is wanted:
            return True
        todo.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
    return False


def _number(text: str) -> float:
    """JSON does not distinguish whole numbers: 1.0 is one too."""
    number = float(text)
    return int(number) if number.is_integer() else number


def _check_nodes(root: object, limits: Limits) -> None:
    """Bounds depth and nodes, and refuses text that is not Unicode.

    A node is a container, a key, or a value. Numbers in lists are not counted, so that a prompt of token ids may be as
    long as the context; the body's limit bounds them.
    """
    nodes = 0
    level: list[object] = [root]
    for _ in range(limits.max_json_depth + 1):
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
        if nodes > limits.max_json_nodes:
            message = exceeded("max_json_nodes", limits.max_json_nodes, nodes, "the number of JSON nodes, or more,")
            raise InvalidJson(message)
        if not below:
            return
        level = below
    raise _too_deep(limits)


def _too_deep(limits: Limits) -> InvalidJson:
    return InvalidJson(f"the body is nested deeper than {limits.max_json_depth} ({flag_of('max_json_depth')})")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidJson("the body has a string with half a surrogate pair") from None
