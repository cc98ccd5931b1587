"""A file that is uploaded as `multipart/form-data`: written as it arrives, and never in memory whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import IO, Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from baton.core.errors import RequestError, Unsupported, quoted
from baton.core.limits import Limits, exceeded, flag_of
from baton.server.errors import PayloadTooLarge, RequestTimeout, UnsupportedMediaType
from baton.server.workers import Workers

KIND = "multipart/form-data"
_FILE = "file"
_MOST_FIELD_BYTES = 1024
_FRAMING_BYTES = 64 * 2**10
_WRITTEN_AT_ONCE = 2**20


class Upload:
    """The parts of a form: one file, which is written, and short fields, which are kept.

    `fields` are by their names, the file's own name among them as "filename".
    """

    def __init__(self, boundary: bytes, target: IO[bytes], limits: Limits, known: frozenset[str]) -> None:
        self.fields: dict[str, str] = {}
        self.size = 0
        self._target = target
        self._limits = limits
        self._known = known
        self._header = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._part = bytearray()
        self._ended = False
        self._parser = MultipartParser(boundary, self._callbacks())

    def write(self, data: bytes) -> None:
        """Takes a piece of the body. Raises RequestError, and OSError where the file cannot be written."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise RequestError(f"the body is not {KIND}: {error}") from None

    def finish(self) -> None:
        """Raises RequestError if the form has no end, or no file."""
        if not self._ended:
            raise RequestError(f"the body is not {KIND}: it has no end")
        if "filename" not in self.fields:
            raise RequestError("file is required", param=_FILE)

    def _callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers = {}
        self._part.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = _text(options.get(b"name", b""), "name")
        if self._name != _FILE and self._name not in self._known:
            raise Unsupported(f"unknown field {quoted(self._name)}", param=self._name)
        if self._name in self.fields or (self._name == _FILE and "filename" in self.fields):
            raise RequestError(f"{self._name} is there twice", param=self._name)
        if (self._name == _FILE) != (b"filename" in options):
            what = "a file" if self._name == _FILE else "no file"
            raise RequestError(f"{self._name} must be {what}", param=self._name)
        if self._name == _FILE:
            self.fields["filename"] = _text(options[b"filename"], _FILE)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == _FILE:
            self.size += end - start
            most = self._limits.max_file_bytes
            if self.size > most:
                raise PayloadTooLarge(exceeded("max_file_bytes", most, self.size, "the file's size, or more,"))
            self._target.write(data[start:end])
            return
        self._part += data[start:end]
        if len(self._part) > _MOST_FIELD_BYTES:
            raise RequestError(f"{self._name} has more than {_MOST_FIELD_BYTES} bytes", param=self._name)

    def _part_end(self) -> None:
        if self._name != _FILE:
            self.fields[self._name] = _text(bytes(self._part), self._name)

    def _end(self) -> None:
        self._ended = True


async def receive(
    request: Request, target: IO[bytes], limits: Limits, workers: Workers, known: frozenset[str]
) -> Mapping[str, Any]:
    """Writes the body's file to the target; returns the form's fields, and the file's "bytes".

    `known`: the fields that the form may have beside the file. The body may take `body_timeout` for each MiB of it.
    Raises RequestError.
    """
    upload = Upload(_boundary(request), target, limits, known)
    most = limits.max_file_bytes + _FRAMING_BYTES
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:18]) > most:
        raise PayloadTooLarge(exceeded("max_file_bytes", limits.max_file_bytes, int(announced[:18]), "the body's size"))
    pending = bytearray()
    taken = 0

    async def write() -> None:
        data = bytes(pending)
        pending.clear()
        await workers.prepare(len(data), upload.write, data)

    timer = asyncio.timeout(limits.body_timeout)
    try:
        async with timer:
            async for chunk in request.stream():
                pending.extend(chunk)
                taken += len(chunk)
                if taken > most:
                    raise PayloadTooLarge(
                        exceeded("max_file_bytes", limits.max_file_bytes, taken, "the body's size, or more,")
                    )
                if len(pending) >= _WRITTEN_AT_ONCE:
                    await write()
                    # A large file may take long, and its next part no longer than another's whole body.
                    timer.reschedule(asyncio.get_running_loop().time() + limits.body_timeout)
            await write()
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_timeout:g} s ({flag_of('body_timeout')})"
        raise RequestTimeout(message) from None
    upload.finish()
    return {**upload.fields, "bytes": upload.size}


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != KIND.encode():
        raise UnsupportedMediaType(f"content-type must be {KIND}, got {kind.decode('latin-1') or 'none'}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("", "identity"):
        raise UnsupportedMediaType(f"content-encoding {coding} is not honoured: send the body as it is")
    boundary = options.get(b"boundary")
    if not boundary:
        raise RequestError(f"the content-type {KIND} names no boundary")
    return boundary


def _text(data: bytes, param: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise RequestError(f"{param} is no text in UTF-8", param=param) from None
