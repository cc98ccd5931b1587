"""Which tokens are fed, and which earlier ones they see: the terms that attention, cache and forward share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which earlier tokens a layer's token sees, and a cap on their scores; by default all, uncapped.

    `window`: the last so many, including itself. `chunk`: those of its own chunk of so many. `softcap`: scores are
    softcap * tanh(scores / softcap). At most one of window and chunk is above 0.
    """

    window: int = 0
    chunk: int = 0
    softcap: float = 0.0

    def lowest(self, token: int) -> int:
        """The first token that a token sees."""
        if self.chunk:
            return token // self.chunk * self.chunk
        return max(0, token + 1 - self.window) if self.window else 0

    def seen(self, token: Tensor, column: Tensor) -> Tensor:
        """Whether tokens see the tokens of these columns; both broadcast."""
        seen = column <= token
        if self.window:
            seen = seen & (column > token - self.window)
        if self.chunk:
            seen = seen & (column >= token // self.chunk * self.chunk)
        return seen


EVERYTHING = Visibility()

NOBODY = -1
"""The row of tokens that are computed for no row: padding."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one row, fed at once into the columns from `start` on.

    `began`: how many tokens the row's text begins with when it runs alone, in one forward; used if rotation depends on
    a text's length (`model/rotary.py`). `every`: the logits of all its tokens are wanted, not only of the last.
    """

    row: int
    start: int
    count: int
    began: int = 0
    every: bool = False

    @property
    def kept(self) -> int:
        """How many of its tokens' logits are wanted: the last ones."""
        return self.count if self.every else 1

    @property
    def stop(self) -> int:
        return self.start + self.count


def wanted_tokens(spans: Sequence[Span]) -> Iterator[int]:
    """The indices, over all spans' tokens in order, of tokens whose logits are wanted."""
    ends = itertools.accumulate(span.count for span in spans)
    for end, span in zip(ends, spans, strict=True):
        yield from range(end - span.kept, end)


def cut(spans: Sequence[Span], first: int, last: int) -> list[Span]:
    """The part of the spans that covers the tokens [first, last) of them all."""
    pieces, at = [], 0
    for span in spans:
        low, high = max(first - at, 0), min(last - at, span.count)
        if low < high:
            pieces.append(replace(span, start=span.start + low, count=high - low))
        at += span.count
    return pieces


def with_padding(spans: Sequence[Span], tokens: Sequence[int], longest: int) -> tuple[list[Span], list[int], list[int]]:
    """Adds padding after each span up to the longest one's length; also returns which tokens are wanted."""
    padded: list[Span] = []
    fed: list[int] = []
    wanted: list[int] = []
    at = 0
    for span in spans:
        padded.append(span)
        fed += tokens[at : at + span.count]
        at += span.count
        wanted += range(len(fed) - span.kept, len(fed))
        if span.count < longest:
            padded.append(Span(NOBODY, 0, longest - span.count))
            fed += [0] * (longest - span.count)
    return padded, fed, wanted
