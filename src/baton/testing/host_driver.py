"""A CPU's memory in place of a GPU's: addresses are reserved, and pages are mapped to them later."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import sys
from collections.abc import Sequence

import torch

from baton.cuda.virtual_memory import Reserved

_NO_ACCESS, _READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
_FAILED = ctypes.c_void_p(-1).value
# The bytes of a newly mapped page, whose content is arbitrary; they are NaN in every float format.
_RUBBISH = 0xFF


class HostDriver:
    """A CPU's memory under the same rules, for tests: touching an unmapped address ends the process.

    `pages`: how many there are, `left` of them free. A newly mapped page is full of NaN.
    """

    def __init__(self, pages: int = sys.maxsize) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._serials = itertools.count()
        self.left = pages
        # By address, if it is mapped.
        self._mapped: dict[int, int] = {}

    @property
    def granularity(self) -> int:
        return mmap.PAGESIZE

    def reserve(self, size: int) -> Reserved:
        address = self._libc.mmap(None, ctypes.c_size_t(size), _NO_ACCESS, _PRIVATE, -1, ctypes.c_long(0))
        if address in (None, _FAILED):
            raise torch.OutOfMemoryError(f"{size / 2**30:.1f} GiB of addresses are not to be had")
        holder = (ctypes.c_ubyte * size).from_address(address)
        return Reserved(torch.frombuffer(holder, dtype=torch.uint8), address, holder)

    def create(self, size: int) -> int:
        if not self.left:
            raise torch.OutOfMemoryError("no page is left")
        self.left -= 1
        return next(self._serials)

    def map(self, address: int, size: int, pages: Sequence[int]) -> None:
        for at, page in enumerate(pages):
            if page in self._mapped.values() or address + at * size in self._mapped:
                raise RuntimeError("a page is mapped twice")
            self._mapped[address + at * size] = page
        self._call("mprotect", address, len(pages) * size, _READ_WRITE)
        ctypes.memset(address, _RUBBISH, len(pages) * size)

    def unmap(self, address: int, size: int) -> None:
        for at in [at for at in self._mapped if address <= at < address + size]:
            del self._mapped[at]
        self._call("madvise", address, size, mmap.MADV_DONTNEED)
        self._call("mprotect", address, size, _NO_ACCESS)

    def release(self, page: int) -> None:
        if page in self._mapped.values():
            raise RuntimeError("a page is released that is still mapped")
        self.left += 1

    def free(self, address: int, size: int) -> None:
        self._call("munmap", address, size)

    def synchronize(self) -> None:
        """There is no work besides the caller's."""

    def make_room(self) -> None:
        """Nothing else keeps memory."""

    def _call(self, name: str, address: int, size: int, *how: int) -> None:
        if getattr(self._libc, name)(ctypes.c_void_p(address), ctypes.c_size_t(size), *how):
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
