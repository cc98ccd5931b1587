"""A segment: one query lifted out of any batch, its tokens so far and what the model keeps of the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from baton.core.query import Query
from baton.kv.port import OffloadedParts


@dataclass(slots=True)
class KVSegment:
    """A query outside a batch (docs/design/rectangle.md): newly arrived, half prefilled, prefilled or preempted.

    `tokens`: prompt and generated. `parts`: what a row of `cached` tokens keeps, as `Rectangle.view` returns it: per
    layer keys and values `[cached, kv_heads, head_dim]` (rotated; a ring in its own order), and states;
    `OffloadedParts` if they are in other memory than rows. `stamp` names model, dtype and shapes: a foreign one is
    refused. `computed`: how many of the tokens were ever fed (more than `cached` if their keys and values were
    forgotten). `location`: the rectangle and the row in which the parts are, if they were not copied out. A segment is
    owned by the caller that gets it; `release` gives back the memory of the parts.
    """

    query: Query
    tokens: list[int]
    stamp: str
    cached: int = 0
    computed: int = 0
    parts: Sequence[Tensor] = ()
    location: tuple[object, int] | None = field(default=None, repr=False)
    on_release: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def pending(self) -> int:
        """How many tokens are left to feed before the next one can be drawn; always at least one."""
        return len(self.tokens) - self.cached

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.query.prompt)

    @property
    def bytes(self) -> int:
        """Bytes of the parts."""
        if isinstance(self.parts, OffloadedParts):
            return self.parts.bytes
        return sum(part.numel() * part.element_size() for part in self.parts)

    def owned(self) -> KVSegment:
        """Returns the segment with parts of its own, and gives back the row that they lie in, if they lie in one."""
        if self.location is None:
            return self
        parts = [part.clone() for part in self.parts]
        copy = KVSegment(self.query, self.tokens, self.stamp, self.cached, self.computed, parts)
        self.release()
        return copy

    def release(self) -> None:
        """Gives up what the model keeps; the tokens stay. May be called twice."""
        done, self.on_release = self.on_release, None
        self.parts = ()
        self.location = None
        self.cached = 0
        if done is not None:
            done()


def arrived(query: Query, stamp: str) -> KVSegment:
    """The segment of a new query, of which nothing was computed yet."""
    return KVSegment(query=query, tokens=list(query.prompt), stamp=stamp)
