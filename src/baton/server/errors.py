"""Errors as HTTP answers: one body for all of them, whatever raised them."""

from __future__ import annotations

import json
from collections.abc import Collection
from http import HTTPStatus

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import (
    BatonError,
    DeadlinePassed,
    Infeasible,
    InvalidValue,
    QueryFailed,
    QueueFull,
    RequestError,
    ShuttingDown,
    Unavailable,
    Unsupported,
    quoted,
)
from baton.core.events import Update

MAX_MESSAGE_CHARACTERS = 240
"""At six bytes for an escaped character, this and a field's name stay below the 2 KB of an error body."""
MAX_PARAM_CHARACTERS = 80


class InvalidJson(RequestError):
    """The body is not JSON."""

    code = "invalid_json"


class InvalidHost(RequestError):
    """The Host header names a host that is not allowed."""

    code = "invalid_host"


class InvalidKey(RequestError):
    """There is no valid key in the request."""

    status = 401
    code = "invalid_api_key"


class NotFound(RequestError):
    """There is no such route."""

    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    """`allow`: the methods that are."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, allow: Collection[str]) -> None:
        super().__init__(message)
        self.allow = ", ".join(sorted(allow))


class RequestTimeout(RequestError):
    """The request did not arrive in time."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class PayloadTooLarge(RequestError):
    """The body is larger than it may be."""

    status = 413
    code = "payload_too_large"


class UnsupportedMediaType(RequestError):
    """The body is of a type that the route does not read."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(RequestError):
    """The headers are larger than they may be."""

    status = 431
    code = "headers_too_large"


def internal_error() -> BatonError:
    """What a client is told of a bug of ours: nothing about where it is."""
    return BatonError("the server failed on this request; its log says why")


def error_body(error: BatonError) -> bytes:
    """The OpenAI error body, at most 2 KB."""
    told = {
        "message": _cut(error.message, MAX_MESSAGE_CHARACTERS),
        "type": error.type,
        "param": None if error.param is None else _cut(error.param, MAX_PARAM_CHARACTERS),
        "code": error.code,
    }
    return json.dumps({"error": told}, ensure_ascii=False).encode(errors="replace")


def error_response(error: BatonError) -> Response:
    headers = {}
    if isinstance(error, (QueueFull, Unavailable)):
        headers["retry-after"] = str(max(1, error.retry_after_seconds))
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allow
    return Response(error_body(error), error.status, headers, "application/json")


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: an unknown path, a wrong method."""
    if not isinstance(error, HTTPException):
        return error_response(internal_error())
    path = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return error_response(NotFound(f"there is no {path}"))
    if error.status_code == 405:
        allow = set((error.headers or {}).get("Allow", "GET").split(", "))
        # Whatever answers GET answers HEAD, see `door.Middleware`.
        allow |= {"HEAD"} if "GET" in allow else set()
        return error_response(MethodNotAllowed(f"{path}: the method is not allowed", allow))
    known = RequestError(HTTPStatus(error.status_code).phrase)
    known.status = error.status_code
    return error_response(known)


def from_validation(error: ValidationError) -> RequestError:
    """The first thing wrong with a request's fields, in our words and with the field's name."""
    first = error.errors(include_url=False, include_context=False)[0]
    location = first["loc"]
    # Deeper parts of the location name branches of a union, which a client never wrote.
    deep = {"messages": 3, "stream_options": 3, "tools": 4}.get(str(location[0]) if location else "", 1)
    param = _path(location[:deep])
    if first["type"] == "extra_forbidden":
        return Unsupported(f"unknown field {param}", param=param)
    if first["type"] == "missing":
        return RequestError(f"{param} is required", param=param)
    value = quoted(first["input"])
    return InvalidValue(f"{param or 'the body'}: {first['msg']}, got {value}", param=param or None)


def failure(update: Update) -> BatonError | None:
    """The error that an update tells of, if it does."""
    if update.infeasible:
        return Infeasible(update.error or "what was asked for is impossible")
    if update.finish_reason == "error":
        return QueryFailed(update.error or "the query failed")
    if update.finish_reason == "expired":
        return DeadlinePassed(update.error or "the query's deadline has passed")
    if update.finish_reason == "cancelled":
        return ShuttingDown(update.error or "the server is shutting down and ended this query")
    return None


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
