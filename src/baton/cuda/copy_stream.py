"""Copies between a device and the host beside the device's steps, one after the other.

On CUDA it is a stream of its own; `baton/testing/late_lane.py` has one for tests on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from baton.kv.port import CopyEvent


class CopyStream(Protocol):
    """Work in it happens in order. So host memory that only copy streams write may be reused at once."""

    @property
    def device(self) -> torch.device: ...

    def empty(self, size: int) -> Tensor:
        """`[size]` bytes on the device, to be written in the stream."""

    def flags(self, count: int) -> Tensor:
        """`[count]` booleans on the host, to be written in the stream."""

    def begin(self, work: Callable[[], None], uses: Sequence[Tensor] = (), *, behind: bool) -> CopyEvent:
        """Begins copies; with `behind`, after all earlier work of the device.

        `uses`: tensors made outside of the stream.
        """

    def hand_over(self, tensor: Tensor) -> None:
        """A tensor that was made in the stream is used outside of it from now on."""


class CudaCopyStream:
    """A CUDA stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def empty(self, size: int) -> Tensor:
        # Allocated in the stream, so that another copy gets the memory only after this one.
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
        return _CudaCopyEvent(event, self.device)

    def hand_over(self, tensor: Tensor) -> None:
        tensor.record_stream(torch.cuda.current_stream(self.device))


class _CudaCopyEvent:
    def __init__(self, event: torch.cuda.Event, device: torch.device) -> None:
        self._event = event
        self._device = device

    def done(self) -> bool:
        return bool(self._event.query())

    def wait(self) -> None:
        self._event.synchronize()

    def join(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)
