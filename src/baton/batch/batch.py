"""The running batch on a rectangle and a stock model."""

from __future__ import annotations

from collections.abc import Mapping, Set

from baton.errors import Refused
from baton.kv.segment import KVSegment
from baton.model.rows import Rows
from baton.work import Feeding, Stepped


class RectangleBatch:
    """See `batch/port.py` for the verbs. `rows` of the rectangle's capacity are in use at first."""

    def __init__(self, rows: Rows, count: int) -> None:
        self._rows = rows
        self._count = count

    @property
    def rows(self) -> int:
        return self._count

    @property
    def columns(self) -> int:
        return max(self._rows.rectangle.lens)

    @property
    def bytes_used(self) -> int:
        return self._rows.rectangle.bytes_used

    @property
    def lens(self) -> Mapping[str, int]:
        return self._rows.lens

    def insert(self, segment: KVSegment) -> None:
        self._rows.place(segment, self._count)

    def remove(self, query_id: str) -> None:
        self._rows.drop(query_id)

    def detach(self, query_id: str) -> KVSegment:
        return self._rows.lift(query_id, copy=True)

    def resize(self, rows: int) -> None:
        running, most = len(self._rows), self._rows.rectangle.capacity
        if rows < max(running, 1) or rows > most:
            raise Refused(f"{rows} rows: {running} are running, and at most {most} are reserved")
        self._rows.pack(rows)
        self._count = rows

    def step(self, feed: int, how: Feeding, done: Set[str] = frozenset()) -> Stepped:
        if not len(self._rows):
            raise Refused("the batch is empty")
        return self._rows.feed(dict.fromkeys(self._rows.lens, feed), how, done)
