"""Which tokens are fed, and which earlier ones they see: the words that attention, cache and forward share."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Look:
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


EVERYTHING = Look()

NOBODY = -1
"""The row of tokens that are computed for no one: padding."""


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one row, fed at once: they get the columns from `start` on.

    `far`: the row's text is longer than the model's original context, so that all its positions are rotated by the long
    factors (longrope); `model/longrope.py`. `every`: the logits of all its tokens are wanted, not only of the last.
    """

    row: int
    start: int
    count: int
    far: bool = False
    every: bool = False

    @property
    def kept(self) -> int:
        """How many of its tokens' logits are wanted: the last ones."""
        return self.count if self.every else 1

    @property
    def stop(self) -> int:
        return self.start + self.count
