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
from baton.sampling.grammar_masks import Mask, MaskResults, Masks, waited
from baton.sampling.logprobs import drawn_logprobs, token_logprobs
from baton.sampling.sampler import Sampler

log = logging.getLogger("baton.model")

_NOT_FINITE = "the model's output for this query is not finite"
_NOTHING_LEFT = "no token may be drawn: logit_bias, min_tokens and the answer's form leave none"

# A row that is recomputed in the batch is fed so many tokens per step.
_RECOMPUTED_TOKENS = 256
# If the logits of all of a row's tokens are wanted, it is fed at most so many: each takes a vocabulary of float32.
_EVERY_TOKENS = 64


class RowFeeder:
    """Feeds the rows of a rectangle and draws their next tokens; `Rows` decides which query is in which row.

    Attributes:
        row_states: the state of each row in use.
        row_of: the row of each query.
    """

    def __init__(self, rectangle: Rectangle, forward: ModelRunner, sampler: Sampler) -> None:
        self.rectangle = rectangle
        self.forward = forward
        self.sampler = sampler
        self.row_states: dict[int, RowState] = {}
        self.row_of: dict[str, int] = {}
        self._masks = Masks()

    def spans(self, most: Mapping[str, int], done: Set[str]) -> list[Span]:
        """The tokens that each named query is fed: up to so many of its pending ones."""
        # In the order of their slots, so that attention can read them in order.
        rows = sorted((self.row_of[query_id] for query_id in most), key=self.rectangle.row_slots.__getitem__)
        return [self._span(row, most, done) for row in rows]

    def run(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        """Runs one forward and returns its output."""
        return self.finish(self.launch(spans, how, done), done)

    def launch(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> PendingForward:
        """Launches a forward; rows are as before until it is finished."""
        tokens = [t for s in spans for t in self.row_states[s.row].tokens[s.start : s.stop]]
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
        """The output of a forward; waits if something is drawn."""
        spans, logits, ran = running.spans, running.logits, running.ran
        output = self.count(spans, done, ran.padded_to)
        output.slots.empty_row = ran.empty_rows
        output.slots.columns_padding = ran.columns_read - output.slots.columns_needed
        if any(span.every for span in spans):
            logits = self._tell_prompts(spans, logits, output)
        self.advance(spans, done, logits, output, running.masks, ran.commit, self.draw)
        return output

    def begin_masks(self, spans: Sequence[Span], done: Set[str]) -> Future[MaskResults] | None:
        """Computes, beside the forward, which tokens constrained rows may draw."""
        drawing = (state for s in spans if s.stop == len((state := self.row_states[s.row]).tokens))
        return self._masks.begin(
            [state.guide for state in drawing if state.guide is not None and state.query.id not in done]
        )

    def _span(self, row: int, most: Mapping[str, int], done: Set[str]) -> Span:
        state, start = self.row_states[row], self.rectangle.lens[row]
        if state.query.id in done:
            # Its last cached token again, in its own column: computed, and of no use.
            return Span(row, max(start - 1, 0), 1)
        began = self._began(state)
        pending, count = len(state.tokens) - start, most[state.query.id]
        if pending == 1:
            # A row that decodes: the rules below do not apply to it.
            return Span(row, start, 1, began)
        if state.computed < state.query.fork_at:
            pending = state.query.fork_at - start
        if state.recompute:
            count = max(count, _RECOMPUTED_TOKENS)
        if state.untold(start, start + min(count, _EVERY_TOKENS)):
            count = min(count, _EVERY_TOKENS)
        if self.forward.whole_prompts:
            # A text that has begun continues token by token.
            count = 1 if start else pending
        if self.forward.grid:
            count = _on_grid(start, len(state.query.prompt) - 1, self.forward.grid)
        count = min(count, pending)
        return Span(row, start, count, began, every=bool(state.untold(start, start + count)))

    def _began(self, state: RowState) -> int:
        """How many tokens its text begins with when it runs alone, in one forward."""
        prompt, limit = len(state.query.prompt), self.forward.recompute_limit
        return prompt if limit is None or not prompt <= limit < len(state.tokens) else limit + 1

    def count(self, spans: Sequence[Span], done: Set[str], width: int) -> StepOutput:
        """Counts computed slots by kind, and each query's share. `width`: what rows were padded to, or 0."""
        output = StepOutput()
        slots = output.slots
        for span in spans:
            state, count, stop = self.row_states[span.row], span.count, span.stop
            padding = width - count if width > count else 0
            slots.padding += padding
            if state.query.id in done:
                slots.finished_row += count
                continue
            again = min(stop, state.computed) - span.start if state.computed > span.start else 0
            slots.recomputed += again
            slots.useful += count - again
            slots.columns_needed += stop
            output.shares[state.query.id] = (count - again, again + padding)
        return output

    def _tell_prompts(self, spans: Sequence[Span], logits: Tensor, output: StepOutput) -> Tensor:
        """Takes log-probabilities of the prompt tokens after the fed ones.

        Returns each span's last logits `[spans, vocabulary]`.
        """
        parts = logits.split([span.kept for span in spans])
        for span, part in zip(spans, parts, strict=True):
            state = self.row_states[span.row]
            untold, asked = state.untold(span.start, span.stop), state.query.params.prompt_logprobs
            if not span.every or asked is None:
                continue
            wanted = part[untold.start - span.start : untold.stop - span.start]
            if not wanted.sum(-1).isfinite().all():
                output.failed[state.query.id] = _NOT_FINITE
                continue
            tokens = state.tokens[untold.start + 1 : untold.stop + 1]
            try:
                output.prompt_logprobs[state.query.id] = token_logprobs(wanted, tokens, [asked] * len(tokens))
            except Exception as error:
                self._fails_alone(state, error, "its prompt's log-probabilities could not be told", output)
        return torch.cat([part[-1:] for part in parts])

    def advance(
        self,
        spans: Sequence[Span],
        done: Set[str],
        logits: Tensor,
        output: StepOutput,
        masks: Future[MaskResults] | None,
        commit: Callable[[], None],
        draw: Callable[[Tensor, Sequence[Drawing], Mapping[str, Mask], StepOutput], list[int | None]],
    ) -> None:
        """Extends rows by what they were fed; rows without pending tokens draw their next one."""
        fed = [(index, span, self.row_states[span.row]) for index, span in enumerate(spans)]
        fed = [(index, span, state) for index, span, state in fed if state.query.id not in done]
        allowed = waited(masks, logits.shape[-1])
        output.failed |= allowed.failed
        output.infeasible |= allowed.infeasible
        fine = [(index, span, state) for index, span, state in fed if state.query.id not in output.ended]
        drawing = [(index, state) for index, span, state in fine if span.stop == len(state.tokens)]
        # Drawn before anything is changed, so that a step that raises has fed nothing.
        drawn = draw(logits, drawing, allowed.masks, output) if drawing else []
        commit()
        for _, span, state in fed:
            self.rectangle.lens[span.row] = span.stop
            state.computed = max(state.computed, span.stop)
            state.recompute = state.recompute and span.stop < len(state.tokens)
        for (_, state), token in zip(drawing, drawn, strict=True):
            if token is not None:
                output.tokens[state.query.id] = token
                self._append(state, token)
            elif state.query.id not in output.ended:
                output.failed[state.query.id] = _NOT_FINITE

    def draw(
        self, logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], output: StepOutput
    ) -> list[int | None]:
        """The next token of each row of logits that is named; None for a row that cannot go on.

        Draws all rows at once. If that raises, draws row by row, so that only the row that raised fails.
        """
        try:
            return self._drawn(logits, drawing, masks, output)
        except Exception as error:
            if len(drawing) == 1:
                self._fails_alone(drawing[0][1], error, "its next token could not be drawn", output)
                return [None]
            if out_of_memory(error):
                raise
        return [token for one in drawing for token in self.draw(logits, [one], masks, output)]

    def _drawn(
        self, logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], output: StepOutput
    ) -> list[int | None]:
        picked = logits if len(drawing) == len(logits) else logits[[index for index, _ in drawing]]
        draws = [state.draw(masks.get(state.query.id)) for _, state in drawing]
        drawn = self.sampler(picked, draws)
        logprobs = drawn_logprobs(picked, [state.query for _, state in drawing], drawn)
        for at, (token, draw) in enumerate(zip(drawn, draws, strict=True)):
            if token is None and (draw.shapes or draw.mask is not None) and picked[at].isfinite().all():
                output.infeasible[drawing[at][1].query.id] = _NOTHING_LEFT
        output.logprobs |= logprobs
        return drawn

    @staticmethod
    def _fails_alone(state: RowState, error: Exception, what: str, output: StepOutput) -> None:
        """Fails one row whose operation raised. Raises if memory ran out, which is not the row's fault."""
        if out_of_memory(error):
            raise error
        log.warning("query %s: %s", state.query.id, what, exc_info=error)
        output.failed[state.query.id] = f"{what}: {type(error).__name__}"

    def _append(self, state: RowState, token: int) -> None:
        state.append(token)
        limit = self.forward.recompute_limit
        if limit is not None and len(state.tokens) == limit + 1:
            # From here on all its positions are rotated otherwise; `generate` also starts the text again.
            self.rectangle.lens[self.row_of[state.query.id]] = 0
            state.recompute = True


def _on_grid(start: int, last: int, grid: int) -> int:
    """How many tokens are fed from `start` on: always the same pieces, and singly from the prompt's last token on."""
    return min(grid - start % grid, last - start) if start < last else 1
