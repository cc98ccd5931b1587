"""One forward over rows: which tokens each row is fed, and which token it draws."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future

import torch
from torch import Tensor

from baton.batch.row_state import Drawing, PendingForward, RowState
from baton.core.step import Feeding, StepOutput
from baton.kv.budget import out_of_memory
from baton.kv.rectangle import Rectangle
from baton.model.port import ModelRunner
from baton.model.visibility import Span
from baton.sampling.grammar_masks import Found, Mask, Masks, waited
from baton.sampling.logprobs import token_logprobs, told
from baton.sampling.sampler import Sampler

log = logging.getLogger("baton.model")

_NOT_FINITE = "the model's output for this query is not finite"
_NOTHING_LEFT = "no token may be drawn: logit_bias, min_tokens and the answer's form leave none"

# A row that is recomputed in the batch is fed so many tokens per step.
_RECOMPUTED_TOKENS = 256
# If the logits of all of a row's tokens are wanted, it is fed at most so many: each takes a vocabulary of float32.
_EVERY_TOKENS = 64


class RowFeeder:
    """Feeds the rows of a rectangle and draws their next tokens; `Rows` says who is in which row.

    Attributes:
        occupants: who is in each row.
        row_of: the row of each query.
    """

    def __init__(self, rectangle: Rectangle, forward: ModelRunner, sampler: Sampler) -> None:
        self.rectangle = rectangle
        self.forward = forward
        self.sampler = sampler
        self.occupants: dict[int, RowState] = {}
        self.row_of: dict[str, int] = {}
        self._masks = Masks()

    def spans(self, most: Mapping[str, int], done: Set[str]) -> list[Span]:
        """What each named query is fed: up to so many of its pending tokens."""
        # As they lie, so that attention may read them so.
        rows = sorted((self.row_of[query_id] for query_id in most), key=self.rectangle.row_slots.__getitem__)
        return [self._span(row, most, done) for row in rows]

    def run(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        """One forward, and what came of it."""
        return self.finish(self.launch(spans, how, done), done)

    def launch(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> PendingForward:
        """Launches a forward; rows are as before until it is finished."""
        tokens = [t for s in spans for t in self.occupants[s.row].tokens[s.start : s.stop]]
        one_each = all(span.count == 1 for span in spans)
        every = any(span.every for span in spans)
        if how is Feeding.SELECTIVE or ((how is Feeding.RAGGED or every) and not one_each):
            run = self.forward.fill
        elif one_each:
            run = self.forward.decode
        else:
            run = self.forward.padded
        masks = self.begin_masks(spans, done)
        logits, ran = run(self.rectangle, spans, tokens)
        return PendingForward(spans, logits, ran, masks)

    def finish(self, running: PendingForward, done: Set[str]) -> StepOutput:
        """What came of it; waits where something is drawn."""
        spans, logits, ran = running.spans, running.logits, running.ran
        stepped = self.count(spans, done, ran.padded_to)
        stepped.slots.empty_row = ran.empty_rows
        stepped.slots.columns_padding = ran.columns_read - stepped.slots.columns_needed
        if any(span.every for span in spans):
            logits = self._tell_prompts(spans, logits, stepped)
        self.advance(spans, done, logits, stepped, running.masks, ran.commit, self.draw)
        return stepped

    def begin_masks(self, spans: Sequence[Span], done: Set[str]) -> Future[Found] | None:
        """Finds out, beside the forward, what those rows may draw whose tokens are constrained."""
        drawing = (found for s in spans if s.stop == len((found := self.occupants[s.row]).tokens))
        return self._masks.begin(
            [found.guide for found in drawing if found.guide is not None and found.query.id not in done]
        )

    def _span(self, row: int, most: Mapping[str, int], done: Set[str]) -> Span:
        found, start = self.occupants[row], self.rectangle.lens[row]
        if found.query.id in done:
            # Its last cached token again, in its own column: computed, and no use to anyone.
            return Span(row, max(start - 1, 0), 1)
        began = self._began(found)
        pending, count = len(found.tokens) - start, most[found.query.id]
        if pending == 1:
            # A row that decodes: none of what follows would feed it otherwise.
            return Span(row, start, 1, began)
        if found.computed < found.query.fork_at:
            pending = found.query.fork_at - start
        if found.recompute:
            count = max(count, _RECOMPUTED_TOKENS)
        if found.untold(start, start + min(count, _EVERY_TOKENS)):
            count = min(count, _EVERY_TOKENS)
        if self.forward.whole_prompts:
            # What is begun goes on token by token.
            count = 1 if start else pending
        if self.forward.grid:
            count = _on_grid(start, len(found.query.prompt) - 1, self.forward.grid)
        count = min(count, pending)
        return Span(row, start, count, began, every=bool(found.untold(start, start + count)))

    def _began(self, found: RowState) -> int:
        """How many tokens its text begins with, alone, in one forward."""
        prompt, limit = len(found.query.prompt), self.forward.recompute_limit
        return prompt if limit is None or not prompt <= limit < len(found.tokens) else limit + 1

    def count(self, spans: Sequence[Span], done: Set[str], width: int) -> StepOutput:
        """Every slot that was computed, by kind, and each query's share; `width`: what rows were padded to, or 0."""
        stepped = StepOutput()
        slots = stepped.slots
        for span in spans:
            found, count, stop = self.occupants[span.row], span.count, span.stop
            padding = width - count if width > count else 0
            slots.padding += padding
            if found.query.id in done:
                slots.finished_row += count
                continue
            again = min(stop, found.computed) - span.start if found.computed > span.start else 0
            slots.recomputed += again
            slots.useful += count - again
            slots.columns_needed += stop
            stepped.shares[found.query.id] = (count - again, again + padding)
        return stepped

    def _tell_prompts(self, spans: Sequence[Span], logits: Tensor, stepped: StepOutput) -> Tensor:
        """Tells of the prompt tokens behind those fed; answers `[spans, vocabulary]`, the logits of each one's last."""
        parts = logits.split([span.kept for span in spans])
        for span, part in zip(spans, parts, strict=True):
            found = self.occupants[span.row]
            untold, asked = found.untold(span.start, span.stop), found.query.params.prompt_logprobs
            if not span.every or asked is None:
                continue
            wanted = part[untold.start - span.start : untold.stop - span.start]
            if not wanted.sum(-1).isfinite().all():
                stepped.failed[found.query.id] = _NOT_FINITE
                continue
            tokens = found.tokens[untold.start + 1 : untold.stop + 1]
            try:
                stepped.prompt_logprobs[found.query.id] = token_logprobs(wanted, tokens, [asked] * len(tokens))
            except Exception as error:
                self._fails_alone(found, error, "its prompt's log-probabilities could not be told", stepped)
        return torch.cat([part[-1:] for part in parts])

    def advance(
        self,
        spans: Sequence[Span],
        done: Set[str],
        logits: Tensor,
        stepped: StepOutput,
        masks: Future[Found] | None,
        commit: Callable[[], None],
        draw: Callable[[Tensor, Sequence[Drawing], Mapping[str, Mask], StepOutput], list[int | None]],
    ) -> None:
        """Rows are as long as what they were fed; those that ran out of pending tokens draw the next."""
        fed = [(index, span, self.occupants[span.row]) for index, span in enumerate(spans)]
        fed = [(index, span, found) for index, span, found in fed if found.query.id not in done]
        allowed = waited(masks, logits.shape[-1])
        stepped.failed |= allowed.failed
        stepped.infeasible |= allowed.infeasible
        fine = [(index, span, found) for index, span, found in fed if found.query.id not in stepped.ended]
        drawing = [(index, found) for index, span, found in fine if span.stop == len(found.tokens)]
        # Drawn before anything is changed, so that a step that raises has fed nothing.
        drawn = draw(logits, drawing, allowed.masks, stepped) if drawing else []
        commit()
        for _, span, found in fed:
            self.rectangle.lens[span.row] = span.stop
            found.computed = max(found.computed, span.stop)
            found.recompute = found.recompute and span.stop < len(found.tokens)
        for (_, found), token in zip(drawing, drawn, strict=True):
            if token is not None:
                stepped.tokens[found.query.id] = token
                self._append(found, token)
            elif found.query.id not in stepped.ended:
                stepped.failed[found.query.id] = _NOT_FINITE

    def draw(
        self, logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], stepped: StepOutput
    ) -> list[int | None]:
        """The next token of each row of logits that is named; None for a row that cannot go on.

        All rows at once; where that raises row by row, so that it is the end of no other row than the one that did it.
        """
        try:
            return self._drawn(logits, drawing, masks, stepped)
        except Exception as error:
            if len(drawing) == 1:
                self._fails_alone(drawing[0][1], error, "its next token could not be drawn", stepped)
                return [None]
            if out_of_memory(error):
                raise
        return [token for one in drawing for token in self.draw(logits, [one], masks, stepped)]

    def _drawn(
        self, logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], stepped: StepOutput
    ) -> list[int | None]:
        picked = logits if len(drawing) == len(logits) else logits[[index for index, _ in drawing]]
        draws = [found.draw(masks.get(found.query.id)) for _, found in drawing]
        drawn = self.sampler(picked, draws)
        logprobs = told(picked, [found.query for _, found in drawing], drawn)
        for at, (token, draw) in enumerate(zip(drawn, draws, strict=True)):
            if token is None and (draw.shapes or draw.mask is not None) and picked[at].isfinite().all():
                stepped.infeasible[drawing[at][1].query.id] = _NOTHING_LEFT
        stepped.logprobs |= logprobs
        return drawn

    @staticmethod
    def _fails_alone(found: RowState, error: Exception, what: str, stepped: StepOutput) -> None:
        """What was done for one row raised. Raises where memory ran out, for which the row cannot help."""
        if out_of_memory(error):
            raise error
        log.warning("query %s: %s", found.query.id, what, exc_info=error)
        stepped.failed[found.query.id] = f"{what}: {type(error).__name__}"

    def _append(self, found: RowState, token: int) -> None:
        found.append(token)
        limit = self.forward.recompute_limit
        if limit is not None and len(found.tokens) == limit + 1:
            # From here on all its positions are rotated otherwise; `generate` begins anew, too.
            self.rectangle.lens[self.row_of[found.query.id]] = 0
            found.recompute = True


def _on_grid(start: int, last: int, grid: int) -> int:
    """How many tokens are fed from `start` on: the same pieces always; the prompt's last and all behind it singly."""
    return min(grid - start % grid, last - start) if start < last else 1
