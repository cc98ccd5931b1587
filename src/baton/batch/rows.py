"""Queries in the rows of a rectangle: placed, fed, drawn from, lifted out; batch and prefiller stand on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import Future
from functools import partial

import torch
from torch import Tensor

from baton.batch.row_state import Drawing, PendingForward, RowState
from baton.core.errors import Refused
from baton.core.step import Feeding, StepOutput
from baton.kv.budget import out_of_memory
from baton.kv.port import KVLoad, KVOffload, OffloadedParts
from baton.kv.rectangle import Rectangle
from baton.kv.segment import KVSegment
from baton.model.port import ModelRunner
from baton.model.visibility import Span
from baton.sampling.grammar_masks import Found, Guide, Mask, Masks, waited
from baton.sampling.logprobs import token_logprobs, told
from baton.sampling.sampler import Sampler

log = logging.getLogger("baton.model")

_NOT_FINITE = "the model's output for this query is not finite"
_NOTHING_LEFT = "no token may be drawn: logit_bias, min_tokens and the answer's form leave none"

# A row that is computed anew in the batch is fed so many tokens per step.
_ANEW_TOKENS = 256
# Where the logits of all of a row's tokens are wanted, it is fed at most so many: each takes a vocabulary of float32.
_EVERY_TOKENS = 64


class Rows:
    """`stamp` names model, dtype and shapes; segments must carry it. Row numbers never leave this class's callers.

    The batch and the prefiller may share one: each names the range of rows that is its own (`among`), and a forward may
    feed rows of both. `copies`: where the rows are not in the host's memory, by which way they go there and come back.
    """

    def __init__(
        self,
        rectangle: Rectangle,
        forward: ModelRunner,
        sampler: Sampler,
        stamp: str,
        *,
        copies: KVOffload | None = None,
    ) -> None:
        self.rectangle = rectangle
        self._forward = forward
        self._sampler = sampler
        self._stamp = stamp
        self._masks = Masks()
        self._occupants: dict[int, RowState] = {}
        self._row_of: dict[str, int] = {}
        # Rows whose queries were lifted out, and whose keys and values the segment still lives in.
        self._lent: set[int] = set()
        self._copies = copies
        # Rows whose keys and values are on their way from the host.
        self._arriving: dict[int, KVLoad] = {}

    def lens(self, among: range) -> dict[str, int]:
        """Cached tokens of each query that is in these rows."""
        return {query_id: self.rectangle.lens[row] for query_id, row in self._row_of.items() if row in among}

    def free(self, among: range) -> list[int]:
        """Those of these rows that a query could have."""
        return [row for row in among if row not in self._occupants and row not in self._lent]

    def place(self, segment: KVSegment, among: range) -> None:
        """Into the first free one of these rows, keys and values copied; the segment is released."""
        query = segment.query
        row = max(self.free(among), key=self.rectangle.held, default=None)
        if segment.stamp != self._stamp:
            raise Refused(f"query {query.id}: its segment is of {segment.stamp}, these rows of {self._stamp}")
        if query.id in self._row_of:
            raise Refused(f"query {query.id} is in already")
        if row is None:
            raise Refused(f"query {query.id}: no row is free")
        if len(segment.tokens) > self.rectangle.columns:
            raise Refused(f"query {query.id}: {len(segment.tokens)} tokens, {self.rectangle.columns} columns")
        limit = self._forward.anew_limit
        # Half of a long text, or the beginning of a shorter one: by which length it was rotated is not known any more.
        unsure = limit is not None and segment.cached <= limit < len(segment.tokens)
        if segment.cached and not unsure:
            self._embed(segment, row)
        # In the batch it would else be fed from its first token on, one a step.
        anew = segment.cached > 0 and unsure
        guide = Guide(query, segment.tokens[len(query.prompt) :]) if query.constraint is not None else None
        self._occupants[row] = RowState(query, segment.tokens, max(segment.computed, segment.cached), anew, guide)
        self._row_of[query.id] = row
        segment.release()

    def _embed(self, segment: KVSegment, row: int) -> None:
        """KV embedding: the row has what the segment has. Where it may, a row of this rectangle changes its number."""
        if segment.home is not None and segment.home[0] is self.rectangle:
            self._land(segment.home[1])
            if self._forward.exchanges:
                self.rectangle.exchange(row, segment.home[1])
                return
        try:
            if self._copies is not None and isinstance(segment.parts, OffloadedParts):
                self._arriving[row] = self._copies.into(segment.parts, self.rectangle.claim(row, segment.cached))
            else:
                self.rectangle.write(row, segment.parts, segment.cached)
        except Exception:
            self.rectangle.clear(row)
            raise

    def drop(self, query_id: str) -> None:
        """Frees the query's row."""
        row = self._find(query_id)
        self._clear(row)
        del self._row_of[query_id], self._occupants[row]

    def lift(self, query_id: str, *, copy: bool) -> KVSegment:
        """The query's segment; it is not in any more. Not copied, it lives in its row until it is released."""
        row = self._find(query_id)
        if copy:
            self._land(row)
        found = self._occupants[row]
        # A row that holds no token has states all the same, of nobody.
        parts: Sequence[Tensor] = self.rectangle.view(row) if self.rectangle.lens[row] else []
        home: tuple[object, int] | None = None
        release: Callable[[], None] | None = None
        if not copy:
            home, release = (self.rectangle, row), partial(self._take_back, row)
        elif self._copies is not None and parts:
            parts = offloaded = self._copies.joined(self._copies.out(parts).pieces)
            release = partial(self._copies.release, offloaded)
        else:
            parts = [part.clone() for part in parts]
        cached = self.rectangle.lens[row]
        segment = KVSegment(found.query, found.tokens, self._stamp, cached, found.computed, parts, home, release)
        if copy:
            self.drop(query_id)
        else:
            self._lent.add(row)
            del self._row_of[query_id], self._occupants[row]
        return segment

    def peek(self, query_id: str) -> KVSegment:
        """The query's segment where it is, and where it stays: its parts change with the row."""
        row = self._find(query_id)
        self._land(row)
        found = self._occupants[row]
        parts, cached = self.rectangle.view(row), self.rectangle.lens[row]
        return KVSegment(found.query, list(found.tokens), self._stamp, cached, found.computed, parts)

    def _land(self, row: int) -> None:
        """The row's keys and values are there for all that the device is given from now on."""
        if row in self._arriving:
            # It is on its way for as long as that may fail.
            self._arriving[row].land()
            del self._arriving[row]

    def _landed(self, most: Mapping[str, int]) -> Mapping[str, int]:
        """Those of these whose keys and values have come; all of them where none has, which the device waits for."""
        if not self._arriving:
            return most
        rows = {query_id: self._row_of[query_id] for query_id in most}
        late = {row for row in rows.values() if row in self._arriving and not self._arriving[row].done()}
        there = {query_id: count for query_id, count in most.items() if rows[query_id] not in late} or most
        for query_id in there:
            self._land(rows[query_id])
        return there

    def _clear(self, row: int) -> None:
        arrival = self._arriving.pop(row, None)
        if arrival is not None:
            arrival.cancel()
        self.rectangle.clear(row)

    def _take_back(self, row: int) -> None:
        self._clear(row)
        self._lent.discard(row)

    def pack(self, among: range, rows: int) -> None:
        """Moves those in these rows to free ones of the first `rows` of them. There must be enough."""
        free = iter(self.free(among[:rows]))
        for row in [row for row in self._occupants if row in among[rows:]]:
            target = next(free)
            self._land(row)
            if self._forward.exchanges:
                self.rectangle.exchange(row, target)
            else:
                self.rectangle.move(row, target)
            found = self._occupants[target] = self._occupants.pop(row)
            self._row_of[found.query.id] = target

    def feed(self, most: Mapping[str, int], how: Feeding, done: Set[str] = frozenset()) -> StepOutput:
        """One forward: up to so many pending tokens of each named query; see `Batch.step` for `done`.

        A row that is still on its way from the host is fed nothing, unless nobody else is fed.
        """
        try:
            return self._once(most, how, done)
        except Exception as error:
            if not (out_of_memory(error) and self.rectangle.trim()):
                raise
        # What it could not have was kept for rows that nobody is in; a forward that ran out has fed nothing.
        return self._once(most, how, done)

    def _once(self, most: Mapping[str, int], how: Feeding, done: Set[str]) -> StepOutput:
        return self._feed(self._spans(self._landed(most), done), how, done)

    def _spans(self, most: Mapping[str, int], done: Set[str]) -> list[Span]:
        # As they lie, so that attention may read them so.
        rows = sorted((self._row_of[query_id] for query_id in most), key=self.rectangle.places.__getitem__)
        return [self._span(row, most, done) for row in rows]

    def _feed(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        return self._finish(self._run(spans, how, done), done)

    def _run(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> PendingForward:
        """Launches a forward; rows are as before until it is finished."""
        tokens = [t for s in spans for t in self._occupants[s.row].tokens[s.start : s.stop]]
        one_each = all(span.count == 1 for span in spans)
        every = any(span.every for span in spans)
        if how is Feeding.SELECTIVE or ((how is Feeding.RAGGED or every) and not one_each):
            run = self._forward.fill
        elif one_each:
            run = self._forward.decode
        else:
            run = self._forward.padded
        masks = self._begin_masks(spans, done)
        logits, ran = run(self.rectangle, spans, tokens)
        return PendingForward(spans, logits, ran, masks)

    def _finish(self, running: PendingForward, done: Set[str]) -> StepOutput:
        """What came of it; waits where something is drawn."""
        spans, logits, ran = running.spans, running.logits, running.ran
        stepped = self._count(spans, done, ran.padded_to)
        stepped.slots.empty_row = ran.empty_rows
        stepped.slots.columns_padding = ran.columns_read - stepped.slots.columns_needed
        if any(span.every for span in spans):
            logits = self._tell_prompts(spans, logits, stepped)
        self._advance(spans, done, logits, stepped, running.masks, ran.commit, self._draw)
        return stepped

    def _begin_masks(self, spans: Sequence[Span], done: Set[str]) -> Future[Found] | None:
        """Finds out, beside the forward, what those rows may draw whose tokens are constrained."""
        drawing = (found for s in spans if s.stop == len((found := self._occupants[s.row]).tokens))
        return self._masks.begin(
            [found.guide for found in drawing if found.guide is not None and found.query.id not in done]
        )

    def _span(self, row: int, most: Mapping[str, int], done: Set[str]) -> Span:
        found, start = self._occupants[row], self.rectangle.lens[row]
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
        if found.anew:
            count = max(count, _ANEW_TOKENS)
        if found.untold(start, start + min(count, _EVERY_TOKENS)):
            count = min(count, _EVERY_TOKENS)
        if self._forward.whole_prompts:
            # What is begun goes on token by token.
            count = 1 if start else pending
        if self._forward.grid:
            count = _on_grid(start, len(found.query.prompt) - 1, self._forward.grid)
        count = min(count, pending)
        return Span(row, start, count, began, every=bool(found.untold(start, start + count)))

    def _began(self, found: RowState) -> int:
        """How many tokens its text begins with, alone, in one forward."""
        prompt, limit = len(found.query.prompt), self._forward.anew_limit
        return prompt if limit is None or not prompt <= limit < len(found.tokens) else limit + 1

    def _count(self, spans: Sequence[Span], done: Set[str], width: int) -> StepOutput:
        """Every slot that was computed, by kind, and each query's share; `width`: what rows were padded to, or 0."""
        stepped = StepOutput()
        slots = stepped.slots
        for span in spans:
            found, count, stop = self._occupants[span.row], span.count, span.stop
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
            found = self._occupants[span.row]
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

    def _advance(
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
        fed = [(index, span, self._occupants[span.row]) for index, span in enumerate(spans)]
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
            found.anew = found.anew and span.stop < len(found.tokens)
        for (_, found), token in zip(drawing, drawn, strict=True):
            if token is not None:
                stepped.tokens[found.query.id] = token
                self._append(found, token)
            elif found.query.id not in stepped.ended:
                stepped.failed[found.query.id] = _NOT_FINITE

    def _draw(
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
        return [token for one in drawing for token in self._draw(logits, [one], masks, stepped)]

    def _drawn(
        self, logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], stepped: StepOutput
    ) -> list[int | None]:
        picked = logits if len(drawing) == len(logits) else logits[[index for index, _ in drawing]]
        draws = [found.draw(masks.get(found.query.id)) for _, found in drawing]
        drawn = self._sampler(picked, draws)
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
        limit = self._forward.anew_limit
        if limit is not None and len(found.tokens) == limit + 1:
            # From here on all its positions are rotated otherwise; `generate` begins anew, too.
            self.rectangle.lens[self._row_of[found.query.id]] = 0
            found.anew = True

    def _find(self, query_id: str) -> int:
        if query_id not in self._row_of:
            raise Refused(f"query {query_id} is not in")
        return self._row_of[query_id]


def _on_grid(start: int, last: int, grid: int) -> int:
    """How many tokens are fed from `start` on: the same pieces always; the prompt's last and all behind it singly."""
    return min(grid - start % grid, last - start) if start < last else 1
