"""The seam between the engine and whatever computes: five verbs."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Protocol

from baton.kv.segment import KVSegment
from baton.work import Feeding, Stepped


class Batch(Protocol):
    """Five verbs; each happens whole, or raises Refused and changes nothing (ARCHITECTURE.md section 4)."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int:
        """Width of the part in use: the longest row's tokens."""

    @property
    def bytes_used(self) -> int: ...

    @property
    def lens(self) -> Mapping[str, int]:
        """Cached tokens of each query that is in."""

    def insert(self, segment: KVSegment) -> None:
        """Vector shaping and KV embedding: the segment gets a row, its keys and values are copied in, and released.

        Refuses where no row is free, the query is in already, it is too long, or its stamp is foreign.
        """

    def remove(self, query_id: str) -> None:
        """Frees the query's row. Refuses where it is not in."""

    def detach(self, query_id: str, *, keep: bool = True) -> KVSegment:
        """The query's segment, whole, in memory of its own; frees its row. Refuses where it is not in.

        Not `keep`: its tokens alone, which takes no memory.
        """

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment, which stays in: its parts are the row itself, to be copied from before the next step."""

    def resize(self, rows: int) -> None:
        """Another number of rows; those running keep running. Refuses fewer than are running, or above the most."""

    def step(
        self, feed: int, how: Feeding, done: Set[str] = frozenset(), beside: Mapping[str, int] | None = None
    ) -> Stepped:
        """Feeds each row up to `feed` pending tokens; rows that ran out draw their next token.

        Where steps are begun ahead (`model/ahead.py`), a row that is new may be fed nothing, once; where prompts are
        computed beside them (`model/beside.py`), one of `beside` is fed nothing until its part is done.
        `done`: queries that are finished and keep their row all the same (batch-wise inference): their row is computed
        and what comes of it dropped. `beside`: queries of a prefiller that shares the batch's rectangle, and how many
        tokens of each ride in the same forward. Refuses an empty batch, and to feed
        less than one token.
        """
