"""The ports between the engine and what computes: a batch of five verbs, and a prefiller beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

from baton.core.step import Chunk, Feeding, StepOutput
from baton.kv.segment import KVSegment


class Batch(Protocol):
    """Five verbs. Each happens whole, or raises Refused and changes nothing (docs/design/rectangle.md)."""

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
        """Vector shaping and KV embedding: gives the segment a row, copies its keys and values in, and releases it.

        Raises Refused if no row is free, the query is in already, it is too long, or its stamp is foreign.
        """

    def remove(self, query_id: str) -> None:
        """Frees the query's row. Raises Refused if it is not in."""

    def detach(self, query_id: str, *, keep: bool = True) -> KVSegment:
        """Returns the query's segment, whole, in memory of its own, and frees its row. Raises Refused if it is not in.

        Without `keep` the segment has only its tokens, which takes no memory.
        """

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment, which stays in. Its parts are the row itself, to be copied from before the next step."""

    def resize(self, rows: int) -> None:
        """Changes the number of rows; running queries keep running.

        Raises Refused for fewer rows than run, or too many.
        """

    def step(
        self, feed: int, how: Feeding, done: Set[str] = frozenset(), beside: Mapping[str, int] | None = None
    ) -> StepOutput:
        """Feeds each row up to `feed` pending tokens; rows that ran out draw their next token.

        If steps begin ahead (`cuda/async_stepper.py`), a new row may be fed nothing, once. If prompts are computed
        beside them (`cuda/prefill_stream.py`), one of `beside` is fed nothing until its part is done. `done`: queries
        that are finished and keep their row (batch-wise inference): their row is computed and the result dropped.
        `beside`: queries of a prefiller that shares the batch's rectangle, and how many tokens of each are fed in the
        same forward. Raises Refused for an empty batch, and for less than one token.
        """


class Prefiller(Protocol):
    """Holds segments while they are prefilled. Each verb happens whole, or raises Refused and changes nothing."""

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
        """Takes a segment. Raises Refused if there is no room, or if it is in already."""

    def advance(self, chunks: Sequence[Chunk]) -> StepOutput:
        """Feeds these chunks in one forward; a segment without pending tokens draws its next token.

        If some were begun beside a step, waits for those first and reports them first.
        """

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment, which stays in. Its parts are the row itself, to be copied from before it is fed."""

    def take(self, query_id: str) -> KVSegment:
        """Hands the segment over, however far it is. Its keys and values stay in place until it is released."""
