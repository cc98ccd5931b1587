"""Queries in the rows of a rectangle: placed, fed, drawn from, lifted out; batch and prefiller stand on it."""

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
    """`stamp` names model, dtype and shapes; segments must carry it. Row numbers never leave this class's callers.

    The batch and the prefiller may share one: each names the range of rows that is its own (`among`), and a forward may
    feed rows of both. `stepper`: when forwards are launched and their results taken; one after the other if left out.
    `copies`: how rows go to the host's memory and come back, if they are not there.
    """

    def __init__(
        self, feeder: RowFeeder, stamp: str, *, stepper: Stepper | None = None, copies: KVOffload | None = None
    ) -> None:
        self.rectangle = feeder.rectangle
        self.feeder = feeder
        self.stepper = stepper or SynchronousStepper(feeder)
        self.stamp = stamp
        self._occupants, self._row_of = feeder.occupants, feeder.row_of
        # Rows whose queries were lifted out, and whose keys and values the segment still lives in.
        self._borrowed: set[int] = set()
        self._copies = copies
        # Rows whose keys and values are on their way from the host.
        self._arriving: dict[int, KVLoad] = {}

    def lens(self, among: range) -> dict[str, int]:
        """Cached tokens of each query that is in these rows."""
        return {query_id: self.rectangle.lens[row] for query_id, row in self._row_of.items() if row in among}

    def free(self, among: range) -> list[int]:
        """Those of these rows that a query could have."""
        return [row for row in among if row not in self._occupants and row not in self._borrowed]

    def place(self, segment: KVSegment, among: range) -> None:
        """Into the first free one of these rows, keys and values copied; the segment is released."""
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
        # Half of a long text, or the beginning of a shorter one: by which length it was rotated is not known any more.
        unsure = limit is not None and segment.cached <= limit < len(segment.tokens)
        if segment.cached and not unsure:
            self._embed(segment, row)
        # In the batch it would else be fed from its first token on, one a step.
        recompute = segment.cached > 0 and unsure
        guide = Guide(query, segment.tokens[len(query.prompt) :]) if query.constraint is not None else None
        self._occupants[row] = RowState(query, segment.tokens, max(segment.computed, segment.cached), recompute, guide)
        self._row_of[query.id] = row
        segment.release()
        self.stepper.placed([row])

    def _embed(self, segment: KVSegment, row: int) -> None:
        """KV embedding: the row has what the segment has. Where it may, a row of this rectangle changes its number."""
        if segment.location is not None and segment.location[0] is self.rectangle:
            self._land(segment.location[1])
            if self.feeder.forward.swaps_rows:
                self.rectangle.swap_rows(row, segment.location[1])
                return
        try:
            if self._copies is not None and isinstance(segment.parts, OffloadedParts):
                self._arriving[row] = self._copies.into(segment.parts, self.rectangle.claim(row, segment.cached))
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
        del self._row_of[query_id], self._occupants[row]

    def lift(self, query_id: str, *, copy: bool) -> KVSegment:
        """The query's segment; it is not in any more. Not copied, it lives in its row until it is released."""
        row = self._find(query_id)
        self.stepper.leaving([row])
        if copy:
            self._land(row)
        found = self._occupants[row]
        # A row that holds no token has states all the same, of nobody.
        parts: Sequence[Tensor] = self.rectangle.view(row) if self.rectangle.lens[row] else []
        location: tuple[object, int] | None = None
        release: Callable[[], None] | None = None
        if not copy:
            location, release = (self.rectangle, row), partial(self._take_back, row)
        elif self._copies is not None and parts:
            parts = offloaded = self._copies.joined(self._copies.out(parts).pieces)
            release = partial(self._copies.release, offloaded)
        else:
            parts = [part.clone() for part in parts]
        cached = self.rectangle.lens[row]
        segment = KVSegment(found.query, found.tokens, self.stamp, cached, found.computed, parts, location, release)
        if copy:
            self.drop(query_id)
        else:
            self._borrowed.add(row)
            del self._row_of[query_id], self._occupants[row]
        return segment

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment where it is, and where it stays: its parts change with the row."""
        row = self._find(query_id)
        self._land(row)
        found = self._occupants[row]
        parts, cached = self.rectangle.view(row), self.rectangle.lens[row]
        return KVSegment(found.query, list(found.tokens), self.stamp, cached, found.computed, parts)

    def _land(self, row: int) -> None:
        """The row's keys and values are there for all that the device is given from now on."""
        if row in self._arriving:
            # It is on its way for as long as that may fail.
            self._arriving[row].land()
            del self._arriving[row]

    def _landed(self, most: Mapping[str, int]) -> Mapping[str, int]:
        """Those of these whose keys and values have come; all of them where none has, which the device waits for."""
        if not self._arriving:
            return most
        rows = {query_id: self._row_of[query_id] for query_id in most}
        late = {row for row in rows.values() if row in self._arriving and not self._arriving[row].done()}
        there = {query_id: count for query_id, count in most.items() if rows[query_id] not in late} or most
        for query_id in there:
            self._land(rows[query_id])
        return there

    def _clear(self, row: int) -> None:
        arrival = self._arriving.pop(row, None)
        if arrival is not None:
            arrival.cancel()
        self.rectangle.clear(row)

    def _take_back(self, row: int) -> None:
        self._clear(row)
        self._borrowed.discard(row)

    def pack(self, among: range, rows: int) -> None:
        """Moves those in these rows to free ones of the first `rows` of them. There must be enough."""
        self.stepper.leaving(among)
        free = iter(self.free(among[:rows]))
        for row in [row for row in self._occupants if row in among[rows:]]:
            target = next(free)
            self._land(row)
            if self.feeder.forward.swaps_rows:
                self.rectangle.swap_rows(row, target)
            else:
                self.rectangle.move(row, target)
            found = self._occupants[target] = self._occupants.pop(row)
            self._row_of[found.query.id] = target
        self.stepper.moved(among)

    def feed(self, most: Mapping[str, int], how: Feeding, done: Set[str] = frozenset()) -> StepOutput:
        """One forward: up to so many pending tokens of each named query; see `Batch.step` for `done`.

        A row that is still on its way from the host is fed nothing, unless nobody else is fed.
        """
        try:
            return self._once(most, how, done)
        except Exception as error:
            if not (out_of_memory(error) and self.rectangle.release_unused()):
                raise
        # What it could not have was kept for rows that nobody is in; a forward that ran out has fed nothing.
        return self._once(most, how, done)

    def _once(self, most: Mapping[str, int], how: Feeding, done: Set[str]) -> StepOutput:
        return self.stepper.step(lambda: self.feeder.spans(self._landed(most), done), how, done)

    def _find(self, query_id: str) -> int:
        if query_id not in self._row_of:
            raise Refused(f"query {query_id} is not in")
        return self._row_of[query_id]
