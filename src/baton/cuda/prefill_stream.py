"""Computes prompts beside decode steps: on a stream of their own, over any number of steps.

While a fill is in flight its rows do not change and have no output; steps of other rows go on. The first feed after it
is done draws and returns its output. If one of its rows is taken away, the flight is cancelled without effect: a
forward that is not finished wrote only after the rows' ends. A flight that fails is only lost: its prompts are fed once
more, after a step as without streams, where the engine gets the error.
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
    """A forward on the side stream."""

    @property
    def seconds(self) -> float:
        """How long it took, once it is done."""

    def ready(self) -> bool: ...

    def result(self) -> PendingForward:
        """Waits for it. Raises what it raised."""

    def wait(self) -> None:
        """Waits for it, whatever its outcome."""


class Side(Protocol):
    """Where fills are computed beside steps."""

    def first(self) -> AbstractContextManager[None]:
        """Work that is launched in it has priority over fills. Work that is launched outside is in order with it."""

    def begin(self, work: Callable[[], PendingForward], *, behind: bool) -> Work:
        """Launches it on the side; with `behind`, after everything that was launched so far.

        Raises what launching raises.
        """

    def back(self) -> AbstractContextManager[None]:
        """Work that is launched in it comes after fills, and before everything that is launched later."""


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
        self._in_flight: _InFlight | None = None
        self._next: list[Span] = []
        # Prompts are fed after steps, once.
        self._careful = False
        # Rows that were written since they were last in flight, or that a running step may still write.
        self._written: set[int] = set()

    def placed(self, rows: Collection[int]) -> None:
        super().placed(rows)
        self._written.update(rows)

    def moved(self, rows: Collection[int]) -> None:
        self._written.update(rows)

    def leaving(self, rows: Collection[int]) -> None:
        """If one of these rows is in flight, cancels the flight."""
        if self._in_flight is not None and not self._in_flight.rows.isdisjoint(rows):
            self._in_flight.work.wait()
            self._surplus += sum(span.count for span in self._in_flight.spans)
            self._in_flight = None

    def step(self, spans: Spans, how: Feeding, done: Set[str]) -> StepOutput:
        """Rows whose prompt is computed beside are fed nothing until that is done."""
        with self._side.first():
            flying = self._in_flight.rows if self._in_flight is not None else set()
            fed = [span for span in spans() if span.row not in flying]
            self._next = []
            return self._feed_beside(fed, how, done)

    def reset(self) -> None:
        """Forgets slots that were computed in vain, as if nothing had been fed; for rows that hold nothing."""
        self.forget()
        self._surplus = 0

    def _feed_beside(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        prompts = [span for span in spans if span.count > 1]
        single = [span for span in spans if span.count == 1]
        apart = self.placement is PrefillPlacement.SIDE_STREAM and how is Feeding.RAGGED and not self._careful
        if self._in_flight is None and not (apart and prompts and single):
            self._careful = self._careful and not prompts
            self._written.update(span.row for span in spans)
            return self._step(spans, how, done)
        if not single:
            return self._flown()
        self._next = prompts if self._in_flight is None else []
        self._written.update(span.row for span in single)
        output = self._step(single, how, done)
        # If that was not a step of constant shape, the flight begins now.
        self._meanwhile()
        output.beside = self._in_flight is not None
        if self._in_flight is not None and self._in_flight.work.ready():
            try:
                prefilled = self._flown()
            except Exception as error:
                self._lost(error)
            else:
                output.merge(prefilled)
                output.fill_seconds = prefilled.fill_seconds
        return output

    def _meanwhile(self) -> None:
        """Begins the flight that is due; the device has a step to run while the host launches it."""
        spans, self._next = self._next, []
        if not spans:
            return
        in_flight = {span.row for span in spans}
        behind = not in_flight.isdisjoint(self._written)
        try:
            work = self._side.begin(lambda: self._feeder.launch(spans, Feeding.RAGGED, frozenset()), behind=behind)
        except Exception as error:
            self._lost(error)
            return
        self._in_flight = _InFlight(work, spans)
        self._written -= in_flight

    def _flown(self) -> StepOutput:
        """Waits for the flight and returns its output. If it fails, nothing has changed."""
        assert self._in_flight is not None
        in_flight, self._in_flight = self._in_flight, None
        running = in_flight.work.result()
        with self._side.back():
            output = self._feeder.finish(running, frozenset())
        output.fill_seconds = in_flight.work.seconds
        return output

    def _lost(self, error: Exception) -> None:
        short = out_of_memory(error)
        log.warning(
            "prompts could not be computed beside steps: once more, behind one", exc_info=None if short else error
        )
        self._careful = True
