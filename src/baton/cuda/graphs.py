"""CUDA graphs that follow one another on a stream, in memory that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Graphs:
    """Graphs in one pool of memory: all are replayed on one stream, so only one at a time needs room to compute in.

    What a graph left, and is still referred to, no graph that was captured later computes in; those that were captured
    before may. So it is good until one of these is replayed.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """On a stream of its own, in order with the current one: what is run before it is captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def captured(self, work: Callable[[], T]) -> tuple[Callable[[], Any], T]:
        """What replays this work, which is not done yet, and where it leaves what it answers.

        Raises RuntimeError where something in it cannot be captured.
        """
        before = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                left = work()
        except BaseException:
            torch.cuda.set_stream(before)
            self._close()
            raise
        return graph.replay, left

    def _close(self) -> None:
        """Torch before 2.12 leaves a capture that failed half open, and no other would ever work (pytorch#180395)."""
        close = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if close is not None:
            # Newer ones say that it is closed already.
            with suppress(RuntimeError):
                close(torch.cuda.current_device(), self._pool)
