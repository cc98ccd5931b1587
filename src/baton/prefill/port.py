"""The seam between the engine and wherever prompts are prefilled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from baton.kv.segment import KVSegment
from baton.work import Chunk, Stepped


class Prefiller(Protocol):
    """Holds segments while they are made ready. Each verb happens whole, or raises Refused and changes nothing."""

    beside_batch: bool
    """Whether its queries may be fed in the batch's own step, as `beside`."""

    @property
    def room(self) -> int:
        """How many more segments it can hold."""

    @property
    def bytes_used(self) -> int: ...

    @property
    def lens(self) -> Mapping[str, int]:
        """Cached tokens of each query that is in."""

    def start(self, segment: KVSegment) -> None:
        """Takes a segment. Refuses where there is no room, or it is in already."""

    def advance(self, chunks: Sequence[Chunk]) -> Stepped:
        """Feeds these chunks in one forward; a segment that ran out of pending tokens draws its next token.

        Where some were begun beside a step, those are waited for, and told of first.
        """

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment, which stays in: its parts are the row itself, to be copied from before it is fed."""

    def take(self, query_id: str) -> KVSegment:
        """Hands the segment over, however far it is. Its keys and values stay in place until it is released."""
