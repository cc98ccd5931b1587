"""Seconds of a piece of work, on the device's own clock if it has one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def seconds_of(run: Callable[[], object], device: torch.device, count: int) -> float:
    """The median; on the device if it has events."""
    run()
    seconds = []
    for _ in range(count):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def replayed(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of a graph of it, on a device that has them."""
    run()
    if device.type != "cuda":
        return seconds_of(run, device, 1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return seconds_of(graph.replay, device, 10)
