"""A batch and a prefiller without a model: tokens from a function, seconds from a model of costs.

For tests of policies and for simulation: the engine cannot tell them from real ones. Nothing is sampled: `say` returns
the next token, whatever a query's sampling parameters are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from baton.core.errors import Refused
from baton.core.footprint import Footprint
from baton.core.step import Chunk, Feeding, StepCost, StepOutput
from baton.kv.segment import KVSegment
from baton.testing.clock import ManualClock


class Costs(Protocol):
    """Says how long a forward takes, on a fake batch's clock."""

    def of(self, cost: StepCost) -> float:
        """Seconds of a forward."""


Say = Callable[[Sequence[int]], int | None]
"""Returns the next token after these; None if a model's output would not be finite.

If it raises, the forward raises.
"""


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a forward: fixed ones, and for each row, each token slot, and each column that a row reads."""

    fixed_seconds: float = 0.0
    row_seconds: float = 0.0
    slot_seconds: float = 0.0
    column_seconds: float = 0.0

    def of(self, cost: StepCost) -> float:
        tokens = self.row_seconds * cost.rows + self.slot_seconds * cost.slots
        return self.fixed_seconds + tokens + self.column_seconds * cost.columns


class FakeDevice:
    """What a batch and a prefiller share: all segments that are in, and the clock that forwards move.

    `columns`: the most tokens of a segment. `footprint`: the bytes of one; they are counted, not allocated.
    """

    def __init__(
        self, *, say: Say, costs: Costs, clock: ManualClock, columns: int, footprint: Footprint, stamp: str = "fake"
    ) -> None:
        self.columns = columns
        self.footprint = footprint
        self.stamp = stamp
        self.segments: dict[str, KVSegment] = {}
        self._say = say
        self._costs = costs
        self._clock = clock

    def place(self, segment: KVSegment, free: int) -> None:
        name = segment.query.id
        if segment.stamp != self.stamp:
            raise Refused(f"query {name}: its segment is of {segment.stamp}, these rows of {self.stamp}")
        if name in self.segments:
            raise Refused(f"query {name} is in already")
        if free < 1:
            raise Refused(f"query {name}: no row is free")
        if len(segment.tokens) > self.columns:
            raise Refused(f"query {name}: {len(segment.tokens)} tokens, {self.columns} columns")
        computed = max(segment.computed, segment.cached)
        self.segments[name] = replace(segment, computed=computed, parts=(), on_release=None)
        segment.release()

    def lifted(self, query_id: str, *, keep: bool = True) -> KVSegment:
        """The segment outside the batch; without `keep`, its tokens alone."""
        segment = self.segments[query_id]
        if not keep:
            return replace(segment, cached=0)
        return replace(segment, parts=_parts(self.footprint, segment.cached) if segment.cached else ())

    def feed(self, most: Mapping[str, int], how: Feeding, done: Set[str] = frozenset()) -> StepOutput:
        """One forward; see `Batch.step`. One that raises has fed nothing."""
        counts = {
            name: 1 if name in done else min(tokens, self.segments[name].pending) for name, tokens in most.items()
        }
        going = {name: (self.segments[name], count) for name, count in counts.items() if name not in done}
        drawn = {name: self._say(seg.tokens) for name, (seg, count) in going.items() if count == seg.pending}
        output = self._count(counts, max(counts.values()) if how is Feeding.PADDED else 0, done)
        attended = [(count, self.segments[name].cached) for name, count in counts.items()]
        for segment, count in going.values():
            segment.cached += count
            segment.computed = max(segment.computed, segment.cached)
        for name, token in drawn.items():
            if token is None:
                output.failed[name] = "the model's output for this query is not finite"
            else:
                self.segments[name].tokens.append(token)
                output.tokens[name] = token
        slots = output.slots
        cost = StepCost(
            rows=len(counts),
            slots=slots.useful + slots.idle,
            columns=slots.columns_needed,
            single_columns=sum(cached + 1 for count, cached in attended if count == 1),
            pairs=sum(count * (cached + count / 2) for count, cached in attended if count > 1),
            finished=sum(name in done for name in counts),
        )
        self._clock.advance(self._costs.of(cost))
        return output

    def _count(self, counts: Mapping[str, int], width: int, done: Set[str]) -> StepOutput:
        """Counts slots by kind, and each query's share; `width`: what rows are padded to, or 0."""
        output = StepOutput()
        for name, count in counts.items():
            segment, padding = self.segments[name], max(width - count, 0)
            output.slots.padding += padding
            if name in done:
                output.slots.finished_row += count
                continue
            again = max(0, min(segment.cached + count, segment.computed) - segment.cached)
            output.slots.recomputed += again
            output.slots.useful += count - again
            output.slots.columns_needed += segment.cached + count
            output.shares[name] = (count - again, again + padding)
        return output


def _parts(footprint: Footprint, tokens: int) -> list[torch.Tensor]:
    """What a row of so many tokens keeps, as tensors without memory: only their sizes are used."""
    columns = [(min(tokens, c.most) if c.most else tokens, c.token_bytes * c.count) for c in footprint.columns]
    sizes = [*columns, (footprint.state_bytes,)] if footprint.state_bytes else columns
    return [torch.empty(size, dtype=torch.uint8, device="meta") for size in sizes]


class _Segments:
    """Some of a device's segments, by the id of their query."""

    def __init__(self, device: FakeDevice) -> None:
        self._device = device
        self._names: dict[str, None] = {}

    @property
    def lens(self) -> Mapping[str, int]:
        return {name: self._device.segments[name].cached for name in self._names}

    @property
    def bytes_used(self) -> int:
        return sum(map(self._device.footprint.of, self.lens.values()))

    def peek(self, query_id: str) -> KVSegment:
        return self._device.lifted(self._mine(query_id))

    def _place(self, segment: KVSegment, places: int) -> None:
        name = segment.query.id
        self._device.place(segment, places - len(self._names))
        self._names[name] = None

    def _lift(self, query_id: str, *, keep: bool = True) -> KVSegment:
        segment = self._device.lifted(self._mine(query_id), keep=keep)
        del self._names[query_id], self._device.segments[query_id]
        return segment

    def _mine(self, query_id: str) -> str:
        if query_id not in self._names:
            raise Refused(f"query {query_id} is not in")
        return query_id


class FakeBatch(_Segments):
    """See `batch/port.py` for the verbs. It has `rows` at first and at most."""

    def __init__(self, device: FakeDevice, rows: int) -> None:
        super().__init__(device)
        self.rows = self._most = rows

    @property
    def columns(self) -> int:
        return max(self.lens.values(), default=0)

    def insert(self, segment: KVSegment) -> None:
        self._place(segment, self.rows)

    def remove(self, query_id: str) -> None:
        self._lift(query_id, keep=False)

    def detach(self, query_id: str, *, keep: bool = True) -> KVSegment:
        return self._lift(query_id, keep=keep)

    def resize(self, rows: int) -> None:
        if not max(len(self._names), 1) <= rows <= self._most:
            raise Refused(f"{rows} rows: {len(self._names)} are running, and at most {self._most} are reserved")
        self.rows = rows

    def step(
        self, feed: int, how: Feeding, done: Set[str] = frozenset(), beside: Mapping[str, int] | None = None
    ) -> StepOutput:
        if not self._names:
            raise Refused("the batch is empty")
        if min([feed, *(beside or {}).values()]) < 1:
            raise Refused("a row cannot be fed less than one token")
        return self._device.feed({**dict.fromkeys(self._names, feed), **(beside or {})}, how, done)


class FakePrefill(_Segments):
    """See `batch/port.py`. It has so many `places`, on the batch's own device or on another one."""

    def __init__(self, device: FakeDevice, places: int, *, beside_batch: bool = True) -> None:
        super().__init__(device)
        self.beside_batch = beside_batch
        self._most = places

    @property
    def room(self) -> int:
        return self._most - len(self._names)

    def start(self, segment: KVSegment) -> None:
        self._place(segment, self._most)

    def advance(self, chunks: Sequence[Chunk]) -> StepOutput:
        if not chunks:
            raise Refused("no chunk to prefill")
        return self._device.feed({self._mine(chunk.query_id): chunk.tokens for chunk in chunks}, Feeding.RAGGED)

    def take(self, query_id: str) -> KVSegment:
        return self._lift(query_id)
