"""A stream of copies on the CPU that copies late: a reader that is too early reads NaN."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from baton.kv.port import CopyEvent


class LateLane:
    """On the CPU: nothing is copied before it was polled `polls` times, or waited for."""

    def __init__(self, polls: int = 2) -> None:
        self.device = torch.device("cpu")
        self.waits = 0
        """How often the host waited."""
        self._polls = polls
        self._queue: deque[tuple[_LateMark, Callable[[], None]]] = deque()

    def empty(self, size: int) -> Tensor:
        # NaN in any floating-point type.
        return torch.full((size,), 255, dtype=torch.uint8)

    def flags(self, count: int) -> Tensor:
        return torch.ones(count, dtype=torch.bool)

    def begin(self, work: Callable[[], None], uses: Sequence[Tensor] = (), *, behind: bool) -> CopyEvent:
        mark = _LateMark(self, self._polls)
        self._queue.append((mark, work))
        return mark

    def hand_over(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def run_to(self, mark: _LateMark) -> None:
        while not mark.reached:
            passed, work = self._queue.popleft()
            work()
            passed.reached = True


class _LateMark:
    def __init__(self, lane: LateLane, polls: int) -> None:
        self.reached = False
        self._lane = lane
        self._polls = polls

    def done(self) -> bool:
        self._polls -= 1
        if self._polls < 0:
            self._lane.run_to(self)
        return self.reached

    def wait(self) -> None:
        self._lane.waits += not self.reached
        self._lane.run_to(self)

    def join(self) -> None:
        self._lane.run_to(self)
