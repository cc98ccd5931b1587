"""Raw sockets to a server: what well-behaved clients never send, and what came back."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

PATIENCE = 20


def get(path: str = "/health", *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode()


def post(body: bytes, *headers: str, length: int | None = None, path: str = "/v1/completions") -> bytes:
    """A whole request, or less than it announces."""
    lines = "".join(f"{header}\r\n" for header in headers)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """Checked to be the one body that errors have."""
        assert self.headers["content-type"] == "application/json" and self.headers["x-request-id"]
        error = json.loads(self.body)["error"]
        assert list(error) == ["message", "type", "param", "code"] and len(self.body) <= 2048
        return error


class Wire:
    """One connection."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), PATIENCE)
        self._file = _Kept(self.socket.makefile("rb"))

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.file.close()
        self.socket.close()

    def send(self, data: bytes) -> Wire:
        self.socket.sendall(data)
        return self

    def answer(self, method: str = "GET") -> Answer:
        """The next whole answer."""
        response = HTTPResponse(self._file, method=method)  # type: ignore[arg-type]
        response.begin()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def closed(self) -> bool:
        """Whether the server has nothing more to say; waits for it."""
        return self._file.read(1) == b""

    def vanish(self) -> None:
        """Gone without a farewell: the server's next packet meets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.__exit__()


class _Kept:
    """A connection's incoming bytes, which outlive one answer and are read from one buffer."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def makefile(self, mode: str) -> _Kept:
        return self

    def close(self) -> None:
        pass


def exchange(url: str, data: bytes) -> Answer:
    """The answer to this, after which the server must close the connection."""
    with Wire(url) as wire:
        answer = wire.send(data).answer("HEAD" if data.startswith(b"HEAD") else "GET")
        assert wire.closed()
        return answer
