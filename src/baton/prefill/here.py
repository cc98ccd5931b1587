"""Prefill on the engine's own device and thread, in a rectangle of its own beside the running batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baton.errors import Refused
from baton.kv.segment import KVSegment
from baton.model.rows import Rows
from baton.work import Chunk, Feeding, Stepped


class PrefillHere:
    """See `prefill/port.py`. Chunks of several prompts go through the model packed flat, without padding."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def room(self) -> int:
        return self._rows.rectangle.capacity - len(self._rows)

    @property
    def bytes_used(self) -> int:
        return self._rows.rectangle.bytes_used

    @property
    def lens(self) -> Mapping[str, int]:
        return self._rows.lens

    def start(self, segment: KVSegment) -> None:
        self._rows.place(segment, self._rows.rectangle.capacity)

    def advance(self, chunks: Sequence[Chunk]) -> Stepped:
        unknown = [chunk.query_id for chunk in chunks if chunk.query_id not in self._rows.lens]
        if unknown or not chunks:
            raise Refused(f"query {unknown[0]} is not being prefilled" if unknown else "no chunk to prefill")
        return self._rows.feed({chunk.query_id: chunk.tokens for chunk in chunks}, Feeding.RAGGED)

    def take(self, query_id: str) -> KVSegment:
        return self._rows.lift(query_id, copy=False)
