"""Queries in the rows of a rectangle: placed, fed, drawn from, lifted out; batch and prefiller stand on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import Tensor

from baton.errors import Refused
from baton.kv.rectangle import Rectangle
from baton.kv.segment import KVSegment
from baton.model.attention import Span
from baton.model.forward import Forward
from baton.model.sample import Draw, Sampler
from baton.query import Query
from baton.work import Feeding, Stepped


@dataclass(slots=True)
class _Occupant:
    """Who is in a row: the tokens so far, of which the rectangle holds the first `lens[row]`."""

    query: Query
    tokens: list[int]
    computed: int

    @property
    def draw(self) -> Draw:
        return Draw(self.query.params, self.query.seed, self.tokens, len(self.query.prompt))


class Rows:
    """`stamp` names model, dtype and shapes; segments must carry it. Row numbers never leave this class's callers.

    The batch and the prefiller may share one: each names the range of rows that is its own (`among`), and a forward may
    feed rows of both.
    """

    def __init__(self, rectangle: Rectangle, forward: Forward, sampler: Sampler, stamp: str) -> None:
        self.rectangle = rectangle
        self._forward = forward
        self._sampler = sampler
        self._stamp = stamp
        self._occupants: dict[int, _Occupant] = {}
        self._row_of: dict[str, int] = {}
        # Rows whose queries were lifted out, and whose keys and values the segment still lives in.
        self._lent: set[int] = set()

    def lens(self, among: range) -> dict[str, int]:
        """Cached tokens of each query that is in these rows."""
        return {query_id: self.rectangle.lens[row] for query_id, row in self._row_of.items() if row in among}

    def free(self, among: range) -> list[int]:
        """Those of these rows that a query could have."""
        return [row for row in among if row not in self._occupants and row not in self._lent]

    def place(self, segment: KVSegment, among: range) -> None:
        """Into the first free one of these rows, keys and values copied; the segment is released."""
        query = segment.query
        row = next(iter(self.free(among)), None)
        if segment.stamp != self._stamp:
            raise Refused(f"query {query.id}: its segment is of {segment.stamp}, these rows of {self._stamp}")
        if query.id in self._row_of:
            raise Refused(f"query {query.id} is in already")
        if row is None:
            raise Refused(f"query {query.id}: no row is free")
        if len(segment.tokens) > self.rectangle.columns:
            raise Refused(f"query {query.id}: {len(segment.tokens)} tokens, {self.rectangle.columns} columns")
        if segment.cached:
            self.rectangle.write(row, segment.parts, segment.cached)
        self._occupants[row] = _Occupant(query, segment.tokens, max(segment.computed, segment.cached))
        self._row_of[query.id] = row
        segment.release()

    def drop(self, query_id: str) -> None:
        """Frees the query's row."""
        row = self._find(query_id)
        self.rectangle.clear(row)
        del self._row_of[query_id], self._occupants[row]

    def lift(self, query_id: str, *, copy: bool) -> KVSegment:
        """The query's segment; it is not in any more. Not copied, it lives in its row until it is released."""
        row = self._find(query_id)
        found = self._occupants[row]
        parts = self.rectangle.view(row)
        segment = KVSegment(
            query=found.query,
            tokens=found.tokens,
            stamp=self._stamp,
            cached=self.rectangle.lens[row],
            computed=found.computed,
            parts=[part.clone() for part in parts] if copy else parts,
            on_release=None if copy else lambda: self._take_back(row),
        )
        if copy:
            self.drop(query_id)
        else:
            self._lent.add(row)
            del self._row_of[query_id], self._occupants[row]
        return segment

    def _take_back(self, row: int) -> None:
        self.rectangle.clear(row)
        self._lent.discard(row)

    def pack(self, among: range, rows: int) -> None:
        """Moves those in these rows to free ones of the first `rows` of them. There must be enough."""
        free = iter(self.free(among[:rows]))
        for row in [row for row in self._occupants if row in among[rows:]]:
            target = next(free)
            self.rectangle.move(row, target)
            found = self._occupants[target] = self._occupants.pop(row)
            self._row_of[found.query.id] = target

    def feed(self, most: Mapping[str, int], how: Feeding, done: Set[str] = frozenset()) -> Stepped:
        """One forward: up to so many pending tokens of each named query; see `Batch.step` for `done`."""
        spans = [self._span(row, most, done) for row in sorted(self._row_of[query_id] for query_id in most)]
        tokens = [t for s in spans for t in self._occupants[s.row].tokens[s.start : s.stop]]
        one_each = all(span.count == 1 for span in spans)
        if how is Feeding.SELECTIVE or (how is Feeding.RAGGED and not one_each):
            logits, shape = self._forward.fill(self.rectangle, spans, tokens)
        elif one_each:
            logits, shape = self._forward.decode(self.rectangle, spans, tokens)
        else:
            logits, shape = self._forward.padded(self.rectangle, spans, tokens)
        width = max(span.count for span in spans) if how is Feeding.PADDED else 0
        stepped = self._count(spans, done, width)
        stepped.slots.columns_padding = shape.columns_read - stepped.slots.columns_needed
        self._advance(spans, done, logits, stepped)
        return stepped

    def _span(self, row: int, most: Mapping[str, int], done: Set[str]) -> Span:
        found, start = self._occupants[row], self.rectangle.lens[row]
        if found.query.id in done:
            # Its last cached token again, in its own column: computed, and no use to anyone.
            return Span(row, max(start - 1, 0), 1)
        return Span(row, start, min(most[found.query.id], len(found.tokens) - start))

    def _count(self, spans: Sequence[Span], done: Set[str], width: int) -> Stepped:
        """Every slot that was computed, by kind, and each query's share; `width`: what rows were padded to, or 0."""
        stepped = Stepped()
        slots = stepped.slots
        for span in spans:
            found = self._occupants[span.row]
            padding = max(width - span.count, 0)
            slots.padding += padding
            if found.query.id in done:
                slots.finished_row += span.count
                continue
            again = max(0, min(span.stop, found.computed) - span.start)
            slots.recomputed += again
            slots.useful += span.count - again
            slots.columns_needed += span.stop
            stepped.shares[found.query.id] = (span.count - again, again + padding)
        return stepped

    def _advance(self, spans: Sequence[Span], done: Set[str], logits: Tensor, stepped: Stepped) -> None:
        """Rows are as long as what they were fed; those that ran out of pending tokens draw the next."""
        fed = [(index, span, self._occupants[span.row]) for index, span in enumerate(spans)]
        fed = [(index, span, found) for index, span, found in fed if found.query.id not in done]
        drawing = [(index, found) for index, span, found in fed if span.stop == len(found.tokens)]
        # Drawn before anything is changed, so that a step that raises has fed nothing.
        drawn: list[int | None] = []
        if drawing:
            picked = logits if len(drawing) == len(spans) else logits[[index for index, _ in drawing]]
            drawn = self._sampler(picked, [found.draw for _, found in drawing])
        for _, span, found in fed:
            self.rectangle.lens[span.row] = span.stop
            found.computed = max(found.computed, span.stop)
        for (_, found), token in zip(drawing, drawn, strict=True):
            if token is None:
                stepped.failed[found.query.id] = "the model's output for this query is not finite"
            else:
                found.tokens.append(token)
                stepped.tokens[found.query.id] = token

    def _find(self, query_id: str) -> int:
        if query_id not in self._row_of:
            raise Refused(f"query {query_id} is not in")
        return self._row_of[query_id]
