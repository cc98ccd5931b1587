"""Where every live query is, and its moves from place to place. Each move happens whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from baton.batch.port import Batch, Prefiller
from baton.core.errors import Refused
from baton.core.events import RESUMED
from baton.core.query import Query, State
from baton.core.step import MEMORY
from baton.engine.inbox import Deliver
from baton.engine.lifecycle import Lifecycle
from baton.engine.output import OutputProcessor
from baton.engine.prefixes import Prefixes
from baton.kv.budget import out_of_memory
from baton.kv.pool import SegmentPool
from baton.kv.segment import KVSegment, arrived


@dataclass(slots=True)
class Queries:
    """A query is in the pool (waiting or swapped out), the prefiller (prefilling or ready), or the batch (running).

    `held`: finished queries whose rows are held, as the plan asked.
    """

    batch: Batch
    prefiller: Prefiller
    pool: SegmentPool
    lifecycle: Lifecycle
    outputs: OutputProcessor
    stamp: str
    prefixes: Prefixes = field(default_factory=Prefixes)
    held: dict[str, Query] = field(default_factory=dict)

    @property
    def row_bytes(self) -> int:
        """Bytes of all rows, including the prefiller's."""
        return self.batch.bytes_used + self.prefiller.bytes_used

    def arrive(self, query: Query, deliver: Deliver) -> None:
        """The query waits from now on."""
        self._take_in(arrived(query, self.stamp), deliver, "arrived")

    def resume(self, segment: KVSegment, deliver: Deliver) -> None:
        """Takes in a query that was live in another engine, with its keys and values if they are this model's.

        If the query is still here, because its client lost the connection and not the engine, that one ends.
        """
        # Choices of a prompt go on each by itself.
        segment.query = replace(segment.query, sibling_of="")
        if segment.query.id in self.lifecycle.live:
            self.end(segment.query.id, State.CANCELLED, "cancelled")
        if segment.stamp != self.stamp or not self.pool.fits(segment.bytes):
            segment.release()
            segment.stamp = self.stamp
        self._take_in(segment, deliver, RESUMED)

    def give(self, query_id: str) -> KVSegment:
        """Removes a live query, to go on in another engine. Returns its segment, which the caller owns."""
        query = self.lifecycle.live[query_id].query
        segment = self._given(query_id)
        self.prefixes.ended(query)
        usage = self.lifecycle.end(query_id, State.MOVED, "moved")
        self.outputs.close(query_id, "moved", None, usage)
        return segment

    def start_prefill(self, query_id: str, why: str) -> bool:
        """Moves a query from the pool to the prefiller. Returns whether there was memory for it."""
        return self._hand_on(query_id, self.prefiller.start, State.PREFILLING, why)

    def insert(self, query_id: str, why: str) -> bool:
        """Moves a query from the pool or the prefiller into the batch. Returns whether there was memory for it."""
        if self.lifecycle.live[query_id].state is State.PREFILLING:
            raise Refused(f"query {query_id} is not prefilled yet")
        return self._hand_on(query_id, self.batch.insert, State.RUNNING, why)

    def swap_out(self, query_id: str, reason: str) -> None:
        """Moves a query and its keys and values from the batch to the pool. If memory lacks, they are forgotten."""
        try:
            size = self.batch.peek(query_id).bytes
            self.limit_prefixes(size)
            # Nothing is copied that cannot be kept.
            segment = self.batch.detach(query_id, keep=self.pool.fits(size))
        except Exception as error:
            if not out_of_memory(error):
                raise
            segment = self.batch.detach(query_id, keep=False)
        self.lifecycle.move(query_id, State.READY, reason)
        try:
            self.pool.put(segment)
        except Refused:
            self._put_emptied(segment)
        if not segment.cached:
            self._forgotten(query_id, reason)

    def forget(self, query_id: str, reason: str) -> None:
        """Moves a query from anywhere to the pool with its tokens alone. It is recomputed when it has a row again."""
        if self.lifecycle.live[query_id].state is State.RUNNING:
            segment = self.batch.detach(query_id, keep=False)
            self.lifecycle.move(query_id, State.READY, reason)
        else:
            segment = self._take(query_id)
        self._put_emptied(segment)
        self._forgotten(query_id, reason)

    def end(
        self,
        query_id: str,
        state: State,
        reason: str,
        error: str | None = None,
        *,
        hold: bool = False,
        infeasible: bool = False,
    ) -> None:
        """Ends a query wherever it is. Its row and memory are freed, unless the row is to be held."""
        record = self.lifecycle.live[query_id]
        try:
            if record.state is not State.RUNNING:
                self._take(query_id).release()
                return
            if state is State.FINISHED:
                self.prefixes.keep(self.batch.peek(query_id))
            if hold:
                self.held[query_id] = record.query
            else:
                self.batch.remove(query_id)
        finally:
            self.prefixes.ended(record.query)
            usage = self.lifecycle.end(query_id, state, reason)
            self.outputs.close(query_id, reason, error, usage, infeasible=infeasible)

    def fail(self, query_id: str, why: str) -> None:
        self.end(query_id, State.FAILED, "error", why)

    def give_up(self, query_id: str, why: str) -> None:
        """Ends a query that cannot go on as it was asked. The engine has not failed, so it counts as cancelled."""
        self.end(query_id, State.CANCELLED, "error", why, infeasible=True)

    def fed(self, query_id: str, cached: int, useful: int, idle: int) -> None:
        """Records computed token slots. Others may begin with its prompt, or with what can be kept of it so far."""
        record = self.lifecycle.live[query_id]
        was = record.cached
        self.lifecycle.fed(query_id, cached, useful, idle)
        if self.prefixes.wants(record.query, was, cached):
            place = self.batch if record.state is State.RUNNING else self.prefiller
            self.prefixes.keep(place.peek(query_id))

    def limit_prefixes(self, wanted: int = 0) -> None:
        """Limits stored prefixes to what the pool has left if `wanted` more bytes are put into it."""
        self.prefixes.limit(self.pool.bytes_most - self.pool.bytes_used - wanted)

    def release_held(self) -> None:
        for query_id in self.held:
            self.batch.remove(query_id)
        self.held.clear()

    def _take_in(self, segment: KVSegment, deliver: Deliver, why: str) -> None:
        query = segment.query
        self.outputs.open(query, deliver, segment.tokens[len(query.prompt) :])
        self.lifecycle.arrive(query, why, generated=segment.generated, cached=segment.cached)
        self.pool.put(segment)
        self.prefixes.arrived(query)

    def _given(self, query_id: str) -> KVSegment:
        """A live query's segment in memory of its own; without keys and values if there is no memory for them."""
        if self.lifecycle.live[query_id].state is not State.RUNNING:
            segment = self._take(query_id)
            try:
                return segment.owned()
            except Exception as error:
                segment.release()
                if not out_of_memory(error):
                    raise
                return segment
        try:
            return self.batch.detach(query_id, keep=True)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return self.batch.detach(query_id, keep=False)

    def _take(self, query_id: str) -> KVSegment:
        return self.pool.pop(query_id) if query_id in self.pool else self.prefiller.take(query_id)

    def _hand_on(self, query_id: str, place: Callable[[KVSegment], None], state: State, why: str) -> bool:
        """If there is no memory for it, it waits in the pool, forgotten."""
        segment = self._take(query_id)
        cached = self.prefixes.begin(segment)
        try:
            place(segment)
        except Exception as error:
            self._put_emptied(segment)
            if not out_of_memory(error):
                raise
            if self.lifecycle.live[query_id].state is not State.WAITING:
                self._forgotten(query_id, MEMORY)
            return False
        self.prefixes.begun(segment.query)
        if cached:
            self.lifecycle.began_with(query_id, cached)
        self.lifecycle.move(query_id, state, why)
        return True

    def _put_emptied(self, segment: KVSegment) -> None:
        segment.release()
        self.pool.put(segment)

    def _forgotten(self, query_id: str, reason: str) -> None:
        self.lifecycle.forgot(query_id)
        self.lifecycle.move(query_id, State.WAITING, reason)
