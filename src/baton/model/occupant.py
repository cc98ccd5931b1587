"""Who is in a row, and a forward that was launched for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from baton.model.feeder import Ran
from baton.model.look import Span
from baton.model.masks import Found, Guide, Mask
from baton.model.sample import Draw
from baton.query import Query


@dataclass(slots=True)
class Occupant:
    """Who is in a row: the tokens so far, of which the rectangle holds the first `lens[row]`.

    `anew`: it grew to where the model begins a text anew, and its tokens are fed again, several a step.
    `guide`: where its tokens are constrained.
    """

    query: Query
    tokens: list[int]
    computed: int
    anew: bool = False
    guide: Guide | None = None

    def draw(self, mask: Mask | None) -> Draw:
        return Draw(self.query.params, self.query.seed, self.tokens, len(self.query.prompt), mask)

    def untold(self, start: int, stop: int) -> range:
        """Those of these positions whose logits tell of a prompt token that is asked for and was not told of before."""
        if self.query.params.prompt_logprobs is None:
            return range(0)
        return range(max(start, self.computed), min(stop, len(self.query.prompt) - 1))


@dataclass(frozen=True, slots=True)
class Running:
    """A forward that was launched: its spans, and what is to come of it."""

    spans: Sequence[Span]
    logits: Tensor
    ran: Ran
    masks: Future[Found] | None


Drawing = tuple[int, Occupant]
"""One who draws, and from which row of the logits."""
