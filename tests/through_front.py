"""`pytest --through-front wire`: servers of tests stand over a front, whose engine is elsewhere.

Each client that a server is made of gets a `FarLoop` in place of its loop. Its old loop is the engine. All that crosses
is made to JSON and read again, and orders and news have a thread each, as on any transport.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import pytest

import baton.server.app
from baton.cluster.far import FarLoop
from baton.cluster.port import Engines, Hearing
from baton.cluster.served import ServedEngine
from baton.cluster.wire import About, Message
from baton.core.clock import monotonic
from baton.core.query import Query
from baton.engine.client import Client
from baton.engine.inbox import Deliver

VARIABLE = "THROUGH_FRONT"
"""Set for processes that tests start."""
STAMP = "through a front"
INTERNALS = {
    **dict.fromkeys(
        (
            "test_streams.py::test_what_runs_goes_on_in_the_next_process",
            "test_streams.py::test_what_took_part_in_two_processes_is_summed",
            "test_streams.py::test_what_cannot_go_on_is_set_aside[other bytes]",
            "test_streams.py::test_what_cannot_go_on_is_set_aside[another model]",
        ),
        "--handover: an engine's queries go to the next process, and those of a front stay in engines",
    ),
    "test_life.py::test_a_server_that_ended_leaves_no_thread_of_its_engine": "looks at the engine's own thread",
}
"""What needs an engine in the same process, and why. All else of tests/server/ holds through a front."""
CROSSED = "queries that crossed"
LEAST_TESTS, LEAST_ASKING = 900, 320
"""So many tests pass if tests/server/ is run as a whole, and so many of them ask an engine elsewhere."""


class Front(FarLoop):
    """A front's loop, which ends its engine with itself, and refuses what a scripted loop is told to refuse."""

    def __init__(self, engines: Engines, about: About, behind: Any) -> None:
        super().__init__(engines, about, monotonic)
        self._behind = behind
        self._says = behind if hasattr(behind, "refuse") else None
        for sink in getattr(behind, "_sinks", ()):
            self.tell_refusals(sink)
        self.start()

    def submit(self, queries: Sequence[Query], deliver: Deliver, *, admitted: bool = False) -> None:
        if self._says is not None and self._says.refuse is not None:
            raise self._says.refuse
        super().submit(queries, deliver, admitted=admitted)
        _crossed.update(queries=len(queries))

    def check_room(self, count: int = 1) -> None:
        if self._says is not None:
            self._says.check_room(count)
        super().check_room(count)

    def not_ready(self) -> str | None:
        return (self._says and self._says.not_ready()) or super().not_ready()

    def close(self) -> None:
        super().close()
        self._behind.close()


class Wired:
    """The `Engines` of one front: one loop of this process, behind messages."""

    def __init__(self, served: Callable[[Callable[[Message], None]], ServedEngine]) -> None:
        self._orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._hearing: Hearing | None = None
        self._served = served(lambda message: self._news.put(json.dumps(message)))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._order, self._hear)]

    def names(self) -> Sequence[str]:
        return ["engine"]

    def prefill_names(self) -> Sequence[str]:
        return ()

    def listen(self, hearing: Hearing) -> None:
        self._hearing = hearing
        for thread in self._threads:
            thread.start()

    def start(self, engine: str, asks: Sequence[Message]) -> None:
        self._orders.put(json.dumps(["start", list(asks)]))

    def cancel(self, engine: str, query_ids: Sequence[str]) -> None:
        self._orders.put(json.dumps(["cancel", list(query_ids)]))

    def give(self, engine: str, query_ids: Sequence[str] | None = None, without_keys: Sequence[str] = ()) -> None:
        self._orders.put(json.dumps(["give", query_ids, list(without_keys)]))

    def abandon(self, engine: str) -> None:
        raise AssertionError("an engine hangs")

    def close(self) -> None:
        for messages in (self._orders, self._news):
            messages.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(10)
        self._served.close()

    def _order(self) -> None:
        while (line := self._orders.get()) is not None:
            verb, *given = json.loads(line)
            getattr(self._served, verb)(*given)

    def _hear(self) -> None:
        assert self._hearing is not None
        while (line := self._news.get()) is not None:
            self._hearing.heard("engine", json.loads(line))


def stand_over(client: Client) -> None:
    """From now on the client asks a front. Its loop is the engine of this front."""
    behind: Any = client.loop
    if isinstance(behind, FarLoop):
        return
    honours = tuple(sorted(client._honours))
    about = About(client.model_name, client.settings, honours, (0,), STAMP, client.defaults)
    compile = getattr(behind, "compile", client.compile)

    def served(send: Callable[[Message], None]) -> ServedEngine:
        return ServedEngine(behind, compile, monotonic, send)

    client._loop = Front(Wired(served) if _ray is None else _ray.engines(served), about, behind)


_ray: Any = None
_crossed: Counter[str] = Counter()


def begin(how: str) -> None:
    """Call it before the modules are imported that make servers. `how`: "wire", or "ray", which starts Ray."""
    global _ray
    os.environ[VARIABLE] = "wire"  # a Ray for each process would take too long
    if how == "ray":
        from through_ray import OnRay

        _ray = OnRay()
    baton.server.app.create_app = over_a_front(baton.server.app.create_app)


def over_a_front(make: Callable[..., Any]) -> Callable[..., Any]:
    """Makes servers as `make` does, over a front."""

    @wraps(make)
    def create_app(client: Client, **given: Any) -> Any:
        stand_over(client)
        return make(client, **given)

    return create_app


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [item for item in items if item.nodeid.rpartition("/")[2] in INTERNALS]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)


def taken() -> int:
    """How many queries were asked of an engine elsewhere since it was last called."""
    count = _crossed["queries"]
    _crossed.clear()
    return count


def end(session: pytest.Session) -> None:
    """Says how many tests passed. The run of all of tests/server/ fails if they were too few to mean anything."""
    if _ray is not None:
        _ray.close()
    told = session.config.pluginmanager.get_plugin("terminalreporter")
    if told is None or hasattr(session.config, "workerinput"):
        return
    counts = [dict(report.user_properties).get(CROSSED, 0) for report in told.stats.get("passed", ())]
    asking = sum(count > 0 for count in counts)
    told.write_line(f"\nthrough the front: {len(counts)} passed, {asking} of them asked it {sum(counts)} queries")
    whole = [path.rstrip("/").endswith("tests/server") for path in session.config.args] == [True]
    whole = whole and not session.config.option.keyword and not session.config.option.markexpr
    if whole and (len(counts) < LEAST_TESTS or asking < LEAST_ASKING):
        told.write_line(f"these are fewer than {LEAST_TESTS} and {LEAST_ASKING}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
