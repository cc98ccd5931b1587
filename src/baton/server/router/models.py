"""Which models are loaded, are being loaded or unloaded, and which requests wait for them.

A model's process starts and ends as a whole, so that unloading frees everything and a fault stays with one model. All
methods run on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from baton.core.clock import Clock
from baton.core.errors import LoadError, ModelNotFound, ShuttingDown, Unavailable

RETRY_SECONDS = 30.0
"""For how long a model that could not be loaded is not tried again."""

_WATCH_SECONDS = 1.0

_log = logging.getLogger("baton.server")


class State(StrEnum):
    """The state of a model."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    UNLOADING = "unloading"
    FAILED = "failed"


class ModelNotLoaded(Unavailable):
    """The model could not be loaded."""

    code = "model_not_loaded"
    retry_after_seconds = int(RETRY_SECONDS)


class Process(Protocol):
    """A running server of one model.

    Attributes:
        address: Where it listens, as "http://127.0.0.1:40000".
        headers: What a request must come with.
        card: The model's entry in `/v1/models`.
        takes_all_memory: Another model has no room beside it.
    """

    address: str
    headers: Mapping[str, str]
    card: Mapping[str, Any]
    takes_all_memory: bool

    @property
    def alive(self) -> bool: ...

    @property
    def memory_bytes(self) -> int:
        """Returns how much of the machine's memory it takes now."""

    async def stop(self) -> None:
        """Lets running requests end, and returns when the process has ended."""


@dataclass(slots=True)
class Loading:
    """One load of a model. `waiters`: requests that will be answered once it is done."""

    task: asyncio.Task[None] | None = None
    waiters: int = 0


@dataclass(slots=True)
class Model:
    """One model.

    Attributes:
        inside: Requests that it answers now.
        used: When the last request came or went.
        loading: The load that is under way or in line.
        loaded: The load of which the process is.
        idle: Set while nobody uses the process or was promised it.
    """

    name: str
    needed_bytes: int = 0
    state: State = State.UNLOADED
    process: Process | None = None
    inside: int = 0
    used: float = 0.0
    loads: int = 0
    trouble: str = ""
    failed: float = 0.0
    card: Mapping[str, Any] = field(default_factory=dict)
    loading: Loading | None = None
    loaded: Loading = field(default_factory=Loading)
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def busy(self) -> bool:
        return self.inside > 0 or self.loaded.waiters > 0

    def settle(self) -> None:
        """Updates `idle` for tasks that wait for this model to be idle."""
        if self.busy:
            self.idle.clear()
        else:
            self.idle.set()


class Models:
    """All models of a server, in their order; the first answers requests that name none.

    Args:
        needs: Names, with the bytes that each is thought to need; 0 if that is not known.
        start: Starts a model's process and returns it once it serves. Raises LoadError.
        free_bytes: What the machine has left.
        unload_after: Seconds without a request after which a model is unloaded; 0 for never.
    """

    def __init__(
        self,
        needs: Mapping[str, int],
        start: Callable[[str], Awaitable[Process]],
        *,
        free_bytes: Callable[[], int],
        unload_after: float,
        clock: Clock,
    ) -> None:
        self._models = {name: Model(name, needed) for name, needed in needs.items()}
        self._start = start
        self._free_bytes = free_bytes
        self._unload_after = unload_after
        self._clock = clock
        # Models are loaded one at a time, in the order in which they were asked for.
        self._turn = asyncio.Lock()
        self._closed = False

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    @property
    def loaded(self) -> Sequence[Model]:
        """Models that serve now, the most recently used first."""
        serving = [model for model in self if model.state is State.LOADED and model.process and model.process.alive]
        return sorted(serving, key=lambda model: model.used, reverse=True)

    def named(self, name: str | None) -> Model:
        """Returns the model of this name. Raises ModelNotFound."""
        if name is None:
            return next(iter(self))
        if name in self._models:
            return self._models[name]
        known = ", ".join(repr(known) for known in self._models)
        raise ModelNotFound(f"there is no model {name!r} here: this server has {known}", param="model")

    async def enter(self, model: Model) -> Process:
        """Returns the model's process once it serves, which stays until `leave`; loads it if it is not loaded.

        Raises ModelNotLoaded and ShuttingDown.
        """
        loading: Loading | None = None
        # A request that has waited gets the model even if another is to take its place: otherwise two would take turns
        # for ever.
        while not (loading is not None and loading is model.loaded and model.process) and not self.serves(model):
            if self._closed:
                raise ShuttingDown("the server is shutting down")
            if model.state is State.FAILED and self._clock() - model.failed < RETRY_SECONDS:
                raise ModelNotLoaded(model.trouble)
            loading = model.loading
            if loading is None:
                loading = model.loading = Loading()
                loading.task = asyncio.ensure_future(self._load(model, loading))
            assert loading.task is not None
            loading.waiters += 1
            try:
                # Others wait for it too: a request that gives up ends nothing, and a load that is cancelled no request.
                await asyncio.wait({loading.task})
            finally:
                loading.waiters -= 1
                model.settle()
        assert model.process is not None
        model.inside += 1
        model.used = self._clock()
        model.settle()
        return model.process

    def leave(self, model: Model) -> None:
        """A request that has entered has ended."""
        model.inside -= 1
        model.used = self._clock()
        model.settle()

    def adopt(self, name: str, process: Process) -> None:
        """Takes a process that was started before the event loop."""
        self._serve(self._models[name], process, Loading())

    async def watch(self) -> None:
        """Notices processes that ended, and unloads models that nobody asks for. Runs for ever."""
        while True:
            await asyncio.sleep(min(_WATCH_SECONDS, self._unload_after / 4 or _WATCH_SECONDS))
            for model in [model for model in self if self.serves(model)]:
                # A load that is under way holds the turn, perhaps for minutes: other processes are watched meanwhile.
                if self._turn.locked():
                    continue
                if self._unload_after and not model.busy and self._clock() - model.used >= self._unload_after:
                    async with self._turn:
                        if not model.busy and self.serves(model):
                            await self._unload(model, f"no request for {self._unload_after:g} s")

    async def close(self) -> None:
        """Ends all processes. Running requests may end; no new ones begin."""
        self._closed = True
        tasks = [model.loading.task for model in self if model.loading and model.loading.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(model.process.stop() for model in self if model.process is not None))

    def serves(self, model: Model) -> bool:
        """Whether it is loaded and its process lives."""
        if model.state is not State.LOADED:
            return False
        if model.process is not None and model.process.alive:
            return True
        _log.error("%s: its process has ended; it is loaded again when it is asked for", model.name)
        model.state, model.process = State.UNLOADED, None
        return False

    async def _load(self, model: Model, loading: Loading) -> None:
        """Waiting requests check the model's state afterwards."""
        try:
            async with self._turn:
                await self._make_room(model)
                model.state = State.LOADING
                self._serve(model, await self._start(model.name), loading)
        except LoadError as error:
            self._failed(model)
            _log.error("%s could not be loaded: %s", model.name, error.message)
        except Exception:
            self._failed(model)
            _log.exception("%s could not be loaded", model.name)
        finally:
            model.loading = None
            if model.state is State.LOADING:
                model.state = State.UNLOADED

    def _failed(self, model: Model) -> None:
        # Reasons name folders of this machine, which are not for clients.
        trouble = f"{model.name} could not be loaded; the server's log says why"
        model.state, model.trouble, model.failed = State.FAILED, trouble, self._clock()

    def _serve(self, model: Model, process: Process, loading: Loading) -> None:
        model.loaded = loading
        model.process, model.card, model.state = process, process.card, State.LOADED
        model.needed_bytes = max(model.needed_bytes, process.memory_bytes)
        model.loads += 1
        model.used = self._clock()
        model.settle()

    async def _make_room(self, model: Model) -> None:
        """Unloads others until this model fits: idle ones first, the least recently used before others."""
        while (other := self._in_the_way(model)) is not None:
            await self._unload(other, f"{model.name} needs its memory")

    def _in_the_way(self, model: Model) -> Model | None:
        """Returns the model to unload next. Raises LoadError where unloading all others would not help."""
        others = [other for other in self.loaded if other is not model]
        free = self._free_bytes()
        fits = free >= model.needed_bytes
        if others and free + sum(other.process.memory_bytes for other in others if other.process) < model.needed_bytes:
            raise LoadError(f"it needs about {model.needed_bytes:,} bytes, more than there are even without all others")
        alone = any(other.process is not None and other.process.takes_all_memory for other in others)
        if not others or (fits and not alone):
            return None
        return min(others, key=lambda other: (other.busy, other.used))

    async def _unload(self, model: Model, why: str) -> None:
        """Unloads a model. New requests wait until it is loaded again; running ones go on to their end."""
        process = model.process
        assert process is not None
        model.state = State.UNLOADING
        _log.info("%s is unloaded: %s", model.name, why)
        try:
            await model.idle.wait()
            model.needed_bytes = max(model.needed_bytes, process.memory_bytes)
            await process.stop()
        finally:
            model.state, model.process = (State.LOADED, process) if process.alive else (State.UNLOADED, None)
