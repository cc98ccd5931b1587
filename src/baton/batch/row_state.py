"""Who is in a row, and a forward that was launched for some of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from baton.core.query import Query
from baton.model.port import ForwardStats
from baton.model.visibility import Span
from baton.sampling.grammar_masks import Found, Guide, Mask
from baton.sampling.sampler import Draw
from baton.sampling.seen_tokens import Seen


@dataclass(slots=True)
class RowState:
    """Who is in a row: the tokens so far, of which the rectangle holds the first `lens[row]`.

    `recompute`: it grew to where the model begins a text anew, and its tokens are fed again, several a step.
    `guide`: where its tokens are constrained. `seen`: where they are penalised, from its first draw on.
    """

    query: Query
    tokens: list[int]
    computed: int
    recompute: bool = False
    guide: Guide | None = None
    seen: Seen | None = None

    def draw(self, mask: Mask | None) -> Draw:
        draw = Draw(self.query.params, self.query.seed, self.tokens, len(self.query.prompt), mask, self.seen)
        if self.seen is not None or not draw.penalises:
            return draw
        self.seen = Seen(self.tokens, len(self.query.prompt))
        return replace(draw, seen=self.seen)

    def append(self, token: int) -> None:
        """Its next token: what is kept of its tokens is told of it, so that nobody counts them all again."""
        self.tokens.append(token)
        if self.seen is not None:
            self.seen.add(token)
        if self.guide is not None:
            self.guide.generated.append(token)

    def untold(self, start: int, stop: int) -> range:
        """Those of these positions whose logits tell of a prompt token that is asked for and was not told of before."""
        if self.query.params.prompt_logprobs is None:
            return range(0)
        return range(max(start, self.computed), min(stop, len(self.query.prompt) - 1))


@dataclass(frozen=True, slots=True)
class PendingForward:
    """A forward that was launched: its spans, and what is to come of it."""

    spans: Sequence[Span]
    logits: Tensor
    ran: ForwardStats
    masks: Future[Found] | None


Drawing = tuple[int, RowState]
"""One who draws, and from which row of the logits."""
