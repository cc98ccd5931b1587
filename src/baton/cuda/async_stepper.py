"""The next decode step is begun before the host has read what the last one drew, so that a device never waits.

A step that was begun so serves those of its rows that are still there and drew what it was fed; a row's result is its
own, whoever is beside it. A row that ended meanwhile was computed once for nobody, which is counted; one that came
meanwhile joins the step after. Nothing of a step that was begun is to be seen until a feed asks for it: it wrote
only behind the rows' ends.
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
from baton.sampling.on_device import LOOK_AGAIN, Kind

log = logging.getLogger("baton.model")


@dataclass(slots=True)
class _Begun:
    """A step that runs: at which slot each place is. `fed`: what each slot was fed, once that is known."""

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
        # Slots that were computed for nobody, and not told of yet.
        self._surplus = 0

    def placed(self, rows: Collection[int]) -> None:
        # The step that runs was begun for whoever was in these rows before.
        if self._begun is not None:
            for row in rows:
                self._begun.slot_of.pop(self._rectangle.row_slots[row], None)

    def moved(self, rows: Collection[int]) -> None:
        """A step that runs knows rows by where they lie, which stays."""

    def leaving(self, rows: Collection[int]) -> None:
        """Whoever leaves was computed once for nobody; the next step counts that."""

    def step(self, spans: Spans, how: Feeding, done: Set[str]) -> StepOutput:
        """A row that came while a step was running may be fed nothing, once."""
        return self._step(spans(), how, done)

    def forget(self) -> None:
        """The step that was begun ahead was for nobody."""
        if self._begun is not None:
            self._surplus += len(self._begun.launched.slots)
        self._begun = None

    def _step(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        single = [span for span in spans if span.count == 1]
        if len(single) > BUCKETS[-1] or any(span.every for span in single):
            # Steps of the forward's own would come between.
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
            # The step that runs is heard first, and none is begun behind it: prompts go with the next.
            spans = single
        begun, served = self._served(wanted)
        waiting = [span for span in wanted if span not in served]
        others = [span for span in spans if span not in served]
        if len(others) == len(waiting):
            others = []
        else:
            waiting = []
        stepped = self._feeder.run(others, how, done) if others else StepOutput()
        try:
            self._collect(begun, served, waiting, done, stepped, last=fused)
        except Exception:
            # The step after may have been launched, and left its tokens where this one's were.
            self.forget()
            if not others:
                raise
            # What came of the others is to be told of; rows that were fed nothing are fed by the next step.
            log.warning("a step failed beside prompts that were fed", exc_info=True)
        return stepped

    def _served(self, wanted: Mapping[Span, Slot]) -> tuple[_Begun, list[Span]]:
        """A step that runs, and whom it serves: the one that was begun ahead, or where it serves no one a new one."""
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
        """None where it does not begin: rows have been fed by now, and it is the next feed that has to fail."""
        try:
            return self._launch(slots) if slots else None
        except Exception:
            return None

    def _slot(self, span: Span, done: Set[str]) -> Slot:
        found = self._feeder.occupants[span.row]
        chance = None if found.query.id in done else self._chance(found)
        return Slot(self._rectangle.row_slots[span.row], found.tokens[span.start], span.stop, chance or GREEDY)

    def _chance(self, found: RowState) -> Chance | None:
        """None where its next token is not drawn on the device."""
        return None if found.guide is not None else chance_of(found.draw(None))

    def _is_begun(self, slot: Slot) -> bool:
        return self._begun is not None and self._begun.serves(slot)

    def _collect(
        self,
        begun: _Begun,
        served: Sequence[Span],
        waiting: Sequence[Span],
        done: Set[str],
        stepped: StepOutput,
        *,
        last: bool,
    ) -> None:
        """Begins the step after, unless this is the `last`, waits for this one, and tells what came of it."""
        masks = self._feeder.begin_masks(served, done)
        launched = begun.launched
        slots = [begun.slot_of[self._rectangle.row_slots[span.row]] for span in served]
        ahead = [] if last else self._ahead(begun, served, waiting, done)
        logits = launched.logits
        if ahead and any(slot.chance.kind is Kind.FILTERED for slot in launched.slots):
            # Some may have to be looked at again, when the next step has left its own there.
            logits = logits.clone()
        following = self._launched_ahead(ahead)
        self._meanwhile()
        codes = launched.tokens()

        def draw(
            logits: Tensor, drawing: Sequence[Drawing], masks: Mapping[str, Mask], stepped: StepOutput
        ) -> list[int | None]:
            told = {
                index: codes[slots[index]]
                for index, found in drawing
                if self._chance(found) is not None and codes[slots[index]] != LOOK_AGAIN
            }
            rest = [(slots[index], found) for index, found in drawing if index not in told]
            others = iter(self._feeder.draw(logits, rest, masks, stepped) if rest else [])
            # Below 0 is NOT_FINITE.
            return [
                (told[index] if told[index] >= 0 else None) if index in told else next(others) for index, _ in drawing
            ]

        mine = self._feeder.count(served, done, 0)
        mine.slots.empty_row = launched.empty_slots
        mine.slots.finished_row += self._surplus + len(launched.slots) - len(served)
        self._feeder.advance(served, done, logits, mine, masks, lambda: None, draw)
        self._surplus = 0
        if following is not None:
            following.fed = [slot.token if slot.token >= 0 else codes[-1 - slot.token] for slot in ahead]
        self._begun = following
        stepped.merge(mine)

    def _meanwhile(self) -> None:
        """What the host may do while the device has steps enough."""

    def _ahead(self, begun: _Begun, served: Sequence[Span], waiting: Sequence[Span], done: Set[str]) -> list[Slot]:
        """The slots of the step after this one, as far as can be known before it; none where that is not enough."""
        slots = []
        for span in served:
            found = self._feeder.occupants[span.row]
            if found.query.id in done:
                slots.append(self._slot(span, done))
                continue
            chance = self._chance(found)
            if chance is None or span.stop < len(found.tokens):
                return []
            generated = len(found.tokens) - len(found.query.prompt)
            if generated + 1 < found.query.limit_tokens and span.stop < self._rectangle.columns:
                place = self._rectangle.row_slots[span.row]
                slots.append(Slot(place, follows(begun.slot_of[place]), span.stop + 1, chance))
        if all(slot.token >= 0 for slot in slots):
            return []
        return [*slots, *(self._slot(span, done) for span in waiting)]
