"""Queries in the rows of a rectangle: placed, fed, drawn from, lifted out. Batch and prefiller are built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial

from torch import Tensor

from baton.batch.feeder import RowFeeder
from baton.batch.row_state import RowState
from baton.batch.stepper import Stepper, SynchronousStepper
from baton.core.errors import Refused
from baton.core.step import Feeding, StepOutput
from baton.kv.budget import out_of_memory
from baton.kv.port import KVLoad, KVOffload, OffloadedParts
from baton.kv.segment import KVSegment
from baton.sampling.grammar_masks import Guide


class Rows:
    """`stamp` names model, dtype and shapes; segments must have the same. Row numbers are only used in the batch room.

    The batch and the prefiller may share one: each names its own range of rows (`among`), and a forward may feed rows
    of both. `stepper`: when forwards are launched and their results taken; by default one after the other. `offload`:
    copies rows to the host's memory and back, if they are not there.
    """

    def __init__(
        self, feeder: RowFeeder, stamp: str, *, stepper: Stepper | None = None, offload: KVOffload | None = None
    ) -> None:
        self.rectangle = feeder.rectangle
        self.feeder = feeder
        self.stepper = stepper or SynchronousStepper(feeder)
        self.stamp = stamp
        self._row_states, self._row_of = feeder.row_states, feeder.row_of
        # Rows whose queries were lifted out, but whose keys and values the segment still uses.
        self._borrowed: set[int] = set()
        self._offload = offload
        # Rows whose keys and values are being copied from the host.
        self._loads: dict[int, KVLoad] = {}

    def lens(self, among: range) -> dict[str, int]:
        """Cached tokens of each query that is in these rows."""
        return {query_id: self.rectangle.lens[row] for query_id, row in self._row_of.items() if row in among}

    def free(self, among: range) -> list[int]:
        """The rows among these that a query could have."""
        return [row for row in among if row not in self._row_states and row not in self._borrowed]

    def place(self, segment: KVSegment, among: range) -> None:
        """Puts a segment into the first free of these rows, copies its keys and values, and releases it."""
        query = segment.query
        row = max(self.free(among), key=self.rectangle.mapped_pages, default=None)
        if segment.stamp != self.stamp:
            raise Refused(f"query {query.id}: its segment is of {segment.stamp}, these rows of {self.stamp}")
        if query.id in self._row_of:
            raise Refused(f"query {query.id} is in already")
        if row is None:
            raise Refused(f"query {query.id}: no row is free")
        if len(segment.tokens) > self.rectangle.columns:
            raise Refused(f"query {query.id}: {len(segment.tokens)} tokens, {self.rectangle.columns} columns")
        limit = self.feeder.forward.recompute_limit
        # A cached prefix on either side of the LongRoPE limit may have been rotated with the other factors, so it is
        # recomputed.
        unsure = limit is not None and segment.cached <= limit < len(segment.tokens)
        if segment.cached and not unsure:
            self._embed(segment, row)
        # Otherwise the batch would feed it from its first token on, one a step.
        recompute = segment.cached > 0 and unsure
        guide = Guide(query, segment.tokens[len(query.prompt) :]) if query.constraint is not None else None
        self._row_states[row] = RowState(query, segment.tokens, max(segment.computed, segment.cached), recompute, guide)
        self._row_of[query.id] = row
        segment.release()
        self.stepper.placed([row])

    def _embed(self, segment: KVSegment, row: int) -> None:
        """KV embedding: gives the row the segment's keys and values.

        A row of this rectangle changes its number instead, if allowed.
        """
        if segment.location is not None and segment.location[0] is self.rectangle:
            self._land(segment.location[1])
            if self.feeder.forward.swaps_rows:
                self.rectangle.swap_rows(row, segment.location[1])
                return
        try:
            if self._offload is not None and isinstance(segment.parts, OffloadedParts):
                self._loads[row] = self._offload.into(segment.parts, self.rectangle.claim(row, segment.cached))
            else:
                self.rectangle.write(row, segment.parts, segment.cached)
        except Exception:
            self.rectangle.clear(row)
            raise

    def drop(self, query_id: str) -> None:
        """Frees the query's row."""
        row = self._find(query_id)
        self.stepper.leaving([row])
        self._clear(row)
        del self._row_of[query_id], self._row_states[row]

    def lift(self, query_id: str, *, copy: bool) -> KVSegment:
        """Takes the query out and returns its segment. Without `copy` the segment uses its row until it is released."""
        row = self._find(query_id)
        self.stepper.leaving([row])
        if copy:
            self._land(row)
        state = self._row_states[row]
        # A row without tokens still has states, which belong to no query.
        parts: Sequence[Tensor] = self.rectangle.view(row) if self.rectangle.lens[row] else []
        location: tuple[object, int] | None = None
        release: Callable[[], None] | None = None
        if not copy:
            location, release = (self.rectangle, row), partial(self._take_back, row)
        elif self._offload is not None and parts:
            parts = offloaded = self._offload.joined(self._offload.out(parts).pieces)
            release = partial(self._offload.release, offloaded)
        else:
            parts = [part.clone() for part in parts]
        cached = self.rectangle.lens[row]
        segment = KVSegment(state.query, state.tokens, self.stamp, cached, state.computed, parts, location, release)
        if copy:
            self.drop(query_id)
        else:
            self._borrowed.add(row)
            del self._row_of[query_id], self._row_states[row]
        return segment

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment, which stays in; its parts change with the row."""
        row = self._find(query_id)
        self._land(row)
        state = self._row_states[row]
        parts, cached = self.rectangle.view(row), self.rectangle.lens[row]
        return KVSegment(state.query, list(state.tokens), self.stamp, cached, state.computed, parts)

    def _land(self, row: int) -> None:
        """Makes the row's keys and values valid for all later work of the device."""
        if row in self._loads:
            # It stays in `_loads` as long as this may fail.
            self._loads[row].land()
            del self._loads[row]

    def _landed(self, most: Mapping[str, int]) -> Mapping[str, int]:
        """Returns the queries whose KV copy has finished.

        If none has, returns all; the device then waits for the copies.
        """
        if not self._loads:
            return most
        rows = {query_id: self._row_of[query_id] for query_id in most}
        late = {row for row in rows.values() if row in self._loads and not self._loads[row].done()}
        there = {query_id: count for query_id, count in most.items() if rows[query_id] not in late} or most
        for query_id in there:
            self._land(rows[query_id])
        return there

    def _clear(self, row: int) -> None:
        load = self._loads.pop(row, None)
        if load is not None:
            load.cancel()
        self.rectangle.clear(row)

    def _take_back(self, row: int) -> None:
        self._clear(row)
        self._borrowed.discard(row)

    def pack(self, among: range, rows: int) -> None:
        """Moves queries in these rows to free rows among the first `rows` of them. There must be enough."""
        self.stepper.leaving(among)
        free = iter(self.free(among[:rows]))
        for row in [row for row in self._row_states if row in among[rows:]]:
            target = next(free)
            self._land(row)
            if self.feeder.forward.swaps_rows:
                self.rectangle.swap_rows(row, target)
            else:
                self.rectangle.move(row, target)
            state = self._row_states[target] = self._row_states.pop(row)
            self._row_of[state.query.id] = target
        self.stepper.moved(among)

    def feed(self, most: Mapping[str, int], how: Feeding, done: Set[str] = frozenset()) -> StepOutput:
        """One forward: up to so many pending tokens of each named query; see `Batch.step` for `done`.

        A row that is still being copied from the host is fed nothing, unless all are.
        """
        try:
            return self._once(most, how, done)
        except Exception as error:
            if not (out_of_memory(error) and self.rectangle.release_unused()):
                raise
        # The memory was kept for rows without a query; a forward that ran out has fed nothing.
        return self._once(most, how, done)

    def _once(self, most: Mapping[str, int], how: Feeding, done: Set[str]) -> StepOutput:
        return self.stepper.step(lambda: self.feeder.spans(self._landed(most), done), how, done)

    def _find(self, query_id: str) -> int:
        if query_id not in self._row_of:
            raise Refused(f"query {query_id} is not in")
        return self._row_of[query_id]
