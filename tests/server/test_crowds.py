"""Crowds of clients that do no good, against a server process: others are served, and all that they took comes back."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import baton
from server.wire import Wire, get, post
from warm import WarmProcess

TESTS = Path(__file__).parents[1]
STREAM = b'{"prompt": "a", "stream": true}'
Start = Callable[[list[str]], "Served"]
RSS_MARGIN = 64 * 2**20
"""What an allocator keeps of thousands of connections."""


def scripted(*, held: bool, **limits: float) -> list[str]:
    """A server whose engine answers each query, or holds it after its first kilobyte."""
    return [str(TESTS / "server" / "served.py"), "0.001" if held else "-1", "0", json.dumps(limits)]


def built_in(*flags: str) -> list[str]:
    return ["-m", "baton", "serve", "--port", "0", *flags]


class Served:
    """A server's process. Its address is in the first line that has one, on stdout or stderr."""

    def __init__(self, command: list[str]) -> None:
        self.process = WarmProcess(command, stdout=True, together=True)
        assert self.process.stdout is not None
        line = next(filter(None, (re.search(r"http://\S+", line) for line in self.process.stdout)))
        self.url = line[0]
        self._seen = psutil.Process(self.process.pid)
        self.http = httpx.Client(base_url=self.url, timeout=20)
        for _ in range(5):
            self.load()
        self.base = self.files(), self._seen.memory_info().rss
        self.quiet = self.load()["server_load"], self.load()["kv_bytes_used"]

    def files(self) -> int:
        return self._seen.num_fds()

    def probe(self) -> str:
        body = {"prompt": "What is 17 + 25?", "temperature": 0, "max_tokens": 24}
        return str(self.http.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"])

    def load(self) -> dict[str, Any]:
        return dict(self.http.get("/load").raise_for_status().json())

    def back_at_base(self) -> None:
        """Files, queries and memory are what they were before; the ends of connections take a moment."""
        files, memory = self.base
        until(lambda: self.files() <= files and self.settled())
        assert self._seen.memory_info().rss - memory < RSS_MARGIN

    def settled(self) -> bool:
        """Whether there are as many queries, and as many bytes of them, as there were at first."""
        load = self.load()
        return (load["server_load"], load["kv_bytes_used"]) == self.quiet

    def end(self) -> str:
        """What it wrote since it was ready."""
        self.http.close()
        self.process.terminate()
        out, _ = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        return out.strip()


@pytest.fixture
def serve() -> Iterator[Start]:
    begun: list[Served] = []

    def start(command: list[str]) -> Served:
        begun.append(Served(command))
        return begun[-1]

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"needs 4,096 open files, this machine allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield start
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for served in begun:
        served.process.kill()
        served.process.wait()


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_slow_clients_cost_others_nothing_and_are_answered_408(serve: Start) -> None:
    served = serve(scripted(held=False, header_timeout=4.0, body_timeout=4.0))
    with ExitStack() as stack:
        heads = [stack.enter_context(Wire(served.url)).send(b"GET /health HTTP/1.1\r\n") for _ in range(200)]
        bodies = [stack.enter_context(Wire(served.url)).send(post(STREAM, length=999)) for _ in range(200)]
        for _ in range(3):
            for wire in heads + bodies:
                wire.send(b"x-a: b\r\n")
            for _ in range(20):
                response = served.http.post("/v1/completions", json={"prompt": "a"}, timeout=5)
                assert response.status_code == 200
        for wire in heads + bodies:
            assert wire.answer().error["code"] == "request_timeout"
    served.back_at_base()
    assert served.end() == "clean"


def test_idle_connections_cost_others_nothing(serve: Start) -> None:
    served = serve(scripted(held=False))
    with ExitStack() as stack:
        idle = [stack.enter_context(Wire(served.url)) for _ in range(2000)]
        for wire in idle[::2]:
            assert wire.send(get()).answer().status == 200
        assert served.files() >= 2000
        for _ in range(20):
            assert served.http.post("/v1/completions", json={"prompt": "a"}, timeout=5).status_code == 200
        for wire in idle[::100]:
            assert wire.send(post(STREAM)).answer().body.endswith(b"[DONE]\n\n")
    served.back_at_base()
    assert served.end() == "clean"


def test_clients_that_vanish_mid_stream(serve: Start) -> None:
    served = serve(scripted(held=True))
    vanish(served, STREAM, waves=10, size=100)
    served.back_at_base()
    assert served.end() == "clean"


def test_clients_of_the_built_in_model_that_vanish_mid_stream(serve: Start) -> None:
    served = serve(built_in("--max-batch-size", "50", "--max-model-len", "512"))
    before = served.probe()
    assert served.http.get("/version", headers={"host": "rebound.example"}).json()["error"]["code"] == "invalid_host"
    endless = {"prompt": "a", "max_tokens": 500, "ignore_eos": True, "stream": True}
    vanish(served, json.dumps(endless).encode(), waves=20, size=50)
    served.back_at_base()
    assert served.probe() == before
    assert "Traceback" not in served.end()


def vanish(served: Served, body: bytes, *, waves: int, size: int) -> None:
    """Half of the clients close their connection, half are gone without a word, each after its first piece of text."""
    for wave in range(waves):
        wires = [Wire(served.url).send(post(body)) for _ in range(size)]
        for wire in wires:
            assert b"200 OK" in wire.socket.recv(2**10)
        for at, wire in enumerate(wires):
            if (at + wave) % 2:
                wire.vanish()
            else:
                wire.__exit__()
        until(served.settled)


def test_the_limit_of_files_is_raised() -> None:
    code = (
        "import resource as r; _, hard = r.getrlimit(r.RLIMIT_NOFILE); r.setrlimit(r.RLIMIT_NOFILE, (64, hard));"
        "from baton.server.run import MOST_FILES, raise_file_limit; raise_file_limit();"
        "soft, _ = r.getrlimit(r.RLIMIT_NOFILE); print(soft == (MOST_FILES if hard < 0 else min(hard, MOST_FILES)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(baton.__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout == "True\n"
