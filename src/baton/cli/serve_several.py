"""The server over several models: a process for each, and one that passes requests on and imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import psutil

from baton import __version__, builtin
from baton.cli.logs import start_logging
from baton.cli.show import errors, in_units, tell_open, tell_ready
from baton.core.clock import monotonic
from baton.core.config import AUTO, Config, named_models
from baton.core.errors import BatonError, LoadError
from baton.core.host import free_memory_bytes
from baton.core.settings import ServerSettings, limits_of, server_settings
from baton.core.threads import started as threads_started
from baton.loader.hub import weight_bytes
from baton.server.auth import Access, is_loopback
from baton.server.router.app import create_router
from baton.server.router.models import Models
from baton.server.run import Hang, bind, serve, url_of

# What a process needs besides the weights: torch, the tokenizer, keys and values of a few rows.
_BESIDE_BYTES = 600 * 2**20
# How long a process may take to end, beyond the time that its requests have.
_STOP_SECONDS = 15.0
# So many processes may be ending while one is started.
_ENDING = 8

log = logging.getLogger("baton.server")


def run_several(config: Config, server: ServerSettings, bound: socket.socket, access: Access, began: float) -> None:
    """Serves on a bound socket until told to end. Raises LoadError if a model fails that is loaded at the start."""
    sources = named_models(config)
    errors.print(f"[bold]baton {__version__}[/bold]  {len(sources)} models, each in a process of its own")
    processes = Processes(config, sources, access)
    models = Models(
        {name: _needed_bytes(source) for name, source in sources.items()},
        processes.start_beside,
        free_bytes=free_memory_bytes,
        unload_after=server.unload_after_seconds,
        clock=monotonic,
    )
    app = create_router(models, limits=limits_of(config), version=__version__, access=access)
    try:
        if not config.load_on_demand:
            for name in sources:
                models.adopt(name, processes.start(name))
        _serve(app, models, processes, server, bound, access, config, began)
    finally:
        app.state.close()
        processes.end()


def _serve(
    app: Any,
    models: Models,
    processes: Processes,
    server: ServerSettings,
    bound: socket.socket,
    access: Access,
    config: Config,
    began: float,
) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    tasks: list[asyncio.Task[None]] = []

    def started(url: str) -> None:
        loops.append(asyncio.get_running_loop())
        tasks.append(loops[0].create_task(models.watch()))
        for model in models:
            size = f"{in_units(model.needed_bytes)} of memory" if model.needed_bytes else "not in the hub's cache yet"
            errors.print(f"  {model.name:<40} {model.state.value}, {size}")
        if not access.keys and not is_loopback(bound.getsockname()[0]):
            tell_open()
        tell_ready(time.perf_counter() - began, url)

    async def close() -> None:
        tasks[0].cancel()
        await models.close()
        await app.state.shut()

    def drain(timeout_seconds: float) -> bool:
        if not timeout_seconds:
            processes.kill()
        asyncio.run_coroutine_threadsafe(close(), loops[0]).result()
        return True

    serve(
        app,
        bound,
        drain=drain,
        drain_timeout_seconds=server.drain_seconds,
        limits=limits_of(config),
        hang=Hang(server.hang_seconds, server.hang_exit_seconds, lambda: 0.0),
        on_started=started,
    )


def _needed_bytes(source: str) -> int:
    """Roughly the bytes that a model will need; 0 if its files are not here yet."""
    weights = weight_bytes(str(builtin.path()) if source == builtin.NAME else source)
    return weights + _BESIDE_BYTES if weights else 0


class Processes:
    """Starts and ends the models' processes. `sources`: hub ids and folders by the models' names."""

    def __init__(self, config: Config, sources: Mapping[str, str], access: Access) -> None:
        self._config = config
        self._sources = sources
        # If there are keys, a key of our own, for requests to a model's process that come from no client.
        self._secret = secrets.token_urlsafe(32) if access.keys else ""
        self._keys = (*access.keys, self._secret) if access.keys else ()
        self._threads = threads_started(1 + _ENDING, "baton-models")
        self._all: list[ModelProcess] = []

    async def start_beside(self, name: str) -> ModelProcess:
        """As `start`, on another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.start, name)

    def start(self, name: str) -> ModelProcess:
        """Returns once the model serves. Raises LoadError."""
        source = self._sources[name]
        config = dataclasses.replace(
            self._config,
            model=None if source == builtin.NAME else source,
            models=(),
            load_on_demand=False,
            served_model_name=name,
            host="127.0.0.1",
        )
        process = ModelProcess(config, self._keys, self._secret, self._threads)
        self._all.append(process)
        process.wait_until_serving()
        return process

    def kill(self) -> None:
        """Ends all processes at once, and their children."""
        for process in self._all:
            process.kill()

    def end(self) -> None:
        """Ends all processes, and the threads that start and end them."""
        for process in self._all:
            process.end()
        self._threads.shutdown(wait=False)


class ModelProcess:
    """A process that serves one model to this machine; see `router.models.Process`."""

    def __init__(self, config: Config, keys: tuple[str, ...], secret: str, threads: Any) -> None:
        context = multiprocessing.get_context("spawn")
        bound = bind(config.host, 0)
        self._pipe, theirs = context.Pipe()
        self.address = url_of(bound)
        self.headers: Mapping[str, str] = {"authorization": f"Bearer {secret}"} if secret else {}
        self.card: Mapping[str, Any] = {}
        self.takes_all_memory = False
        self._stop_seconds = config.drain_timeout + _STOP_SECONDS
        self._threads = threads
        self._process = context.Process(target=serve_one, args=(config, keys, bound, theirs), name="baton-model")
        try:
            self._process.start()
        except OSError as error:
            raise LoadError(f"no process could be started for it: {error.strerror}") from None
        finally:
            bound.close()
            theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    @property
    def memory_bytes(self) -> int:
        with contextlib.suppress(psutil.Error):
            return int(psutil.Process(self._process.pid).memory_info().rss)
        return 0

    def wait_until_serving(self) -> None:
        """Raises LoadError if it ends before."""
        try:
            kind, message = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_STOP_SECONDS)
            status = self._process.exitcode
            raise LoadError(f"its process ended with status {status}; what it wrote says why") from None
        if kind == "failed":
            raise LoadError(message)
        self.card, self.takes_all_memory = message["card"], message["takes_all_memory"]

    async def stop(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self.end)

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Lets its requests end, as --drain-timeout allows. Returns when the process has ended."""
        self._process.terminate()
        self._process.join(self._stop_seconds)
        if self._process.is_alive():
            log.error("a model's process did not end by itself")
            self._process.kill()
            self._process.join()
        self._pipe.close()


def serve_one(config: Config, keys: tuple[str, ...], bound: socket.socket, pipe: Connection) -> None:
    """The main function of a model's process.

    `pipe`: gets the progress; its other end closes when the server is gone.
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the server, which ends this process when its requests have ended
    start_logging(config.log_level)
    threading.Thread(target=_end_with_server, args=(pipe,), daemon=True).start()
    began = time.perf_counter()
    try:
        from baton.cli.serve_engine import run_bound

        def tell(handle: Any) -> None:
            client, facts = handle.client, handle.facts
            card = {"max_model_len": client.settings.max_model_len, "sampling_defaults": client.defaults}
            alone = facts.device != "cpu" and config.kv_memory == AUTO
            pipe.send(("ready", {"card": card, "takes_all_memory": alone}))

        run_bound(config, server_settings(config), bound, Access(keys), began, on_started=tell)
    except BatonError as error:
        pipe.send(("failed", error.message))
        sys.exit(1)


def _end_with_server(pipe: Connection) -> None:
    """A server that was killed cannot end its models."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    os.kill(os.getpid(), signal.SIGTERM)
