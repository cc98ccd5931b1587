"""A segment: one query lifted out of any batch, the tokens so far and what the model keeps of the first of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from baton.core.query import Query
from baton.kv.port import OffloadedParts


@dataclass(slots=True)
class KVSegment:
    """The keystone (docs/design/rectangle.md): just arrived, half prefilled, prefilled, preempted are all this.

    `tokens`: prompt and generated. `parts`: what a row of `cached` tokens keeps, as `Rectangle.view` answers it: per
    layer keys and values `[cached, kv_heads, head_dim]` (rotated; a ring as it is, where a layer has one), and states;
    `OffloadedParts` where they are in other memory than rows.
    `stamp` names model, dtype and shapes: a foreign one is refused.
    `computed`: how many of the tokens were ever fed (more than `cached` when their keys and values were forgotten).
    `location`: the rectangle and its row in which the parts lie, where they were not copied out.
    Whoever is passed a segment owns it; `release` gives back what the parts live in.
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

    def release(self) -> None:
        """Lets go of what the model keeps; the tokens stay. May be called twice."""
        done, self.on_release = self.on_release, None
        self.parts = ()
        self.location = None
        self.cached = 0
        if done is not None:
            done()


def arrived(query: Query, stamp: str) -> KVSegment:
    """The segment of a query of which nothing was computed yet."""
    return KVSegment(query=query, tokens=list(query.prompt), stamp=stamp)
