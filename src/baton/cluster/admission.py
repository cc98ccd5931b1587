"""Whom a front takes: who may wait in all engines together, and who is told of refusals."""

from __future__ import annotations

from collections.abc import Iterable

from baton.cluster.follow import Follow
from baton.core.clock import Clock
from baton.core.errors import EngineUnhealthy, QueueFull, ShuttingDown
from baton.core.events import QueryRejected, Sink
from baton.core.settings import Settings


class Admission:
    """One thread at a time. `settings`: of each engine. `sinks`: told of each refusal, as an engine's are."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self.sinks: list[Sink] = []
        self.draining = False

    def check_open(self, *, rejected: int = 0) -> None:
        """Raises if no query is taken at all. `rejected`: so many queries count then."""
        if self.draining:
            self._reject("shutting_down", rejected)
            raise ShuttingDown("the server is shutting down")

    def check_room(self, follows: Iterable[Follow], engines: int, count: int, *, rejected: int = 0) -> None:
        """Raises also if all engines together have no room for `count` queries more that wait. `engines`: how many.

        While there is none, as many may wait for one as one may have waiting.
        """
        self.check_open(rejected=rejected)
        waiting, most = self._waiting(follows, engines)
        if not engines:
            if waiting + count > self._bound(1):
                self._reject("engine_unhealthy", rejected)
                raise EngineUnhealthy(f"no engine is there, and {waiting} queries wait for one (--max-waiting)")
            return
        if waiting + count > most:
            self._reject("queue_full", rejected)
            raise QueueFull(f"{waiting} queries are waiting and at most {self._bound(engines)} may (--max-waiting)")

    def not_ready(self, follows: Iterable[Follow], engines: int) -> str | None:
        """Why the front should get no queries now."""
        try:
            self.check_open()
        except ShuttingDown as error:
            return error.message
        if not engines:
            return "no engine is there"
        waiting, most = self._waiting(follows, engines)
        return f"{waiting} queries are waiting (--max-waiting)" if waiting >= most else None

    def _waiting(self, follows: Iterable[Follow], engines: int) -> tuple[int, int]:
        """How many wait, and how many may, with those that find a free row."""
        waiting = running = 0
        for follow in follows:
            running += bool(follow.tokens)
            waiting += not follow.tokens and not follow.query.background
        return waiting, self._bound(engines) + max(0, engines * self._settings.max_rows - running)

    def _bound(self, engines: int) -> int:
        return engines * self._settings.max_waiting

    def _reject(self, reason: str, count: int) -> None:
        for sink in self.sinks:
            for _ in range(count):
                sink(QueryRejected(self._clock(), reason))
