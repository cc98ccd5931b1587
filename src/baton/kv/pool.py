"""Segments outside all rows: of queries that wait, which keep nothing, and of queries that were swapped out."""

from __future__ import annotations

from collections.abc import Iterator

from baton.core.errors import Refused
from baton.kv.segment import KVSegment


class SegmentPool:
    """Holds at most `bytes_most`; a segment that keeps nothing always fits. It owns the segments."""

    def __init__(self, bytes_most: int) -> None:
        self.bytes_most = bytes_most
        self.bytes_used = 0
        self._segments: dict[str, tuple[KVSegment, int]] = {}

    def __contains__(self, query_id: object) -> bool:
        return query_id in self._segments

    def __iter__(self) -> Iterator[str]:
        return iter(self._segments)

    def __len__(self) -> int:
        return len(self._segments)

    def fits(self, size: int) -> bool:
        """Whether there is room for a segment of so many bytes."""
        return not size or self.bytes_used + size <= self.bytes_most

    def put(self, segment: KVSegment) -> None:
        """Takes the segment. Raises Refused if it does not fit, or if the query is in already."""
        name, size = segment.query.id, segment.bytes
        if name in self._segments:
            raise Refused(f"query {name} is in the pool already")
        if not self.fits(size):
            raise Refused(f"query {name}: {size} bytes, the pool has {self.bytes_most - self.bytes_used} left")
        self._segments[name] = segment, size
        self.bytes_used += size

    def pop(self, query_id: str) -> KVSegment:
        """Gives the segment back to the caller, who owns it then. Raises Refused if the query is not in."""
        if query_id not in self._segments:
            raise Refused(f"query {query_id} is not in the pool")
        segment, size = self._segments.pop(query_id)
        self.bytes_used -= size
        return segment
