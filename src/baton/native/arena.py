"""Memory for packed weights, and memory given back to the system."""

from __future__ import annotations

import contextlib
import mmap
from ctypes import CDLL, c_size_t, c_void_p

import torch
from torch import Tensor

from baton.native.packing import aligned

_HUGE_PAGE = 2 << 20


class Arena:
    """Memory for all packed weights together, in huge pages if the system has them.

    Fewer pages must then be looked up, and prefetching does not end at each. Or a mapped file with all of them, which
    begin at `start`.
    """

    def __init__(self, size: int, mapped: mmap.mmap | None = None, start: int = 0) -> None:
        self._size = size
        if mapped is not None:
            self._memory = mapped
            self._next = torch.frombuffer(mapped, dtype=torch.uint8).data_ptr() + start
            return
        # Private, because shared memory has no huge pages.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._memory = mmap.mmap(-1, size + _HUGE_PAGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        begin = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        self._next = -(-begin // _HUGE_PAGE) * _HUGE_PAGE
        self._offset = self._next - begin

    @property
    def memory(self) -> memoryview:
        """All of it that is used, which was not mapped from a file."""
        return memoryview(self._memory)[self._offset : self._offset + self._size]

    def take(self, size: int) -> int:
        """Returns the address of so many bytes, at the start of a cache line."""
        address = self._next
        self._next += aligned(size)
        return address


def trim() -> None:
    """Gives back what the C library keeps of freed memory: after many large pieces it is half of what they became."""
    with contextlib.suppress(AttributeError, OSError):
        CDLL(None).malloc_trim(c_size_t(0))


def drop_pages(tensor: Tensor) -> None:
    """Gives back the memory of numbers that are not needed any more.

    The memory may be a part of a mapped file that others still read.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    lies_whole = tensor.is_contiguous() or (tensor.dim() == 2 and tensor.t().is_contiguous())
    if start < stop and lies_whole:
        give_back(start, stop)


def give_back(start: int, stop: int) -> None:
    """Gives back whole pages."""
    if hasattr(mmap, "MADV_DONTNEED"):
        CDLL(None).madvise(c_void_p(start), c_size_t(stop - start), mmap.MADV_DONTNEED)
