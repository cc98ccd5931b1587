"""Copies between a device and the host beside the device's steps, one behind the other.

On CUDA it is a stream of its own; `baton/testing/late_lane.py` has one for tests on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from baton.kv.port import CopyEvent


class CopyStream(Protocol):
    """Everything in it happens in its order. So memory of the host that only lanes write may be reused at once."""

    @property
    def device(self) -> torch.device: ...

    def empty(self, size: int) -> Tensor:
        """`[size]` bytes on the device, to be written in the lane."""

    def flags(self, count: int) -> Tensor:
        """`[count]` truth values on the host, to be written in the lane."""

    def begin(self, work: Callable[[], None], uses: Sequence[Tensor] = (), *, behind: bool) -> CopyEvent:
        """Copies; `behind` all that the device was given before. `uses`: what was made outside of the lane."""

    def hand_over(self, tensor: Tensor) -> None:
        """What was made in the lane is used outside of it from now on."""


class CudaLane:
    """A stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def empty(self, size: int) -> Tensor:
        # Made there, so that the allocator gives it to another copy only when this one is through.
        with torch.cuda.stream(self._stream):
            return torch.empty(size, dtype=torch.uint8, device=self.device)

    def flags(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.bool, pin_memory=True)

    def begin(self, work: Callable[[], None], uses: Sequence[Tensor] = (), *, behind: bool) -> CopyEvent:
        if behind:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            work()
            event = torch.cuda.Event()
            event.record(self._stream)
        for tensor in uses:
            tensor.record_stream(self._stream)
        return _CudaMark(event, self.device)

    def hand_over(self, tensor: Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(self.device))


class _CudaMark:
    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self._event = event
        self._device = device

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)
