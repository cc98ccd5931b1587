"""CUDA graphs that run one after the other on a stream, in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Graphs:
    """Graphs in one memory pool. All are replayed on one stream, so only one at a time needs working memory.

    Graphs that are captured later do not use memory that an earlier graph left and that is still referred to; earlier
    graphs may. So a result is valid until an earlier graph is replayed.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A stream of its own, in order with the current one: code runs in it before it is captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def captured(self, work: Callable[[], T]) -> tuple[Callable[[], Any], T]:
        """Captures this work, which does not run yet. Returns what replays it, and its results' tensors.

        Raises RuntimeError if something in it cannot be captured.
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
        """Torch before 2.12 leaves a failed capture half open, and no other would ever work (pytorch#180395)."""
        close = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if close is not None:
            # Newer versions say that it is closed already.
            with suppress(RuntimeError):
                close(torch.cuda.current_device(), self._pool)
