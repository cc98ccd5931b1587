"""The lines of a batch, in OpenAI's format: read, checked one by one, and written as they were answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, NoReturn

from baton.core.errors import quoted
from baton.core.strict_json import RepeatedName, unrepeated

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""The urls that a line may have."""
MAX_CUSTOM_ID = 512
_BESIDE_BODY_BYTES = 64 * 2**10
_FIELDS = ("custom_id", "method", "url", "body")
_BOM = b"\xef\xbb\xbf"
_SHOWN_CHARACTERS = 200


class RawLine(NamedTuple):
    """A line that is not blank, by its place in the file; `text` is None for one that is too long to be read."""

    number: int
    offset: int
    size: int
    text: bytes | None


@dataclass(frozen=True, slots=True)
class Line:
    """One request. `number` counts the file's lines from 1."""

    number: int
    custom_id: str
    url: str
    body: Mapping[str, Any]

    def seeded(self, seed: int) -> bytes:
        """Returns the body to send. Without a seed it gets one made of the batch's seed and `custom_id` alone."""
        body = dict(self.body)
        if body.get("seed") is None:
            digest = hashlib.blake2b(f"{seed}:{self.custom_id}".encode(errors="surrogatepass"), digest_size=4)
            body["seed"] = int.from_bytes(digest.digest()) >> 1
        return json.dumps(body).encode()


class BadLine(ValueError):
    """A line that cannot be asked. `custom_id` is there if it could be read."""

    def __init__(self, code: str, message: str, *, param: str | None = None, custom_id: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.custom_id = custom_id


class Answer(NamedTuple):
    """The answer to a line, as of an HTTP response."""

    status: int
    request_id: str
    body: bytes


def raw_lines(file: IO[bytes], most_body_bytes: int) -> Iterator[RawLine]:
    """Yields all lines that are not blank. Holds no more of a line in memory than a body of that size may need."""
    most = most_body_bytes + _BESIDE_BODY_BYTES
    number = offset = 0
    while text := file.readline(most):
        number += 1
        size, whole = len(text), text.endswith(b"\n") or len(text) < most
        while not whole:
            rest = file.readline(most)
            size += len(rest)
            whole = rest.endswith(b"\n") or len(rest) < most
            text = b""
        if size > len(text):
            yield RawLine(number, offset, size, None)
        elif text.strip():
            yield RawLine(number, offset, size, text)
        offset += size


def read_line(raw: RawLine, *, endpoint: str | None = None) -> Line:
    """Returns the request in a line. `endpoint`: the only url that lines may have; None for any. Raises BadLine."""
    if raw.text is None:
        raise BadLine("line_too_long", f"the line has {raw.size} bytes, more than a body may have")
    request = _object(raw.text.removeprefix(_BOM) if raw.number == 1 else raw.text)
    custom_id, body = request.get("custom_id"), request.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        message = f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters"
        raise BadLine("missing_custom_id", message, param="custom_id")
    code, param, message = "", "", ""
    if unknown := sorted(request.keys() - set(_FIELDS)):
        code, param, message = "unknown_field", unknown[0], f"unknown field {unknown[0]}"
    elif request.get("method") != "POST":
        code, param, message = "invalid_method", "method", f"method must be POST, got {quoted(request.get('method'))}"
    elif request.get("url") not in (URLS if endpoint is None else (endpoint,)):
        wanted = " or ".join(URLS) if endpoint is None else f"{endpoint}, the batch's endpoint"
        code, param, message = "invalid_url", "url", f"url must be {wanted}, got {quoted(request.get('url'))}"
    elif not isinstance(body, dict):
        code, param, message = "invalid_body", "body", "body must be a JSON object"
    if code:
        raise BadLine(code, message, param=param, custom_id=custom_id)
    return Line(raw.number, custom_id, request["url"], request["body"])


def checked_lines(
    file: IO[bytes], most_body_bytes: int, *, endpoint: str | None = None
) -> Iterator[tuple[RawLine, Line | BadLine]]:
    """Yields each line with its request or its error. The second use of a custom_id is an error."""
    seen: set[str] = set()
    for raw in raw_lines(file, most_body_bytes):
        try:
            line = read_line(raw, endpoint=endpoint)
            if line.custom_id in seen:
                message = f"custom_id {quoted(line.custom_id)} is that of an earlier line"
                raise BadLine("duplicate_custom_id", message, param="custom_id", custom_id=line.custom_id)
        except BadLine as error:
            yield raw, error
        else:
            seen.add(line.custom_id)
            yield raw, line


def answered(line_id: str, custom_id: str, answer: Answer) -> str:
    """Returns the output line of an answer, without a line end."""
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": _body_of(answer.body)}
    return _written({"id": line_id, "custom_id": custom_id, "response": response, "error": None})


def unanswered(line_id: str, custom_id: str | None, code: str, message: str) -> str:
    """Returns the output line of a request that was not asked, or whose answer could not be stored."""
    error = {"code": code, "message": message}
    return _written({"id": line_id, "custom_id": custom_id, "response": None, "error": error})


def succeeded(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=unrepeated, parse_constant=_refuse_constant)
    except RepeatedName as error:
        raise BadLine("invalid_json_line", f"the line is ambiguous: {error}", param=error.name) from None
    except RecursionError:
        raise BadLine("invalid_json_line", "the line is nested too deeply") from None
    except ValueError as error:
        raise BadLine("invalid_json_line", f"the line is not JSON: {error}"[:_SHOWN_CHARACTERS]) from None
    if not isinstance(value, dict):
        raise BadLine("invalid_json_line", "the line must be a JSON object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _body_of(body: bytes) -> object:
    """The body as JSON. A proxy between the server and us may have sent something else."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return {"error": {"message": body[:_SHOWN_CHARACTERS].decode(errors="replace"), "type": "server_error"}}


def _written(fields: Mapping[str, object]) -> str:
    # UTF-8 cannot encode half a surrogate pair; JSON can escape it.
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return text if text.isascii() or _is_unicode(text) else json.dumps(fields, separators=(",", ":"))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
