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
MESSAGES = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


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
    """What a client is told of a bug: nothing about where it is."""
    return BatonError("the server failed on this request; its log says why")


def error_body(error: BatonError, path: str = "") -> bytes:
    """The error body in the form of this path's API, at most 2 KB."""
    message = cut(error.message, MAX_MESSAGE_CHARACTERS)
    if of_messages(path):
        detail: dict[str, object] = {"type": _ANTHROPIC_TYPES.get(error.status, _other_type(error)), "message": message}
        return _dumped({"type": "error", "error": detail})
    detail = {
        "message": message,
        "type": error.type,
        "param": None if error.param is None else cut(error.param, MAX_PARAM_CHARACTERS),
        "code": error.code,
    }
    return _dumped({"error": detail})


def of_messages(path: str) -> bool:
    """Whether this path's API is Anthropic's."""
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")


def _other_type(error: BatonError) -> str:
    return "api_error" if error.status >= 500 else "invalid_request_error"


def _dumped(body: object) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode(errors="replace")


def error_response(error: BatonError, path: str = "") -> Response:
    headers = {}
    if isinstance(error, (QueueFull, Unavailable)):
        headers["retry-after"] = str(max(1, error.retry_after_seconds))
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allow
    return Response(error_body(error, path), error.status, headers, "application/json")


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Answers what the framework itself refuses besides unknown paths: a wrong method."""
    route = request.url.path
    if not isinstance(error, HTTPException):
        return error_response(internal_error(), route)
    path = f"{request.method} {route}"
    if error.status_code == 405:
        allow = set((error.headers or {}).get("Allow", "GET").split(", "))
        # Whatever answers GET also answers HEAD, see `middleware.Middleware`.
        allow |= {"HEAD"} if "GET" in allow else set()
        return error_response(MethodNotAllowed(f"{path}: the method is not allowed", allow), route)
    known = RequestError(HTTPStatus(error.status_code).phrase)
    known.status = error.status_code
    return error_response(known, route)


def from_validation(error: ValidationError) -> RequestError:
    """Returns the first error of a request's fields, in our words and with the field's name."""
    first = error.errors(include_url=False, include_context=False)[0]
    location = first["loc"]
    param = _path(_as_sent(location))
    if first["type"] == "extra_forbidden":
        return Unsupported(f"unknown field {param}", param=param)
    if first["type"] == "missing":
        return RequestError(f"{param} is required", param=param)
    value = quoted(first["input"])
    return InvalidValue(f"{param or 'the body'}: {first['msg']}, got {value}", param=param or None)


_WITH_FIELDS = {
    "input",
    "messages",
    "output_config",
    "reasoning",
    "stream_options",
    "system",
    "text",
    "thinking",
    "tools",
}


def _as_sent(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Leaves out the names of a union's branches, which a client never wrote."""
    if not location or location[0] not in _WITH_FIELDS:
        return location[:1]
    path: list[int | str] = []
    for part in location:
        if isinstance(part, str) and (part == "str" or "[" in part):
            break
        if not str(part).startswith("("):
            path.append(part)
    return tuple(path)


def failure(update: Update) -> BatonError | None:
    """Returns the error that an update reports, if there is one."""
    if update.infeasible:
        return Infeasible(update.error or "what was asked for is impossible")
    if update.finish_reason == "error":
        failed = QueryFailed(update.error or "the query failed")
        failed.code = update.code or failed.code
        return failed
    if update.finish_reason == "expired":
        return DeadlinePassed(update.error or "the query's deadline has passed")
    if update.finish_reason == "moved":
        return ShuttingDown("the query goes on elsewhere")
    if update.finish_reason == "cancelled":
        return ShuttingDown(update.error or "the server is shutting down and ended this query")
    return None


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def cut(text: str, most: int) -> str:
    """Cuts a text to at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
