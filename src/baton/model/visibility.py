"""Which tokens are fed, and which earlier ones they see: the words that attention, cache and forward share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which earlier tokens a layer's token sees, and how their scores are bent; all, and not at all, by default.

    `window`: the last so many, itself among them. `chunk`: those of its own chunk of so many. `softcap`: scores are
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
        found = column <= token
        if self.window:
            found = found & (column > token - self.window)
        if self.chunk:
            found = found & (column >= token // self.chunk * self.chunk)
        return found


EVERYTHING = Visibility()

NOBODY = -1
"""The row of tokens that are computed for no one: padding."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one row, fed at once: they get the columns from `start` on.

    `began`: how many tokens the row's text begins with, alone, in one forward; where rotation depends on a text's
    length (`model/rotary.py`). `every`: the logits of all its tokens are wanted, not only of the last.
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
    """Which of the spans' tokens, one span behind the other, are those whose logits are wanted."""
    ends = itertools.accumulate(span.count for span in spans)
    for end, span in zip(ends, spans, strict=True):
        yield from range(end - span.kept, end)


def cut(spans: Sequence[Span], first: int, last: int) -> list[Span]:
    """What of the spans lies in tokens [first, last) of them all."""
    found, at = [], 0
    for span in spans:
        low, high = max(first - at, 0), min(last - at, span.count)
        if low < high:
            found.append(replace(span, start=span.start + low, count=high - low))
        at += span.count
    return found


def with_padding(spans: Sequence[Span], tokens: Sequence[int], longest: int) -> tuple[list[Span], list[int], list[int]]:
    """Behind each span as many tokens of nobody's as it is shorter than the longest; and which tokens are wanted."""
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
