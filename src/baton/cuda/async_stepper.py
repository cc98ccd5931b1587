"""Begins the next decode step before the host has read what the last one drew, so that a device never waits.

A step that was begun ahead serves those of its rows that are still there and drew what it was fed. A row's result does
not depend on its neighbours. A row that ended meanwhile was computed once in vain, which is counted; a new row joins
the step after. A step that was begun shows no effect before a feed asks for it: it wrote only after the rows' ends.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

from torch import Tensor

from baton.batch.feeder import RowFeeder
from baton.batch.row_state import Drawing, RowState
from baton.batch.stepper import Spans
from baton.core.step import Feeding, StepOutput
from baton.cuda.decode_steps import BUCKETS, Launched, Steps
from baton.cuda.slots import GREEDY, Chance, Slot, chance_of, follows
from baton.model.execution import PrefillPlacement
from baton.model.visibility import Span
from baton.sampling.grammar_masks import Mask
from baton.sampling.on_device import TOO_FEW_CANDIDATES, Kind

log = logging.getLogger("baton.model")


@dataclass(slots=True)
class _Begun:
    """A running step: the slot of each row slot. `fed`: what each slot was fed, once that is known."""

    launched: Launched
    slot_of: dict[int, int]
    fed: list[int] = field(default_factory=list)

    def serves(self, wanted: Slot) -> bool:
        at = self.slot_of.get(wanted.place)
        if at is None:
            return False
        slot = self.launched.slots[at]
        return (slot.stop, slot.chance, self.fed[at]) == (wanted.stop, wanted.chance, wanted.token)


class AsyncStepper:
    """A `Stepper` over decode steps of constant shape. `placement`: where prompts are computed."""

    def __init__(self, feeder: RowFeeder, steps: Steps) -> None:
        self.placement = PrefillPlacement.AFTER_DECODE
        self._feeder = feeder
        self._rectangle = feeder.rectangle
        self._steps = steps
        self._begun: _Begun | None = None
        # Slots that were computed in vain, and not reported yet.
        self._surplus = 0

    def placed(self, rows: Collection[int]) -> None:
        # The running step was begun for the queries that were in these rows before.
        if self._begun is not None:
            for row in rows:
                self._begun.slot_of.pop(self._rectangle.row_slots[row], None)

    def moved(self, rows: Collection[int]) -> None:
        """A running step uses row slots, which do not change."""

    def leaving(self, rows: Collection[int]) -> None:
        """A leaving row was computed once in vain; the next step counts that."""

    def step(self, spans: Spans, how: Feeding, done: Set[str]) -> StepOutput:
        """A row that came while a step was running may be fed nothing, once."""
        return self._step(spans(), how, done)

    def forget(self) -> None:
        """Drops the step that was begun ahead."""
        if self._begun is not None:
            self._surplus += len(self._begun.launched.slots)
        self._begun = None

    def _step(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        single = [span for span in spans if span.count == 1]
        if len(single) > BUCKETS[-1] or any(span.every for span in single):
            # The forward's own steps would come between.
            self.forget()
            return self._feeder.run(spans, how, done)
        if not single:
            return self._feeder.run(spans, how, done)
        wanted = {span: self._slot(span, done) for span in single}
        fused = self.placement is PrefillPlacement.FUSED and how is Feeding.RAGGED and len(single) < len(spans)
        if fused and not any(map(self._is_begun, wanted.values())):
            self.forget()
            return self._feeder.run(spans, how, done)
        if fused:
            # The running step is taken first, and none is begun after it: prompts go with the next.
            spans = single
        begun, served = self._served(wanted)
        waiting = [span for span in wanted if span not in served]
        others = [span for span in spans if span not in served]
        if len(others) == len(waiting):
            others = []
        else:
            waiting = []
        output = self._feeder.run(others, how, done) if others else StepOutput()
        try:
            self._collect(begun, served, waiting, done, output, last=fused)
        except Exception:
            # The next step may have been launched, and left its tokens in place of this one's.
            self.forget()
            if not others:
                raise
            # The output of the others must be returned; rows that were fed nothing are fed by the next step.
            log.warning("a step failed beside prompts that were fed", exc_info=True)
        return output

    def _served(self, wanted: Mapping[Span, Slot]) -> tuple[_Begun, list[Span]]:
        """A running step and its rows: the one that was begun ahead, or a new one if that serves no row."""
        if self._begun is not None:
            served = [span for span, slot in wanted.items() if self._begun.serves(slot)]
            if served:
                return self._begun, served
        self.forget()
        self._begun = self._launch([*wanted.values()])
        self._begun.fed = [slot.token for slot in wanted.values()]
        return self._begun, list(wanted)

    def _launch(self, slots: Sequence[Slot]) -> _Begun:
        return _Begun(self._steps.launch(slots), {slot.place: at for at, slot in enumerate(slots)})

    def _launched_ahead(self, slots: Sequence[Slot]) -> _Begun | None:
        """Returns None if it does not begin: rows have been fed by now, so the next feed must fail."""
        try:
            return self._launch(slots) if slots else None
        except Exception:
            return None

    def _slot(self, span: Span, done: Set[str]) -> Slot:
        state = self._feeder.row_states[span.row]
        chance = None if state.query.id in done else self._chance(state)
        return Slot(self._rectangle.row_slots[span.row], state.tokens[span.start], span.stop, chance or GREEDY)

    def _chance(self, state: RowState) -> Chance | None:
        """Returns None if its next token is not drawn on the device."""
        return None if state.guide is not None else chance_of(state.draw(None))

    def _is_begun(self, slot: Slot) -> bool:
        return self._begun is not None and self._begun.serves(slot)

    def _collect(
        self,
        begun: _Begun,
        served: Sequence[Span],
        waiting: Sequence[Span],
        done: Set[str],
        output: StepOutput,
        *,
        last: bool,
    ) -> None:
        """Begins the step after, unless this is the `last`; waits for this one, and returns its output."""
        masks = self._feeder.begin_masks(served, done)
        launched = begun.launched
        slots = [begun.slot_of[self._rectangle.row_slots[span.row]] for span in served]
        ahead = [] if last else self._ahead(begun, served, waiting, done)
        logits = launched.logits
        if ahead and any(slot.chance.kind is Kind.FILTERED for slot in launched.slots):
            # Some may have to be read again after the next step has overwritten them.
            logits = logits.clone()
        following = self._launched_ahead(ahead)
        self._meanwhile()
        codes = launched.tokens()

        def draw(
            logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], output: StepOutput
        ) -> list[int | None]:
            codes_by_row = {
                index: codes[slots[index]]
                for index, state in drawing
                if self._chance(state) is not None and codes[slots[index]] != TOO_FEW_CANDIDATES
            }
            rest = [(slots[index], state) for index, state in drawing if index not in codes_by_row]
            others = iter(self._feeder.draw(logits, rest, masks, output) if rest else [])
            # Below 0 is NOT_FINITE.
            return [
                (codes_by_row[index] if codes_by_row[index] >= 0 else None) if index in codes_by_row else next(others)
                for index, _ in drawing
            ]

        mine = self._feeder.count(served, done, 0)
        mine.slots.empty_row = launched.empty_slots
        mine.slots.finished_row += self._surplus + len(launched.slots) - len(served)
        self._feeder.advance(served, done, logits, mine, masks, lambda: None, draw)
        self._surplus = 0
        if following is not None:
            following.fed = [slot.token if slot.token >= 0 else codes[-1 - slot.token] for slot in ahead]
        self._begun = following
        output.merge(mine)

    def _meanwhile(self) -> None:
        """What the host may do while the device has enough steps."""

    def _ahead(self, begun: _Begun, served: Sequence[Span], waiting: Sequence[Span], done: Set[str]) -> list[Slot]:
        """The slots of the step after this one, as far as known in advance; none if that is not enough."""
        slots = []
        for span in served:
            state = self._feeder.row_states[span.row]
            if state.query.id in done:
                slots.append(self._slot(span, done))
                continue
            chance = self._chance(state)
            if chance is None or span.stop < len(state.tokens):
                return []
            generated = len(state.tokens) - len(state.query.prompt)
            if generated + 1 < state.query.limit_tokens and span.stop < self._rectangle.columns:
                place = self._rectangle.row_slots[span.row]
                slots.append(Slot(place, follows(begun.slot_of[place]), span.stop + 1, chance))
        if all(slot.token >= 0 for slot in slots):
            return []
        return [*slots, *(self._slot(span, done) for span in waiting)]
