"""Two streams of a CUDA device: steps on one that goes first, fills on the other beside them."""

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

    def settle(self) -> None:
        self.done.synchronize()


class Streams:
    """See `Side` in `cuda/prefill_stream.py`.

    The stream that is current outside stays in order with steps, not with fills.
    """

    def __init__(self, rectangle: Rectangle) -> None:
        # The lower goes first: a step's programs begin before those of a fill that wait. Torch has some streams of each
        # priority and gives them out in turn. Those of 0 are where graphs are captured, which go on using what cuBLAS
        # has allocated for that stream, whatever they are replayed on: nothing of ours may run there beside them.
        self._steps = torch.cuda.Stream(priority=-2)
        self._fills = torch.cuda.Stream(priority=-1)
        for layer in zip(rectangle.keys, rectangle.values, strict=True):
            for buffer in layer:
                # Its memory is not given to others while a fill may still write to it.
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
                # What was launched of it must not write to rows that are somebody else's by then.
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
