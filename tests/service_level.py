"""The built-in model's server in this process, with faults at hand, and the standing promises about it."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import uvicorn

from baton import builtin
from baton.compose import start
from baton.core.clock import monotonic
from baton.core.config import make_config
from baton.core.settings import load_settings, resolve
from baton.engine.client import Client, Stats
from baton.loader.facts import facts_of
from baton.loader.load import load
from baton.loader.loaded import Loaded
from baton.observe.metrics import Metrics
from baton.policy.baton import Baton
from baton.server.app import create_app
from baton.server.run import bind, server_config, url_of
from baton.testing.faults import Faults

PATIENCE_SECONDS = 20.0
NAME = "built-in"
PROBE: dict[str, Any] = {"prompt": "Tell me about a fox.", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
ROWS = 4


@functools.cache
def loaded() -> Loaded:
    """One model for all tests; engines use it one after the other."""
    return load(load_settings(make_config({}), str(builtin.path()), NAME))


def a_query(number: int = 0, tokens: int = 120, **more: Any) -> dict[str, Any]:
    """The body of a greedy request that takes a while, another one for each number."""
    prompt = f"Tell me a story about {number + 2} friends and a {('boat', 'kite', 'garden', 'clock')[number % 4]}."
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}


@dataclass(slots=True)
class Answer:
    """The result of a request: its status, its text so far, and the error of its body or its stream."""

    status: int = 0
    text: str = ""
    error: Mapping[str, Any] | None = None
    done: bool = False
    comments: int = 0
    headers: Mapping[str, str] | None = None

    @property
    def right(self) -> bool:
        return self.status == 200 and self.done and self.error is None

    def take(self, line: str) -> None:
        if line.startswith(":"):
            self.comments += 1
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            self.error = event.get("error")
            self.text += "".join(choice["text"] for choice in event.get("choices", ()))


@contextmanager
def serving() -> Iterator[Callable[..., Served]]:
    """Makes servers; all of them are closed in the end."""
    begun: list[Served] = []

    def run(*args: Any, **kw: Any) -> Served:
        begun.append(Served(*args, **kw))
        return begun[-1]

    yield run
    for served in begun:
        served.close()


class Streams:
    """Requests to one server, side by side."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.AsyncClient(base_url=url, timeout=PATIENCE_SECONDS, limits=limits)

    async def __aenter__(self) -> Streams:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def ask(self, body: Mapping[str, Any], begun: asyncio.Event | None = None) -> Answer:
        """A streamed request to its end; `begun` is set when its first text is there."""
        answer = Answer()
        async with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            answer.status, answer.headers = response.status_code, response.headers
            if response.status_code != 200:
                answer.error = json.loads(await response.aread())["error"]
                return answer
            async for line in response.aiter_lines():
                answer.take(line)
                if begun is not None and answer.text:
                    begun.set()
        return answer

    async def begin(self, *bodies: Mapping[str, Any]) -> list[asyncio.Task[Answer]]:
        """Streams of these, each with some text already."""
        events = [asyncio.Event() for _ in bodies]
        tasks = [asyncio.create_task(self.ask(body, event)) for body, event in zip(bodies, events, strict=True)]
        for event in events:
            await asyncio.wait_for(event.wait(), PATIENCE_SECONDS)
        return tasks


class Mute:
    """A client that sends one request and reads only when told to."""

    def __init__(self, url: str, body: dict[str, Any], *, buffer: int = 4096) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        sent = json.dumps(body).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        )
        self.socket.sendall(f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent)

    def read_to_its_end(self) -> bytes:
        content = b""
        try:
            while part := self.socket.recv(65536):
                content += part
        except ConnectionResetError:
            pass
        return content

    def close(self) -> None:
        self.socket.close()


class Served:
    """A server on a port of its own. `limits` are those of `Limits`, the rest is of `Settings`.

    `send_buffer`: bytes that the kernel buffers for a client that does not read.
    """

    def __init__(self, limits: Mapping[str, Any] | None = None, send_buffer: int = 0, **settings: Any) -> None:
        held = resolve(make_config({"max_batch_size": str(ROWS), **(limits or {})}), facts_of(loaded()))
        self.settings = replace(held, **settings)
        self.faults = Faults()
        self.metrics = Metrics(NAME, monotonic)
        self.client: Client = start(loaded(), self.settings, Baton(), NAME, [self.metrics], faults=self.faults)
        self._app = app = create_app(
            self.client, render_metrics=lambda: self.metrics.render(self.client.stats()), version="test"
        )
        bound = bind("127.0.0.1", 0)
        if send_buffer:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # its connections inherit it
        self.url = url_of(bound)
        self._server = uvicorn.Server(server_config(app, self.settings.limits))
        self._thread = threading.Thread(target=self._server.run, args=([bound],), daemon=True)
        self._thread.start()
        self._ledger = _Ledger(self.client)
        until(lambda: self._server.started)
        self.probe = self.alone(PROBE)
        self.base = self.gauges()

    def close(self) -> None:
        self._ledger.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE_SECONDS)
        self._app.state.close()
        self.client.close()

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections)

    @property
    def tasks(self) -> int:
        """Requests that are being answered."""
        return len(self._server.server_state.tasks)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=PATIENCE_SECONDS)

    def alone(self, body: Mapping[str, Any]) -> str:
        """The text of a plain answer."""
        (text,) = self._plain(body)
        return text

    def several(self, count: int) -> list[str]:
        """The texts of so many of `a_query`, asked for in one request."""
        return self._plain({**a_query(), "prompt": [a_query(number)["prompt"] for number in range(count)]})

    def _plain(self, body: Mapping[str, Any]) -> list[str]:
        response = httpx.post(f"{self.url}/v1/completions", json=dict(body), timeout=PATIENCE_SECONDS)
        assert response.status_code == 200, response.text
        return [choice["text"] for choice in response.json()["choices"]]

    def gauges(self) -> dict[str, float]:
        """What the metrics page says of queries and bytes."""
        lines = [line.rsplit(" ", 1) for line in self.get("/metrics").text.splitlines() if line[:1] != "#"]
        wanted: tuple[str, ...] = ("baton_queries_running", "baton_queries_waiting", "baton_queries_prefilling")
        wanted += (
            "baton_queries_preempted",
            "baton_batch_rows_occupied",
            "baton_kv_bytes_used",
            "baton_swap_bytes_used",
        )
        return {name.partition("{")[0]: float(value) for name, value in lines if name.startswith(wanted)}

    def check_promises(self, *, dead: bool = False) -> None:
        """What holds after anything that a client or a fault did; a `dead` engine computes nothing and says so."""
        until(lambda: live(self.client.stats()) == 0, 5.0)
        until(lambda: self.gauges() == self.base, 5.0)
        assert self.get("/health").status_code == 200
        if dead:
            assert self.get("/ready").json()["error"]["code"] == "engine_unhealthy"
        else:
            until(lambda: self.get("/ready").status_code == 200, 5.0)
            assert self.alone(PROBE) == self.probe
        until(lambda: self.tasks == 0, 5.0)
        assert self._ledger.off_by == {0}, "submitted is what ended and what is live, at every instant"


def live(stats: Stats) -> int:
    return stats.running + stats.waiting + stats.prefilling + stats.ready


class _Ledger:
    """Looks at the statistics again and again, from another thread."""

    def __init__(self, client: Client) -> None:
        self.off_by: set[int] = {0}
        self._client = client
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.002):
            stats = self._client.stats()
            self.off_by.add(stats.submitted - sum(stats.outcomes.values()) - live(stats))


def until(condition: Any, seconds: float = PATIENCE_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.005)
