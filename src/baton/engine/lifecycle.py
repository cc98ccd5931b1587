"""Every query's life: one table of legal moves, and the only place that changes a state or records a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from baton.core.clock import Clock
from baton.core.events import QueryEnded, QueryMoved, Sink, Usage
from baton.core.footprint import NOTHING, Footprint
from baton.core.query import Query, State
from baton.policy.port import QueryView

MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.PREFILLING, State.RUNNING}),
    State.PREFILLING: frozenset({State.READY, State.WAITING}),
    State.READY: frozenset({State.RUNNING, State.WAITING}),
    State.RUNNING: frozenset({State.READY}),
}
"""Besides these moves, any live state may end: finished, cancelled, failed, expired, moved."""

_QUEUED = (State.WAITING, State.PREFILLING, State.READY)
ENDS = frozenset({State.FINISHED, State.CANCELLED, State.FAILED, State.EXPIRED, State.MOVED})


class IllegalMove(RuntimeError):
    """A bug: a move that is not in the table."""


@dataclass(slots=True)
class QueryState:
    """One live query's state, times and counts. Only `Lifecycle` writes it.

    `view`: what policies see of it, made on demand and kept until something changes.
    """

    query: Query
    state: State
    since: float
    bytes_reserved: int = 0
    cached: int = 0
    generated: int = 0
    since_insert: int = 0
    preemptions: int = 0
    preempted: bool = False
    swapped_out: bool = False
    useful_slots: int = 0
    idle_slots: int = 0
    prefix_cached: int = 0
    seconds: dict[State, float] = field(default_factory=dict)
    first_token_at: float | None = None
    last_token_at: float | None = None
    gaps: list[float] = field(default_factory=list)
    view: QueryView | None = None

    def pending(self, stored: int = 0) -> int:
        """Returns how many tokens are left to feed. `stored`: of its prefix, for a query that waits."""
        return len(self.query.prompt) + self.generated - (self.cached or stored)


class Lifecycle:
    """The ledger of all queries: ended ones, counted by state, and live ones in order of arrival.

    `footprint`: of one query. `preempted`: how many live queries were running and wait to run again.
    """

    def __init__(self, clock: Clock, sinks: Iterable[Sink], footprint: Footprint = NOTHING) -> None:
        self._clock = clock
        self._sinks = tuple(sinks)
        self._footprint = footprint
        self._counts = dict.fromkeys(MOVES, 0)
        self.live: dict[str, QueryState] = {}
        self._background = 0  # live queries that wait for all others
        self.preempted = 0
        self.submitted = 0
        self.preemptions = 0
        self.prefix_cached_tokens = 0
        self.ended: dict[State, int] = dict.fromkeys(sorted(ENDS), 0)

    def arrive(self, query: Query, why: str = "arrived", *, generated: int = 0, cached: int = 0) -> None:
        """A query is new, or was live in another engine, which generated so many tokens.

        With keys and values of `cached` tokens it is as one that was swapped out here.
        """
        if query.id in self.live:
            raise IllegalMove(f"query {query.id} is here already")
        now = self._clock()
        reserved = self._footprint.of(len(query.prompt) + query.limit_tokens)
        state, swapped_out = (State.READY, True) if cached else (State.WAITING, False)
        self.live[query.id] = QueryState(
            query,
            state,
            query.arrived,
            reserved,
            cached,
            generated,
            preempted=swapped_out,
            swapped_out=swapped_out,
        )
        self.preempted += swapped_out
        self._counts[state] += 1
        self._background += query.background
        self.submitted += 1
        self._tell(QueryMoved(now, query.id, None, state, why, len(query.prompt), generated))

    def move(self, query_id: str, state: State, why: str) -> None:
        """Moves a query to another live state. Raises IllegalMove if the table does not have the move."""
        was = self.live[query_id].state
        if state not in MOVES[was]:
            raise IllegalMove(f"query {query_id}: {was} -> {state}")
        record, now = self._changing(query_id), self._clock()
        self._leaves(record)
        if was is State.RUNNING:
            record.preemptions += 1
            self.preemptions += 1
        if state is State.RUNNING:
            record.since_insert = 0
        record.swapped_out = was is State.RUNNING
        record.preempted = was is State.RUNNING or (record.preempted and state is not State.RUNNING)
        self.preempted += record.preempted
        self._counts[state] += 1
        record.seconds[was] = record.seconds.get(was, 0.0) + now - record.since
        record.state, record.since = state, now
        self._tell(QueryMoved(now, query_id, was, state, why, len(record.query.prompt), record.generated))

    def fed(self, query_id: str, cached: int, useful: int, idle: int) -> None:
        """Records computed token slots of this query; `cached` of its tokens have keys and values now."""
        record = self._changing(query_id)
        record.cached = cached
        record.useful_slots += useful
        record.idle_slots += idle

    def began_with(self, query_id: str, cached: int) -> None:
        """The query got keys and values of so many tokens without computing them."""
        record = self._changing(query_id)
        record.cached = cached
        record.prefix_cached += cached
        self.prefix_cached_tokens += cached

    def forgot(self, query_id: str) -> None:
        """The query's keys and values are gone; its tokens are not."""
        self._changing(query_id).cached = 0

    def token(self, query_id: str) -> None:
        """A token was drawn for this query."""
        record, now = self._changing(query_id), self._clock()
        record.generated += 1
        record.since_insert += 1
        if record.last_token_at is None:
            record.first_token_at = now
        else:
            record.gaps.append(now - record.last_token_at)
        record.last_token_at = now

    def end(self, query_id: str, state: State, reason: str) -> Usage:
        """The query leaves. `reason` is its finish reason, as clients see it."""
        if state not in ENDS:
            raise IllegalMove(f"query {query_id}: {self.live[query_id].state} -> {state} as an end")
        record, now = self.live.pop(query_id), self._clock()
        self._leaves(record)
        record.seconds[record.state] = record.seconds.get(record.state, 0.0) + now - record.since
        self.ended[state] += 1
        query = record.query
        self._background -= query.background
        usage = Usage(
            prompt_tokens=len(query.prompt),
            generated_tokens=record.generated,
            useful_slots=record.useful_slots,
            idle_slots=record.idle_slots,
            queue_seconds=record.seconds.get(State.WAITING, 0.0) + record.seconds.get(State.READY, 0.0),
            prefill_seconds=record.seconds.get(State.PREFILLING, 0.0),
            decode_seconds=record.seconds.get(State.RUNNING, 0.0),
            first_token_seconds=None if record.first_token_at is None else record.first_token_at - query.arrived,
            preemptions=record.preemptions,
            cached_tokens=min(record.prefix_cached, len(query.prompt)),
        )
        self._tell(QueryMoved(now, query_id, record.state, state, reason, len(query.prompt), record.generated))
        took, gaps = now - query.arrived, tuple(record.gaps)
        self._tell(QueryEnded(now, query_id, state, reason, usage, took, gaps, query.params, query.origin))
        return usage

    def views(self, state: State) -> tuple[QueryView, ...]:
        """Frozen views of all live queries in this state, in order of arrival; background queries come last."""
        views = tuple(record.view or self._make_view(record) for record in self.live.values() if record.state is state)
        # Most policies know no priorities and take the queries from the front.
        return tuple(sorted(views, key=lambda one: one.background)) if self._background else views

    def count(self, state: State) -> int:
        """How many live queries are in this state."""
        return self._counts[state]

    def queued(self) -> int:
        """How many live queries wait for a row, background queries aside."""
        count = sum(self._counts[state] for state in _QUEUED)
        if not self._background:
            return count
        return count - sum(one.query.background and one.state in _QUEUED for one in self.live.values())

    def _changing(self, query_id: str) -> QueryState:
        """Returns a record that is about to change; its view is not valid any more."""
        record = self.live[query_id]
        record.view = None
        return record

    def _leaves(self, record: QueryState) -> None:
        """Ends its counting in its present state."""
        self._counts[record.state] -= 1
        self.preempted -= record.preempted

    def _make_view(self, record: QueryState) -> QueryView:
        query = record.query
        record.view = QueryView(
            id=query.id,
            state=record.state,
            prompt_tokens=len(query.prompt),
            cached=record.cached,
            generated=record.generated,
            arrived=query.arrived,
            priority=query.priority,
            deadline=query.deadline,
            bytes_reserved=record.bytes_reserved,
            limit_tokens=query.limit_tokens,
            since_insert=record.since_insert if record.state is State.RUNNING else 0,
            swapped_out=record.swapped_out,
            user=query.user,
        )
        return record.view

    def _tell(self, event: QueryMoved | QueryEnded) -> None:
        for sink in self._sinks:
            sink(event)
