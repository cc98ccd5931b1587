"""The running batch on a rectangle and a stock model."""

from __future__ import annotations

from collections.abc import Mapping, Set

from baton.batch.rows import Rows
from baton.core.errors import Refused
from baton.core.footprint import Footprint
from baton.core.step import Feeding, StepOutput
from baton.kv.segment import KVSegment


class RectangleBatch:
    """See `batch/port.py` for the verbs. It may have the rows `among`, and has `count` of them at first."""

    def __init__(self, rows: Rows, among: range, count: int) -> None:
        self._rows = rows
        self._among = among
        self._count = count

    @property
    def rows(self) -> int:
        return self._count

    @property
    def columns(self) -> int:
        return max(self._rows.rectangle.lens[row] for row in self._among)

    @property
    def footprint(self) -> Footprint:
        """Bytes that a query takes in it, by its tokens."""
        return self._rows.rectangle.footprint

    @property
    def bytes_used(self) -> int:
        return self._rows.rectangle.bytes_of(self._among)

    @property
    def lens(self) -> Mapping[str, int]:
        return self._rows.lens(self._among)

    def insert(self, segment: KVSegment) -> None:
        self._rows.place(segment, self._among[: self._count])

    def remove(self, query_id: str) -> None:
        self._mine(query_id)
        self._rows.drop(query_id)

    def detach(self, query_id: str, *, keep: bool = True) -> KVSegment:
        self._mine(query_id)
        segment = self._rows.lift(query_id, copy=keep)
        if not keep:
            segment.release()
        return segment

    def peek(self, query_id: str) -> KVSegment:
        self._mine(query_id)
        return self._rows.peek(query_id)

    def resize(self, rows: int) -> None:
        running, most = len(self.lens), len(self._among)
        if rows < max(running, 1) or rows > most:
            raise Refused(f"{rows} rows: {running} are running, and at most {most} are reserved")
        self._rows.pack(self._among, rows)
        self._count = rows

    def step(
        self, feed: int, how: Feeding, done: Set[str] = frozenset(), beside: Mapping[str, int] | None = None
    ) -> StepOutput:
        mine = self.lens
        if not mine:
            raise Refused("the batch is empty")
        if min([feed, *(beside or {}).values()]) < 1:
            raise Refused("a row cannot be fed less than one token")
        return self._rows.feed({**dict.fromkeys(mine, feed), **(beside or {})}, how, done)

    def _mine(self, query_id: str) -> None:
        if query_id not in self.lens:
            raise Refused(f"query {query_id} is not in the batch")
