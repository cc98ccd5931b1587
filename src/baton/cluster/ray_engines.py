"""A front's engines on Ray Serve: to each one long stream of news, and orders in turn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from baton.cluster.desk import DESK
from baton.cluster.port import EngineLost, Hearing
from baton.cluster.wire import About, Message, about_of, name_of
from baton.core.errors import BatonError, LoadError

_AGAIN_SECONDS = 0.5
_ASK_SECONDS = 5.0

log = logging.getLogger("baton.cluster")


class RayEngines:
    """The `Engines` of a deployment of `RayEngine`. What is called here comes back at once; a thread does the rest."""

    def __init__(self, handle: DeploymentHandle[Any], prefill: DeploymentHandle[Any] | None = None) -> None:
        """`prefill`: the deployment of engines for prompts, of the same application."""
        self._handles = {known.deployment_name: known for known in (handle, prefill) if known is not None}
        self._handle = handle
        self._prefill = prefill
        self._front = secrets.token_hex(8)
        self._hearing: Hearing | None = None
        self._known: dict[str, _Engine] = {}
        self._about: About | None = None
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="baton-engines", daemon=True)
        self._thread.start()

    def open(self) -> About:
        """Hears from all engines from now on. Returns what the first says of itself. Raises LoadError if it failed."""
        message = self._handle.introduction.remote().result()
        if "trouble" in message:
            raise LoadError(str(message["trouble"]))
        self._about = about_of(message)
        DESK.watch(self._there)
        if self._prefill is not None:
            # A deployment's engines are known from the first call on.
            self._prefill.introduction.remote()
        return self._about

    def names(self) -> Sequence[str]:
        return sorted(name for name, engine in list(self._known.items()) if engine.here)

    def prefill_names(self) -> Sequence[str]:
        if self._prefill is None:
            return ()
        name = self._prefill.deployment_name
        return sorted(engine.name for engine in list(self._known.values()) if engine.deployment == name)

    def listen(self, hearing: Hearing) -> None:
        self._hearing = hearing

    def start(self, engine: str, asks: Sequence[Message]) -> None:
        self._order(engine, "start", list(asks))

    def cancel(self, engine: str, query_ids: Sequence[str]) -> None:
        self._order(engine, "cancel", list(query_ids))

    def give(self, engine: str, query_ids: Sequence[str] | None = None, without_keys: Sequence[str] = ()) -> None:
        self._order(engine, "give", None if query_ids is None else list(query_ids), list(without_keys))

    def abandon(self, engine: str) -> None:
        """Ends the engine's process. Serve starts another one."""
        known = self._known.get(engine)
        if known is None or not known.process:
            raise EngineLost(f"{engine} is gone")
        with contextlib.suppress(ValueError, RayError, OSError):  # it has ended
            if known.process["node"] == ray.get_runtime_context().get_node_id():
                # Ray asks a process to end, which one that is stopped does not hear.
                os.kill(known.process["pid"], signal.SIGKILL)
                return
            name, namespace = known.process["actor"]
            ray.kill(ray.get_actor(name, namespace=namespace))

    def ask(self, verb: str, *given: Any, engines: Sequence[str] | None = None) -> dict[str, Any]:
        """What engines answer now, by name: `metrics` or `live`. One that does not answer soon is left out.

        The caller waits: not for an event loop's thread.
        """
        names = self.names() if engines is None else engines
        return asyncio.run_coroutine_threadsafe(self._ask(verb, given, names), self._loop).result()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(ValueError):
            DESK.leave(self._there)
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _order(self, engine: str, verb: str, *given: Any) -> None:
        known = self._known.get(engine)
        if known is None or self._closed:
            raise EngineLost(f"{engine} is gone")
        self._loop.call_soon_threadsafe(known.put, (verb, given))

    def _there(self, app: str, deployment: str, names: frozenset[str]) -> None:
        if not self._closed and app == self._handle.app_name and deployment in self._handles:
            self._loop.call_soon_threadsafe(self._compare, deployment, names)

    # In the thread of engines

    def _compare(self, deployment: str, names: frozenset[str]) -> None:
        known = {name for name, engine in self._known.items() if engine.deployment == deployment}
        for name in sorted(names - known):
            engine = self._known[name] = _Engine(self._handles[deployment], self._front, name)
            engine.task = self._loop.create_task(self._follow(engine))
        for name in sorted(known - names):
            engine = self._known[name]
            if not engine.leaving:
                engine.leaving = True
                self._loop.create_task(self._leave(engine))

    async def _leave(self, engine: _Engine) -> None:
        """Its queries go on elsewhere; its news end with the last one."""
        if not engine.here:
            if engine.task is not None:
                engine.task.cancel()
            return
        if self._hearing is not None:
            self._hearing.leaves(engine.name)
        with contextlib.suppress(*_GONE):
            await engine.call("leave")

    async def _follow(self, engine: _Engine) -> None:
        """Hears an engine until it is gone. A stream that broke although the engine is there is opened again."""
        try:
            while True:
                why = await self._hear(engine)
                if engine.here:
                    engine.here = False
                    log.log(
                        logging.INFO if engine.leaving else logging.WARNING, "engine %s is gone%s", engine.name, why
                    )
                    if self._hearing is not None and not self._closed:
                        self._hearing.lost(engine.name)
                if engine.leaving or engine.refused:
                    return
                engine.orders.clear()
                await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            if self._known.get(engine.name) is engine:
                del self._known[engine.name]

    async def _hear(self, engine: _Engine) -> str:
        """Returns why the stream ended."""
        stream: Any = (
            self._handles[engine.deployment].options(stream=True).news.remote(front=self._front, to=engine.name)
        )
        sending: asyncio.Task[None] | None = None
        try:
            async for messages in stream:
                if sending is None:
                    self._check(messages[0])
                    engine.process = messages[0]["process"]
                    sending = self._loop.create_task(engine.send(stream, self._hearing))
                    engine.here = True
                    if self._hearing is not None:
                        self._hearing.came(engine.name)
                    continue
                for message in messages:
                    if self._hearing is not None:
                        self._hearing.heard(engine.name, message)
        except _GONE as error:
            return f" ({type(error).__name__})"
        except BatonError as error:
            engine.refused = True
            log.error("engine %s is not asked: %s", engine.name, error.message)
        except Exception:
            log.exception("news of engine %s", engine.name)
        finally:
            if sending is not None:  # it has begun
                sending.cancel()
                with contextlib.suppress(*_GONE):
                    stream.cancel()
        return ""

    def _check(self, introduction: Message) -> None:
        """Raises BatonError if queries of this front must not go to this engine."""
        if "trouble" in introduction:
            raise LoadError(str(introduction["trouble"]))
        if self._about is not None:
            self._about.check_same(about_of(introduction))

    async def _ask(self, verb: str, given: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
        engines = [self._known[name] for name in names if name in self._known]
        asked = [asyncio.wait_for(engine.call(verb, *given, front=False), _ASK_SECONDS) for engine in engines]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        pairs = zip(engines, answers, strict=True)
        return {engine.name: answer for engine, answer in pairs if not isinstance(answer, BaseException)}

    async def _end(self) -> None:
        tasks = [engine.task for engine in self._known.values() if engine.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_GONE = (RayError, RayServeException, asyncio.TimeoutError, ConnectionError)


class _Engine:
    """One engine, as a front knows it. `here`: it takes orders. `leaving`: Serve ends it. `refused`: it is not ours."""

    def __init__(self, handle: DeploymentHandle[Any], front: str, name: str) -> None:
        self.name = name
        self.deployment = handle.deployment_name
        self.here = False
        self.leaving = False
        self.refused = False
        self.process: Mapping[str, Any] = {}
        self.task: asyncio.Task[None] | None = None
        self.orders: list[tuple[str, Sequence[Any]]] = []
        self._come = asyncio.Event()
        self._handle = handle
        self._front = front

    def call(self, verb: str, *given: Any, front: bool = True) -> Coroutine[Any, Any, Any]:
        """What the engine answers."""

        async def answer() -> Any:
            whose = {"front": self._front} if front else {}
            return await getattr(self._handle, verb).remote(*given, **whose, to=self.name)

        return answer()

    def put(self, order: tuple[str, Sequence[Any]]) -> None:
        self.orders.append(order)
        self._come.set()

    async def send(self, stream: Any, hearing: Hearing | None) -> None:
        """Sends orders, all that are there at once, and waits until they are carried out: none passes another."""
        while True:
            await self._come.wait()
            self._come.clear()
            orders, self.orders = self.orders, []
            try:
                if orders:
                    await self.call("tell", orders)
                    asked = [ask for verb, given in orders if verb == "start" for ask in given[0]]
                    if asked and hearing is not None:
                        hearing.took(self.name, [name_of(ask) for ask in asked])
            except Exception:
                # Whether they were carried out is not known. The stream is given up, and all goes on elsewhere.
                stream.cancel()
                raise
