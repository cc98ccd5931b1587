"""The only object that two threads touch: what has arrived since the engine's last iteration."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from baton.core.events import Update
from baton.core.query import Query

if TYPE_CHECKING:  # clients of the engine import this, and need no torch
    from baton.kv.segment import KVSegment

Deliver = Callable[[list[Update]], None]
"""Called in the engine's thread, once per iteration, with all updates for one subscriber."""


@dataclass(frozen=True, slots=True)
class Giving:
    """Somebody wants these queries' segments; all, if `query_ids` is None."""

    query_ids: Sequence[str] | None
    segments: Future[list[KVSegment]]


def is_counted(one: Query | KVSegment) -> bool:
    """Whether a query counts as waiting while it has no row: a background query does not."""
    return not (one if isinstance(one, Query) else one.query).background


class Inbox:
    """Queries to run or to resume, ids to cancel and to give. Any thread puts them in; the engine's takes them out."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._queries: list[tuple[Query | KVSegment, Deliver]] = []
        self._givings: list[Giving] = []
        self._cancelled: list[str] = []
        self._woken = False

    def __len__(self) -> int:
        """The number of queries."""
        return len(self._queries)

    def counted(self) -> int:
        """The number of queries that count as waiting: background queries do not."""
        return sum(is_counted(one) for one, _ in self._queries)

    def put(self, queries: Sequence[Query | KVSegment], deliver: Deliver) -> None:
        with self._news:
            self._queries.extend((query, deliver) for query in queries)
            self._news.notify()

    def cancel(self, query_ids: Sequence[str]) -> None:
        with self._news:
            self._cancelled.extend(query_ids)
            self._news.notify()

    def give(self, giving: Giving) -> None:
        with self._news:
            self._givings.append(giving)
            self._news.notify()

    def take(self) -> tuple[list[tuple[Query | KVSegment, Deliver]], list[str], list[Giving]]:
        """Returns everything that came in, in order, and empties the box."""
        with self._news:
            queries, self._queries = self._queries, []
            cancelled, self._cancelled = self._cancelled, []
            givings, self._givings = self._givings, []
        return queries, cancelled, givings

    def wait(self, timeout_seconds: float) -> None:
        """Returns when something is in, when `wake` is called or has been called since, or after the timeout."""
        with self._news:
            if not self._queries and not self._cancelled and not self._givings and not self._woken:
                self._news.wait(timeout_seconds)
            self._woken = False

    def wake(self) -> None:
        with self._news:
            self._woken = True
            self._news.notify()
