"""A hub on 127.0.0.1 with one model, as the hub's client sees it; what it was asked for is counted."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

MODEL = "acme/tiny"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves a folder's files. `refused`: a status that everything is answered with instead, and why."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: list[str] = []
        self.refused: tuple[int, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server, unquote(self.path.split("?")[0])
        hub.asked.append(path)
        if hub.refused is not None:
            status, why = hub.refused
            self._send(status, b"{}", {"X-Error-Code": why}, body=body)
        elif path.startswith(f"/api/models/{MODEL}/tree/"):
            listed = [
                {"type": "file", "path": _name(hub, one), "size": one.stat().st_size, "oid": _tag(one)}
                for one in hub.files()
            ]
            self._send(200, json.dumps(listed).encode(), {}, body=body)
        elif path in (f"/api/models/{MODEL}", f"/api/models/{MODEL}/revision/main"):
            siblings = [{"rfilename": _name(hub, one)} for one in hub.files()]
            about = {"id": MODEL, "modelId": MODEL, "sha": REVISION, "siblings": siblings}
            self._send(200, json.dumps(about).encode(), {}, body=body)
        elif path.startswith(f"/{MODEL}/resolve/") and (hub.folder / path.split("/", 5)[5]).is_file():
            file = hub.folder / path.split("/", 5)[5]
            self._send(200, file.read_bytes(), {"X-Repo-Commit": REVISION, "ETag": f'"{_tag(file)}"'}, body=body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _name(hub: Hub, file: Path) -> str:
    return file.relative_to(hub.folder).as_posix()


def _tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
