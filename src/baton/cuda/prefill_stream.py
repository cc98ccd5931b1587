"""Prompts are computed beside decode steps: on a stream of their own, however many steps that takes.

While a fill is in flight its rows are as they were, and nobody is told of them; steps of the others go on. When it is
done, the feed that finds it so draws and tells. A row that is taken away before ends the flight, and nothing has come
of it: a forward that is not finished wrote only behind the rows' ends. A flight that fails is nothing but lost: its
prompts are fed once more, behind a step as without streams, where the engine hears of what fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from baton.batch.feeder import RowFeeder
from baton.batch.row_state import PendingForward
from baton.batch.stepper import Spans
from baton.core.step import Feeding, StepOutput
from baton.cuda.async_stepper import AsyncStepper
from baton.cuda.decode_steps import Steps
from baton.kv.budget import out_of_memory
from baton.model.execution import PrefillPlacement
from baton.model.visibility import Span

log = logging.getLogger("baton.model")


class Work(Protocol):
    """A forward on the side."""

    @property
    def seconds(self) -> float:
        """How long it took, once it is done."""

    def ready(self) -> bool: ...

    def result(self) -> PendingForward:
        """Waits for it. Raises what it raised."""

    def settle(self) -> None:
        """Waits for it, whatever comes of it."""


class Side(Protocol):
    """Where fills are computed beside steps."""

    def first(self) -> AbstractContextManager[None]:
        """What is launched in it goes before fills; whatever is launched outside is in order with it."""

    def begin(self, work: Callable[[], PendingForward], *, behind: bool) -> Work:
        """Launches it on the side; `behind` all that was launched so far. Raises what launching raises."""

    def back(self) -> AbstractContextManager[None]:
        """What is launched in it is behind fills, and before all that is launched later."""


@dataclass(frozen=True, slots=True)
class _InFlight:
    work: Work
    spans: Sequence[Span]

    @property
    def rows(self) -> set[int]:
        return {span.row for span in self.spans}


class PrefillStreamStepper(AsyncStepper):
    """Prompts are computed beside steps, unless `placement` says otherwise: then as by an AsyncStepper."""

    def __init__(self, feeder: RowFeeder, steps: Steps, side: Side) -> None:
        super().__init__(feeder, steps)
        self.placement = PrefillPlacement.SIDE_STREAM
        self._side = side
        self._flight: _InFlight | None = None
        self._next: list[Span] = []
        # Prompts are fed behind steps, once.
        self._careful = False
        # Rows that were written to, or may still be by a step that runs, since they were last in flight.
        self._written: set[int] = set()

    def placed(self, rows: Collection[int]) -> None:
        super().placed(rows)
        self._written.update(rows)

    def moved(self, rows: Collection[int]) -> None:
        self._written.update(rows)

    def leaving(self, rows: Collection[int]) -> None:
        """If one of these rows is in flight, the flight is over, and nothing came of it."""
        if self._flight is not None and not self._flight.rows.isdisjoint(rows):
            self._flight.work.settle()
            self._surplus += sum(span.count for span in self._flight.spans)
            self._flight = None

    def step(self, spans: Spans, how: Feeding, done: Set[str]) -> StepOutput:
        """Rows whose prompt is computed beside are fed nothing until that is done."""
        with self._side.first():
            flying = self._flight.rows if self._flight is not None else set()
            fed = [span for span in spans() if span.row not in flying]
            self._next = []
            return self._feed_beside(fed, how, done)

    def reset(self) -> None:
        """Forgets what was computed for nobody, as if nothing had been fed; for rows that hold nothing."""
        self.forget()
        self._surplus = 0

    def _feed_beside(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        prompts = [span for span in spans if span.count > 1]
        single = [span for span in spans if span.count == 1]
        apart = self.placement is PrefillPlacement.SIDE_STREAM and how is Feeding.RAGGED and not self._careful
        if self._flight is None and not (apart and prompts and single):
            self._careful = self._careful and not prompts
            self._written.update(span.row for span in spans)
            return self._step(spans, how, done)
        if not single:
            return self._flown()
        self._next = prompts if self._flight is None else []
        self._written.update(span.row for span in single)
        stepped = self._step(single, how, done)
        # Where that was no step of constant shape.
        self._meanwhile()
        stepped.beside = self._flight is not None
        if self._flight is not None and self._flight.work.ready():
            try:
                told = self._flown()
            except Exception as error:
                self._lost(error)
            else:
                stepped.merge(told)
                stepped.fill_seconds = told.fill_seconds
        return stepped

    def _meanwhile(self) -> None:
        """Begins the flight that is due; the device has a step to go on with while the host launches it."""
        spans, self._next = self._next, []
        if not spans:
            return
        flight = {span.row for span in spans}
        behind = not flight.isdisjoint(self._written)
        try:
            work = self._side.begin(lambda: self._feeder.launch(spans, Feeding.RAGGED, frozenset()), behind=behind)
        except Exception as error:
            self._lost(error)
            return
        self._flight = _InFlight(work, spans)
        self._written -= flight

    def _flown(self) -> StepOutput:
        """Waits for the flight, and tells what came of it. Where that fails nothing has."""
        assert self._flight is not None
        flight, self._flight = self._flight, None
        running = flight.work.result()
        with self._side.back():
            stepped = self._feeder.finish(running, frozenset())
        stepped.fill_seconds = flight.work.seconds
        return stepped

    def _lost(self, error: Exception) -> None:
        short = out_of_memory(error)
        log.warning(
            "prompts could not be computed beside steps: once more, behind one", exc_info=None if short else error
        )
        self._careful = True
