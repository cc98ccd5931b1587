"""The server's process: its socket, its signals, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from baton.core.errors import SettingError
from baton.core.limits import Limits
from baton.core.threads import started
from baton.engine.client import Held, Watchdog
from baton.server.connection import Connection
from baton.server.crowd import ACCEPTED_AT_ONCE, Crowd, fitting

try:
    import resource
except ImportError:  # there is none on Windows, nor such a limit
    resource = None  # type: ignore[assignment]

CLOSE_SECONDS = 3
"""How long clients get to take their last bytes once no query is live."""
BACKLOG = 1024
"""Connections that may wait until they are taken."""
MOST_FILES = 2**20
"""Enough for any number of connections. Some libraries walk through all files that a process may have, so not more."""

_log = logging.getLogger("baton.server")

Drain = Callable[[float], bool]
"""`Client.drain`: admits nothing more, waits so many seconds for live queries, ends the rest."""


@dataclass(frozen=True, slots=True)
class Hang:
    """When a hanging server logs so, and when it ends itself: after so many seconds (0: never).

    `engine`: for how long the engine has been stuck. What hangs can only be ended with its process.
    """

    told_after: float
    ends_after: float
    engine: Callable[[], float]

    def watchdogs(self, loop: asyncio.AbstractEventLoop) -> list[Watchdog]:
        """One watchdog for the event loop. One for the engine, whose own thread cannot report that it hangs."""
        return [
            Watchdog(Pulse(loop).silent, self.told_after, what="no sign of the event loop", ends_after=self.ends_after),
            Watchdog(self.engine, math.inf, ends_after=self.ends_after),
        ]


class Pulse:
    """Asks an event loop, from another thread, to prove that it goes round."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._shown = time.monotonic()

    def silent(self) -> float:
        """Seconds since it last went round."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._show)
        return time.monotonic() - self._shown

    def _show(self) -> None:
        self._shown = time.monotonic()


def bind(host: str, port: int) -> socket.socket:
    """Returns a listening socket. Raises SettingError if there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror:
        raise SettingError(f"--host {host}: no such address", param="host") from None
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            # On other systems the option would let a second server take the port of a running one.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _setting_error(host, port, error) from None
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server_config(app: FastAPI, limits: Limits, crowd: Crowd | None = None) -> uvicorn.Config:
    """uvicorn as this server runs it: HTTP/1.1 by our own `Connection`."""
    crowd = crowd or Crowd(limits.max_connections)
    # Any application can be served. One that holds answers itself shares their sum.
    answers = getattr(app.state, "answers", None) or Held(limits.max_answers_bytes)
    connection: Any = partial(Connection, limits=limits, crowd=crowd, answers=answers)
    return uvicorn.Config(
        app,
        http=connection,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        # After this time uvicorn would cancel its tasks, with a traceback for each. Connections are closed before.
        timeout_graceful_shutdown=2 * CLOSE_SECONDS,
    )


def serve(
    app: FastAPI,
    bound: socket.socket,
    *,
    drain: Drain,
    drain_timeout_seconds: float,
    limits: Limits,
    hang: Hang | None = None,
    on_started: Callable[[str], None] | None = None,
) -> None:
    """Serves on a bound socket until SIGINT, SIGTERM or SIGHUP, and returns when everything has ended.

    The first signal drains: new queries get 503 while running ones finish within the timeout. A second SIGINT or
    SIGTERM ends those at once. SIGQUIT does what it does everywhere: it ends the process without a word. `on_started`
    gets the address when requests are taken. Must run in the main thread.
    """
    raise_file_limit()
    # Must be before anything is served: see `baton.core.threads`.
    threads = started(2, "baton-drain")
    crowd = Crowd(fitting(limits.max_connections))
    server = _Server(server_config(app, limits, crowd), app, crowd, drain, drain_timeout_seconds, hang, threads)
    asyncio.run(server.run_until_signal(bound, on_started))


def hangs_up() -> bool:
    """Whether a closed terminal (SIGHUP) ends the server: not on Windows, which has none, nor under nohup."""
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN


def raise_file_limit() -> None:
    """A connection is a file, and many systems start with room for 1,024."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # some systems have a lower limit of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class _Server(uvicorn.Server):
    """uvicorn, with signals that drain the engine first and leave exit status 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: FastAPI,
        crowd: Crowd,
        drain: Drain,
        timeout_seconds: float,
        hang: Hang | None,
        threads: ThreadPoolExecutor,
    ) -> None:
        super().__init__(config)
        # asyncio accepts as many connections at once as this says may wait.
        config.backlog = ACCEPTED_AT_ONCE
        self._app = app
        self._crowd = crowd
        self._hang = hang
        self._threads = threads
        self._drain = drain
        self._timeout_seconds = timeout_seconds
        self._drains: list[asyncio.Task[None]] = []

    async def run_until_signal(self, bound: socket.socket, on_started: Callable[[str], None] | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end_requested)
        if hangs_up():
            # The kernel sends it, and so does the shell that ends: a second one does not hurry.
            loop.add_signal_handler(signal.SIGHUP, self._end_requested, False)
        self._on_started = on_started
        self._url = url_of(bound)
        dogs = [] if self._hang is None else self._hang.watchdogs(loop)
        for dog in dogs:
            dog.start()
        try:
            await self.serve(sockets=[bound])
        finally:
            for dog in dogs:
                dog.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._crowd.watch(asyncio.get_running_loop())
        if (begin := getattr(self._app.state, "begin", None)) is not None:
            await begin()
        await super().startup(sockets)
        for bound in sockets or ():
            bound.listen(BACKLOG)
        if self._on_started is not None:
            self._on_started(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._close_connections)
        await super().shutdown(sockets)
        closing.cancel()

    def _close_connections(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own handlers raise the signal again at the end: a traceback, or a status that is not 0.
        yield

    def _end_requested(self, hurry: bool = True) -> None:
        self._app.state.draining = True
        timeout = 0.0 if self._drains else self._timeout_seconds
        if not self._drains or (hurry and len(self._drains) < 2):
            self._drains.append(asyncio.create_task(self._end(timeout)))

    async def _end(self, timeout_seconds: float) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._drain, timeout_seconds)
        except Exception:
            _log.exception("the engine did not drain")
        self.should_exit = True


def _setting_error(host: str, port: int, error: OSError) -> SettingError:
    if error.errno == errno.EADDRINUSE:
        return SettingError(f"port {port} on {host} is in use: choose another with --port", param="port")
    if error.errno in (errno.EACCES, errno.EPERM):
        return SettingError(f"port {port} on {host} needs more rights: choose another with --port", param="port")
    return SettingError(f"cannot listen on {host}, port {port}: {error.strerror}", param="host")
