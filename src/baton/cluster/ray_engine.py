"""The class that Ray Serve runs in each engine's process: news as one long stream for each front, and orders."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import ray.serve._private.replica as serve_replica
from ray import serve

from baton.cluster.lease import Lease
from baton.cluster.ray_depot import RayDepot
from baton.cluster.ray_lease import holds
from baton.cluster.replica import Open, Replica
from baton.cluster.served import ServedEngine
from baton.cluster.wire import Message
from baton.core.errors import BatonError, EngineUnhealthy

log = logging.getLogger("baton.cluster")

_FETCH_SECONDS = 3.0
Order = tuple[str, Sequence[Any]]
"""A verb of `ServedEngine` and what it is given."""


class RayEngine:
    """One engine. Each call has `to`, the engine's name, by which the router finds it."""

    def __init__(
        self, open: Open, values: Mapping[str, Any], *, loopback: bool = False, lease: str = "", beside: Any = None
    ) -> None:
        """`open` with `values` makes the engine.

        `loopback`: nothing listens to other machines. `lease`: if it ends, so does the application; "" for none.
        `beside`: other engines of the application, which Serve starts because they are named here.
        """
        if loopback:
            _listen_on_loopback()
        self._fronts: dict[str, _Front] = {}
        self._replica: Replica | None = None
        self._lease = Lease(lease, end_application, holds) if lease else None
        self._why = ""
        try:
            self._replica = open(values)
        except BatonError as error:
            # Serve would start it again twenty times. The front reads the reason, and gives up.
            self._why = error.message

    async def introduction(self, to: str | None = None) -> Message:
        """What a front needs to know; `trouble` if the model could not be loaded."""
        return self._introduction()

    async def news(self, front: str, to: str) -> AsyncIterator[list[Message]]:
        """First the introduction, then what there is to tell, once per iteration and front or less often."""
        _check_name(to)
        yield [self._introduction()]
        here = _Front(self._engine(), asyncio.get_running_loop())
        self._fronts[front] = here
        try:
            while messages := await here.take():
                yield messages
            if here.depot.used:
                # Keys and values end with this process, so that others are given the time to fetch them.
                await asyncio.sleep(_FETCH_SECONDS)
        finally:
            if self._fronts.get(front) is here:
                del self._fronts[front]
            here.close()

    async def tell(self, orders: Sequence[Order], front: str, to: str) -> None:
        """Carries out orders of a front, one after the other. Raises EngineUnhealthy if it does not hear the news."""
        _check_name(to)
        if front not in self._fronts:
            raise EngineUnhealthy("this front does not listen")
        await self._fronts[front].carry_out(orders)

    async def leave(self, front: str, to: str) -> None:
        """This engine takes no more queries: the news end with the last one of this front."""
        if front in self._fronts:
            self._fronts[front].leave()

    async def metrics(self, to: str) -> Message:
        return await asyncio.to_thread(self._engine().metrics)

    async def live(self, serial: int, time: float, to: str) -> bytes:
        return await asyncio.to_thread(self._engine().live, serial, time)

    def check_health(self) -> None:
        """Raises if the process must be replaced."""
        if self._replica is not None and (why := self._replica.trouble()) is not None:
            raise RuntimeError(why)

    def record_autoscaling_stats(self) -> dict[str, float]:
        return {"rows_wanted": 0.0 if self._replica is None else self._replica.rows_wanted()}

    def __del__(self) -> None:
        if (lease := getattr(self, "_lease", None)) is not None:
            lease.close()
        if (replica := getattr(self, "_replica", None)) is not None:
            replica.close()

    def _engine(self) -> Replica:
        if self._replica is None:
            raise EngineUnhealthy(self._why)
        return self._replica

    def _introduction(self) -> Message:
        if self._replica is None:
            return {"trouble": self._why}
        context = ray.get_runtime_context()
        process = {"actor": [context.get_actor_name(), context.namespace], "node": context.get_node_id()}
        return {**self._replica.introduction(), "process": {**process, "pid": os.getpid()}}


class _Front:
    """A front that listens. The engine's thread puts messages; the event loop takes all that are there as one."""

    def __init__(self, replica: Replica, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._messages: list[Message] = []
        self._come = asyncio.Event()
        self._leaving = False
        # Orders take their time (a form is compiled), and must not pass one another.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="baton-orders")
        self.depot = RayDepot()
        self._served: ServedEngine = replica.served(self._put, self.depot)

    async def take(self) -> list[Message]:
        """Waits for messages. Returns none if there will be no more."""
        while not self._messages and not (self._leaving and not self._served.busy):
            await self._come.wait()
            self._come.clear()
        messages, self._messages = self._messages, []
        return messages

    def leave(self) -> None:
        self._leaving = True
        self._come.set()

    async def carry_out(self, orders: Sequence[Order]) -> None:
        await self._loop.run_in_executor(self._thread, self._carry_out, orders)

    def close(self) -> None:
        self._served.close()
        self._thread.shutdown(wait=False)

    def _carry_out(self, orders: Sequence[Order]) -> None:
        for verb, given in orders:
            getattr(self._served, verb)(*given)

    def _put(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._add, message)

    def _add(self, message: Message) -> None:
        self._messages.append(message)
        self._come.set()


def end_application() -> None:
    """Ends all engines of this one's application."""
    try:
        serve.delete(serve.get_replica_context().app_name, _blocking=False)
    except Exception:
        log.exception("the application was not ended")


def _check_name(to: str) -> None:
    """Raises EngineUnhealthy for a call that was brought to the wrong engine: its answers would be nobody's."""
    name = serve.get_replica_context().replica_id.unique_id
    if name != to:
        raise EngineUnhealthy(f"this is engine {name}, not {to}")


def _listen_on_loopback() -> None:
    """Keeps Serve's server for calls by gRPC, which are not used here, from other machines: Ray has no setting."""
    module: Any = serve_replica
    add = module.add_port_to_grpc_server

    def add_here(server: Any, address: str) -> Any:
        return add(server, address.replace("[::]:", "127.0.0.1:"))

    module.add_port_to_grpc_server = add_here
