"""The state of a row, and a forward that was launched for some rows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from torch import Tensor

from baton.core.query import Query
from baton.model.port import ForwardStats
from baton.model.visibility import Span
from baton.sampling.grammar_masks import Guide, Mask, MaskResults
from baton.sampling.sampler import Draw
from baton.sampling.seen_tokens import Seen


@dataclass(slots=True)
class RowState:
    """The query in a row and its tokens so far, of which the rectangle holds the first `lens[row]`.

    `recompute`: it grew beyond the model's recompute limit, and its tokens are fed again, several a step. `guide`: for
    a query with a constraint. `seen`: for a query with penalties, from its first draw on.
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
        """Adds its next token, also to the counts that are kept of its tokens."""
        self.tokens.append(token)
        if self.seen is not None:
            self.seen.add(token)
        if self.guide is not None:
            self.guide.generated.append(token)

    def untold(self, start: int, stop: int) -> range:
        """The positions among these whose logits give the log-probability of a prompt token that is still wanted."""
        if self.query.params.prompt_logprobs is None:
            return range(0)
        return range(max(start, self.computed), min(stop, len(self.query.prompt) - 1))


@dataclass(frozen=True, slots=True)
class PendingForward:
    """A forward that was launched: its spans and its future results."""

    spans: Sequence[Span]
    logits: Tensor
    ran: ForwardStats
    masks: Future[MaskResults] | None


Drawing = tuple[int, RowState]
"""A row that draws, and the index of its logits."""
