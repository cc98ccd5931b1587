"""Streams of server-sent events over HTTP/1.1, with as little work for each as possible.

A general client takes a third of a millisecond for each token. If client and server share a machine, it takes that from
the server; and if many streams come at once, it sees tokens late and so measures itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

_Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]
BROKEN = (OSError, EOFError, ValueError)
"""Errors of a connection, or of what comes over it."""


class Answer:
    """One response; its body can be read once. `whole`: whether it was, so that its connection can be used again."""

    def __init__(self, status: int, headers: Mapping[str, str], reader: asyncio.StreamReader) -> None:
        self.status = status
        self._headers = headers
        self._reader = reader
        self.whole = False

    @property
    def reusable(self) -> bool:
        return self.whole and self._headers.get("connection", "").lower() != "close"

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self._pieces()])

    async def lines(self) -> AsyncIterator[bytes]:
        """Lines as they come, without their ends."""
        rest = b""
        async for piece in self._pieces():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield line.rstrip(b"\r")
        if rest:
            yield rest

    async def _pieces(self) -> AsyncIterator[bytes]:
        if self._headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._reader.readline()).partition(b";")[0], 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            while (await self._reader.readline()).strip():
                pass  # trailers
            self.whole = True
        elif "content-length" in self._headers:
            yield await self._reader.readexactly(int(self._headers["content-length"]))
            self.whole = True
        else:
            while piece := await self._reader.read(65536):
                yield piece


class Wire:
    """Connections to one server, reused when their answers have ended. Raises ValueError for an invalid address."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("its scheme or host is not there")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._secure = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path.rstrip("/")
        fields = {"host": parts.netloc.rpartition("@")[2], "content-type": "application/json", **headers}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._idle: list[_Pipe] = []

    @asynccontextmanager
    async def post(self, path: str, body: bytes) -> AsyncIterator[Answer]:
        """Raises the errors in BROKEN."""
        head = f"POST {self._path}{path} HTTP/1.1\r\n{self._fields}content-length: {len(body)}\r\n\r\n"
        request = head.encode() + body
        pipe = answer = None
        if self._idle:
            pipe = self._idle.pop()
            try:
                answer = await _asked(pipe, request)
            except BROKEN:
                pipe[1].close()  # the server had closed it meanwhile
        if pipe is None or answer is None:
            pipe = await asyncio.open_connection(self._host, self._port, ssl=self._secure)
            answer = await _asked(pipe, request)
        try:
            yield answer
        finally:
            if answer.reusable:
                self._idle.append(pipe)
            else:
                pipe[1].close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


async def _asked(pipe: _Pipe, request: bytes) -> Answer:
    reader, writer = pipe
    writer.write(request)
    await writer.drain()
    status = 100
    while status < 200:
        first = (await reader.readline()).split(None, 2)
        if len(first) < 2 or not first[0].startswith(b"HTTP/1."):
            raise ConnectionError("the connection was closed" if not first else f"no HTTP: {first[0]!r}")
        status = int(first[1])
        headers = {}
        while line := (await reader.readline()).decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
    return Answer(status, headers, reader)
