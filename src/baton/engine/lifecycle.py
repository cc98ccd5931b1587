"""Every query's life: one table of legal moves, and the only place that changes a state or stamps a time."""

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
"""Besides these, any live state may end: finished, cancelled, failed, expired."""

ENDS = frozenset({State.FINISHED, State.CANCELLED, State.FAILED, State.EXPIRED})


class IllegalMove(RuntimeError):
    """A bug: a move that is not in the table."""


@dataclass(slots=True)
class QueryState:
    """One live query's state, times and counts. Only `Lifecycle` writes it.

    `standing`: what policies see of it, made when it is asked for and kept until something changes.
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
    standing: QueryView | None = None

    def pending(self, stored: int = 0) -> int:
        """Returns how many tokens are left to feed. `stored`: of its prefix, for a query that waits."""
        return len(self.query.prompt) + self.generated - (self.cached or stored)


class Lifecycle:
    """The ledger of all queries: those that ended, counted by state, and the live ones in order of arrival.

    `footprint`: what one takes. `preempted`: live queries that were running and wait to run again.
    """

    def __init__(self, clock: Clock, sinks: Iterable[Sink], footprint: Footprint = NOTHING) -> None:
        self._clock = clock
        self._sinks = tuple(sinks)
        self._footprint = footprint
        self._counts = dict.fromkeys(MOVES, 0)
        self.live: dict[str, QueryState] = {}
        self.preempted = 0
        self.submitted = 0
        self.preemptions = 0
        self.prefix_cached_tokens = 0
        self.ended: dict[State, int] = dict.fromkeys(sorted(ENDS), 0)

    def arrive(self, query: Query) -> None:
        if query.id in self.live:
            raise IllegalMove(f"query {query.id} is here already")
        now = self._clock()
        reserved = self._footprint.of(len(query.prompt) + query.limit_tokens)
        self.live[query.id] = QueryState(query, State.WAITING, query.arrived, reserved)
        self._counts[State.WAITING] += 1
        self.submitted += 1
        self._tell(QueryMoved(now, query.id, None, State.WAITING, "arrived", len(query.prompt), 0))

    def move(self, query_id: str, state: State, why: str) -> None:
        """To another live state. Raises IllegalMove for one that the table does not have."""
        was = self.live[query_id].state
        if state not in MOVES[was]:
            raise IllegalMove(f"query {query_id}: {was} -> {state}")
        life, now = self._changing(query_id), self._clock()
        self._leaves(life)
        if was is State.RUNNING:
            life.preemptions += 1
            self.preemptions += 1
        if state is State.RUNNING:
            life.since_insert = 0
        life.swapped_out = was is State.RUNNING
        life.preempted = was is State.RUNNING or (life.preempted and state is not State.RUNNING)
        self.preempted += life.preempted
        self._counts[state] += 1
        life.seconds[was] = life.seconds.get(was, 0.0) + now - life.since
        life.state, life.since = state, now
        self._tell(QueryMoved(now, query_id, was, state, why, len(life.query.prompt), life.generated))

    def fed(self, query_id: str, cached: int, useful: int, idle: int) -> None:
        """Token slots were computed for this query; `cached` of its tokens have keys and values now."""
        life = self._changing(query_id)
        life.cached = cached
        life.useful_slots += useful
        life.idle_slots += idle

    def began_with(self, query_id: str, cached: int) -> None:
        """The query has keys and values of so many tokens that it did not compute itself."""
        life = self._changing(query_id)
        life.cached = cached
        life.prefix_cached += cached
        self.prefix_cached_tokens += cached

    def forgot(self, query_id: str) -> None:
        """The query's keys and values are gone; its tokens are not."""
        self._changing(query_id).cached = 0

    def token(self, query_id: str) -> None:
        """A token was drawn for this query."""
        life, now = self._changing(query_id), self._clock()
        life.generated += 1
        life.since_insert += 1
        if life.last_token_at is None:
            life.first_token_at = now
        else:
            life.gaps.append(now - life.last_token_at)
        life.last_token_at = now

    def end(self, query_id: str, state: State, reason: str) -> Usage:
        """The query leaves. `reason` is its finish reason, as clients see it."""
        if state not in ENDS:
            raise IllegalMove(f"query {query_id}: {self.live[query_id].state} -> {state} as an end")
        life, now = self.live.pop(query_id), self._clock()
        self._leaves(life)
        life.seconds[life.state] = life.seconds.get(life.state, 0.0) + now - life.since
        self.ended[state] += 1
        query = life.query
        usage = Usage(
            prompt_tokens=len(query.prompt),
            generated_tokens=life.generated,
            useful_slots=life.useful_slots,
            idle_slots=life.idle_slots,
            queue_seconds=life.seconds.get(State.WAITING, 0.0) + life.seconds.get(State.READY, 0.0),
            prefill_seconds=life.seconds.get(State.PREFILLING, 0.0),
            decode_seconds=life.seconds.get(State.RUNNING, 0.0),
            first_token_seconds=None if life.first_token_at is None else life.first_token_at - query.arrived,
            preemptions=life.preemptions,
            cached_tokens=min(life.prefix_cached, len(query.prompt)),
        )
        self._tell(QueryMoved(now, query_id, life.state, state, reason, len(query.prompt), life.generated))
        self._tell(QueryEnded(now, query_id, state, reason, usage, now - query.arrived, tuple(life.gaps)))
        return usage

    def standings(self, state: State) -> tuple[QueryView, ...]:
        """Frozen standings of all live queries in this state, in order of arrival."""
        return tuple(life.standing or self._stand(life) for life in self.live.values() if life.state is state)

    def count(self, state: State) -> int:
        """How many live queries are in this state."""
        return self._counts[state]

    def _changing(self, query_id: str) -> QueryState:
        """A life that is about to change: what was told of its standing holds no longer."""
        life = self.live[query_id]
        life.standing = None
        return life

    def _leaves(self, life: QueryState) -> None:
        """It is not counted where it is any more."""
        self._counts[life.state] -= 1
        self.preempted -= life.preempted

    def _stand(self, life: QueryState) -> QueryView:
        query = life.query
        life.standing = QueryView(
            id=query.id,
            state=life.state,
            prompt_tokens=len(query.prompt),
            cached=life.cached,
            generated=life.generated,
            arrived=query.arrived,
            priority=query.priority,
            deadline=query.deadline,
            bytes_reserved=life.bytes_reserved,
            limit_tokens=query.limit_tokens,
            since_insert=life.since_insert if life.state is State.RUNNING else 0,
            swapped_out=life.swapped_out,
            user=query.user,
        )
        return life.standing

    def _tell(self, event: QueryMoved | QueryEnded) -> None:
        for sink in self._sinks:
            sink(event)
