"""Rows whose prompts are computed beside decode steps: on a stream of their own, however many steps that takes.

While a fill is in flight its rows are as they were, and nobody is told of them; steps of the others go on. When it is
done, the feed that finds it so draws and tells. A row that is taken away before ends the flight, and nothing has come
of it: a forward that is not finished wrote only behind the rows' ends. A flight that fails is nothing but lost: its
prompts are fed once more, behind a step as without streams, where the engine hears of what fails.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from baton.batch.row_state import PendingForward
from baton.core.query import Query, SamplingParams
from baton.core.step import Feeding, StepOutput
from baton.cuda.async_rows import AsyncRows
from baton.cuda.decode_steps import BUCKETS, Steps
from baton.cuda.forward import CudaForward
from baton.kv.budget import out_of_memory
from baton.kv.port import KVOffload
from baton.kv.rectangle import Rectangle
from baton.kv.segment import KVSegment, arrived
from baton.model.execution import PrefillPlacement
from baton.model.port import ModelRunner
from baton.model.visibility import Span
from baton.sampling.sampler import Sampler

log = logging.getLogger("baton.model")

# What is measured: so many tokens of a prompt beside steps, so many times, and once before.
_TOKENS, _TURNS = 512, 3
_MOST_STEPS = 64


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


class PrefillStreamRows(AsyncRows):
    """Prompts are computed beside steps, unless `prompts` says otherwise: then as in AsyncRows."""

    def __init__(
        self,
        rectangle: Rectangle,
        forward: ModelRunner,
        sampler: Sampler,
        stamp: str,
        steps: Steps,
        side: Side,
        *,
        copies: KVOffload | None = None,
    ) -> None:
        super().__init__(rectangle, forward, sampler, stamp, steps, copies=copies)
        self.prompts = PrefillPlacement.SIDE_STREAM
        self._side = side
        self._flight: _InFlight | None = None
        self._next: list[Span] = []
        # Prompts are fed behind steps, once.
        self._careful = False
        # Rows that were written to, or may still be by a step that runs, since they were last in flight.
        self._written: set[int] = set()

    def place(self, segment: KVSegment, among: range) -> None:
        super().place(segment, among)
        self._written.add(self._row_of[segment.query.id])

    def drop(self, query_id: str) -> None:
        self._settle({self._find(query_id)})
        super().drop(query_id)

    def lift(self, query_id: str, *, copy: bool) -> KVSegment:
        self._settle({self._find(query_id)})
        return super().lift(query_id, copy=copy)

    def pack(self, among: range, rows: int) -> None:
        self._settle(among)
        super().pack(among, rows)
        self._written.update(among)

    def _once(self, most: Mapping[str, int], how: Feeding, done: Set[str]) -> StepOutput:
        """As `AsyncRows._once`; rows whose prompt is computed beside are fed nothing until that is done."""
        with self._side.first():
            flying = self._flight.rows if self._flight is not None else set()
            spans = [span for span in self._spans(self._landed(most), done) if span.row not in flying]
            self._next = []
            return self._feed_beside(spans, how, done)

    def _feed_beside(self, spans: Sequence[Span], how: Feeding, done: Set[str]) -> StepOutput:
        prompts = [span for span in spans if span.count > 1]
        single = [span for span in spans if span.count == 1]
        apart = self.prompts is PrefillPlacement.SIDE_STREAM and how is Feeding.RAGGED and not self._careful
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
            work = self._side.begin(lambda: self._run(spans, Feeding.RAGGED, frozenset()), behind=behind)
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
            stepped = self._finish(running, frozenset())
        stepped.fill_seconds = flight.work.seconds
        return stepped

    def _lost(self, error: Exception) -> None:
        short = out_of_memory(error)
        log.warning(
            "prompts could not be computed beside steps: once more, behind one", exc_info=None if short else error
        )
        self._careful = True

    def _settle(self, rows: Collection[int]) -> None:
        """Where one of these rows is in flight, the flight is over, and nothing came of it."""
        if self._flight is not None and not self._flight.rows.isdisjoint(rows):
            self._flight.work.settle()
            self._surplus += sum(span.count for span in self._flight.spans)
            self._flight = None

    def gains(self, batch: range, prompts: range) -> dict[PrefillPlacement, float]:
        """How many times as fast as behind a step the same work is done: part of a prompt, and some steps.

        Measured on rows that hold nothing: those of `batch` decode, and the first of `prompts` is filled. Nothing
        where rows are too short for it.
        """
        if self.rectangle.columns < 2 * _MOST_STEPS:
            return {}
        ratios: dict[PrefillPlacement, list[float]] = {PrefillPlacement.SIDE_STREAM: [], PrefillPlacement.FUSED: []}
        for turn in range(1 + _TURNS):
            beside, steps = self._timed(batch, prompts, PrefillPlacement.SIDE_STREAM, 0)
            behind, fused = (
                self._timed(batch, prompts, how, steps)[0]
                for how in (PrefillPlacement.AFTER_DECODE, PrefillPlacement.FUSED)
            )
            if turn:
                ratios[PrefillPlacement.SIDE_STREAM].append(behind / beside)
                ratios[PrefillPlacement.FUSED].append(behind / fused)
        self.prompts = PrefillPlacement.SIDE_STREAM
        return {how: statistics.median(found) for how, found in ratios.items()}

    def _timed(self, batch: range, prompts: range, how: PrefillPlacement, steps: int) -> tuple[float, int]:
        """Seconds and steps until the prompt is filled, and at least so many steps are done.

        Seconds are infinite where the prompt was not filled in the most steps that are waited for.
        """
        self.prompts = how
        tokens = min(_TOKENS, self.rectangle.columns - 1)
        rows = {f"row {row}": 1 for row in batch[: BUCKETS[-1]]}
        try:
            for name in rows:
                self.place(_begun(name, 1, self._stamp), batch)
            # From now on there is always a step that was begun ahead.
            self.feed(rows, Feeding.RAGGED)
            self.place(_begun("prompt", tokens, self._stamp), prompts)
            began, taken, filled = time.perf_counter(), 0, False
            while taken < steps or (not filled and taken < _MOST_STEPS):
                feed = rows if filled else {**rows, "prompt": tokens}
                filled = "prompt" in self.feed(feed, Feeding.RAGGED).tokens or filled
                taken += 1
            return time.perf_counter() - began if filled else math.inf, taken
        finally:
            for name in [*self._row_of]:
                self.drop(name)
            self._forget()
            self._surplus = 0


def fastest(rows: PrefillStreamRows, forward: CudaForward, batch: int) -> PrefillPlacement:
    """Where prompts are computed fastest on this machine: measured once for a model, and told of there.

    The first `batch` rows are those that decode.
    """
    if forward.gains is None:
        try:
            forward.gains = rows.gains(range(batch), range(batch, rows.rectangle.capacity))
        except Exception:
            log.warning("where prompts are computed fastest could not be measured", exc_info=True)
            forward.gains = {}
    return forward.placement


def _begun(name: str, tokens: int, stamp: str) -> KVSegment:
    """A query that nobody asked."""
    params = SamplingParams(temperature=0, max_tokens=2 * _MOST_STEPS, ignore_eos=True)
    prompt, limit = (1,) * tokens, 2 * _MOST_STEPS
    return arrived(Query(id=name, prompt=prompt, params=params, seed=0, limit_tokens=limit, arrived=0.0), stamp)
