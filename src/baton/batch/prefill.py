"""Prefill on the engine's own device and thread, in rows apart from the running batch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baton.batch.rows import Rows
from baton.core.errors import Refused
from baton.core.step import Chunk, Feeding, StepOutput
from baton.kv.rectangle import Rectangle
from baton.kv.segment import KVSegment


class PrefillHere:
    """See `batch/port.py`. It has the rows `among`. If the batch is on the same `Rows`, one step may feed both.

    Chunks of several prompts go through the model packed flat, without padding.
    """

    def __init__(self, rows: Rows, among: range, *, beside_batch: bool) -> None:
        self.beside_batch = beside_batch
        self._rows = rows
        self._among = among

    @property
    def rectangle(self) -> Rectangle:
        """What its rows lie in."""
        return self._rows.rectangle

    @property
    def room(self) -> int:
        return len(self._rows.free(self._among))

    @property
    def bytes_used(self) -> int:
        return self._rows.rectangle.bytes_of(self._among)

    @property
    def lens(self) -> Mapping[str, int]:
        return self._rows.lens(self._among)

    def start(self, segment: KVSegment) -> None:
        self._rows.place(segment, self._among)

    def advance(self, chunks: Sequence[Chunk]) -> StepOutput:
        mine = self.lens
        unknown = [chunk.query_id for chunk in chunks if chunk.query_id not in mine]
        if unknown or not chunks:
            raise Refused(f"query {unknown[0]} is not being prefilled" if unknown else "no chunk to prefill")
        return self._rows.feed({chunk.query_id: chunk.tokens for chunk in chunks}, Feeding.RAGGED)

    def peek(self, query_id: str) -> KVSegment:
        if query_id not in self.lens:
            raise Refused(f"query {query_id} is not being prefilled")
        return self._rows.peek(query_id)

    def take(self, query_id: str) -> KVSegment:
        if query_id not in self.lens:
            raise Refused(f"query {query_id} is not being prefilled")
        return self._rows.lift(query_id, copy=False)
