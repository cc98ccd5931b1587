"""When forwards over rows are launched, and when their results are taken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from typing import Protocol

from baton.batch.feeder import RowFeeder
from baton.core.step import Feeding, StepOutput
from baton.model.visibility import Span

Spans = Callable[[], Sequence[Span]]
"""Returns what is fed. A stepper calls it once, in the stream to which the work that it may launch belongs."""


class Stepper(Protocol):
    """Carries out the steps of one feeder's rows."""

    def step(self, spans: Spans, how: Feeding, done: Set[str]) -> StepOutput:
        """Feeds rows, and returns the output of the forwards that are finished; see `Batch.step` for `done`.

        Not all that is fed must be finished; a later step returns the rest. If it raises, nothing was fed.
        """

    def placed(self, rows: Collection[int]) -> None:
        """Queries came into these rows."""

    def moved(self, rows: Collection[int]) -> None:
        """Queries may have gone from one of these rows to another."""

    def leaving(self, rows: Collection[int]) -> None:
        """Queries are about to leave these rows; running work for them is useless now."""


class SynchronousStepper:
    """One forward per step, which is waited for."""

    def __init__(self, feeder: RowFeeder) -> None:
        self._feeder = feeder

    def step(self, spans: Spans, how: Feeding, done: Set[str]) -> StepOutput:
        return self._feeder.run(spans(), how, done)

    def placed(self, rows: Collection[int]) -> None:
        """Nothing runs between steps."""

    moved = leaving = placed
