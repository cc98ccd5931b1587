"""Two streams of a CUDA device: one for steps, with priority, and one for fills beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from baton.batch.row_state import PendingForward
from baton.kv.rectangle import Rectangle


@dataclass(frozen=True, slots=True)
class OnStream:
    """A forward on the stream of fills, between two events."""

    running: PendingForward
    begun: torch.cuda.Event
    done: torch.cuda.Event

    @property
    def seconds(self) -> float:
        return float(self.begun.elapsed_time(self.done)) / 1e3

    def ready(self) -> bool:
        return bool(self.done.query())

    def result(self) -> PendingForward:
        self.done.synchronize()
        return self.running

    def wait(self) -> None:
        self.done.synchronize()


class Streams:
    """See `Side` in `cuda/prefill_stream.py`.

    The stream that is current outside stays in order with steps, not with fills.
    """

    def __init__(self, rectangle: Rectangle) -> None:
        # A lower number is a higher priority: a step's programs begin before waiting ones of a fill. Torch has some
        # streams of each priority and gives them out in turn. Graphs are captured on those of priority 0, and go on
        # using what cuBLAS has allocated for that stream, whatever they are replayed on: none of our own work may run
        # there beside them.
        self._steps = torch.cuda.Stream(priority=-2)
        self._fills = torch.cuda.Stream(priority=-1)
        for layer in zip(rectangle.keys, rectangle.values, strict=True):
            for buffer in layer:
                # Its memory must not be reused while a fill may still write to it.
                buffer.record_stream(self._fills)

    @contextmanager
    def first(self) -> Iterator[None]:
        outside = torch.cuda.current_stream()
        self._steps.wait_stream(outside)
        try:
            with torch.cuda.stream(self._steps):
                yield
        finally:
            outside.wait_stream(self._steps)

    def begin(self, work: Callable[[], PendingForward], *, behind: bool) -> OnStream:
        if behind:
            self._fills.wait_stream(torch.cuda.current_stream())
        begun, done = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._fills):
            begun.record()
            try:
                running = work()
            except BaseException:
                # Work that was launched must not write to rows that belong to other queries by then.
                self._fills.synchronize()
                raise
            done.record()
        return OnStream(running, begun, done)

    @contextmanager
    def back(self) -> Iterator[None]:
        steps = torch.cuda.current_stream()
        try:
            with torch.cuda.stream(self._fills):
                yield
        finally:
            steps.wait_stream(self._fills)
