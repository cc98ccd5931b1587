"""`pytest --through-front ray`: between a test's front and its engine there is a Ray Serve, started once for all tests.

An engine of Ray Serve is a process of its own, and a test looks into its engine. So the process on Ray only passes on:
each front's news and orders go through it, and by a connection come to the engine in the test's process.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from baton.cluster.environment import prepare
from baton.cluster.port import Depot, Engines
from baton.cluster.served import ServedEngine
from baton.cluster.wire import About, Message, introduction
from baton.core.replicas import Range
from baton.core.settings import Settings

PATIENCE_SECONDS = 60
ABOUT = About("bridge", Settings("baton", 1, 64, 4096, None, 0.2, 2, 0), (), (0,), "bridge", {})
Served = Callable[[Callable[[Message], None]], ServedEngine]


class Bridge:
    """The `Replica` on Ray: its engines are those at the other end of connections."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._port = int(values["port"])

    def introduction(self) -> Message:
        return introduction(ABOUT)

    def served(self, send: Callable[[Message], None], depot: Depot) -> Any:
        return Passes(self._port, send)

    def metrics(self) -> Message:
        return {}

    def live(self, serial: int, time: float) -> bytes:
        return b"{}"

    def rows_wanted(self) -> float:
        return 1.0

    def trouble(self) -> str | None:
        return None

    def close(self) -> None: ...


class Passes:
    """Passes on the orders of one front, and the news for it."""

    busy = False

    def __init__(self, port: int, send: Callable[[Message], None]) -> None:
        self._lines = Lines(socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS), send)

    def start(self, asks: Sequence[Message]) -> None:
        self._lines.put(["start", list(asks)])

    def cancel(self, query_ids: Sequence[str]) -> None:
        self._lines.put(["cancel", list(query_ids)])

    def give(self, query_ids: Sequence[str] | None = None, without_keys: Sequence[str] = ()) -> None:
        self._lines.put(["give", query_ids, list(without_keys)])

    def close(self) -> None:
        self._lines.close()


class Lines:
    """A connection with a line of JSON for each message; `hear` gets what comes."""

    def __init__(self, connection: socket.socket, hear: Callable[[Any], None]) -> None:
        connection.settimeout(None)
        self._socket = connection
        self._lock = threading.Lock()
        self._file = connection.makefile("rb")
        self._thread = threading.Thread(target=self._hear, args=(hear,), daemon=True)
        self._thread.start()

    def put(self, message: Any) -> None:
        with self._lock, contextlib.suppress(OSError):  # the other end is gone
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _hear(self, hear: Callable[[Any], None]) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self._file:
                hear(json.loads(line))


class OnRay:
    """The Ray that all fronts of this process share."""

    def __init__(self) -> None:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        prepare(os.environ, alone=True)
        from baton.cluster.ray_cluster import Placing, cluster

        self._listens = socket.create_server(("127.0.0.1", 0))
        self._listens.settimeout(PATIENCE_SECONDS)
        self._lock = threading.Lock()
        self._open = contextlib.ExitStack()
        placing = Placing(Range(1, 1), cpus=1, gpus=0, drain_seconds=1)
        ray = self._open.enter_context(cluster(None, placing, 2))
        self._handle = ray.deploy(Bridge, {"port": self._listens.getsockname()[1]}, placing)

    def engines(self, served: Served) -> Engines:
        """One engine for one front."""
        with self._lock:
            return bridged(self._handle, self._listens, served)

    def close(self) -> None:
        self._open.close()
        self._listens.close()


def bridged(handle: Any, listens: socket.socket, served: Served) -> Engines:
    """The `Engines` of one front, whose engine is at this end of a connection that the process on Ray opens."""
    from baton.cluster.ray_engines import RayEngines

    class OfOne(RayEngines):
        def close(self) -> None:
            super().close()
            engine.close()
            lines.close()

    engines = OfOne(handle)
    # A test may have an event loop, in which nothing may be waited for.
    with ThreadPoolExecutor(1) as beside:
        beside.submit(engines.open).result()
    connection, _ = listens.accept()
    sent: list[Lines] = []
    begun = threading.Event()

    def send(message: Message) -> None:
        begun.wait()
        sent[0].put(message)

    engine = served(send)

    def order(message: Any) -> None:
        verb, *given = message
        getattr(engine, verb)(*given)

    lines = Lines(connection, order)
    sent.append(lines)
    begun.set()
    until = time.monotonic() + PATIENCE_SECONDS
    while not engines.names():
        assert time.monotonic() < until
        time.sleep(0.002)
    return engines
