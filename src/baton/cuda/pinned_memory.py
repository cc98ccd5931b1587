"""Host memory that a device copies from and to directly: pinned once, in slabs, and reused.

torch's own cache of pinned memory rounds every piece up to a power of two and never joins pieces again; pools that hold
rows of all lengths would pin twice what they may. So slabs are taken from it, and divided here.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

log = logging.getLogger("baton.kv")

SLAB_BYTES = 2**28
"""How much is pinned at once; more if a row is longer."""


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """`size` bytes of `base`, from `start` on. `slab`: its number; None: memory of its own, not pinned."""

    base: Tensor
    start: int
    size: int
    slab: int | None

    @property
    def bytes(self) -> Tensor:
        """`[size]`."""
        return self.base[self.start : self.start + self.size]

    def cut(self, at: int, size: int) -> Extent:
        return Extent(self.base, self.start + at, size, self.slab)


def pin(size: int) -> Tensor:
    """`[size]` bytes of pinned memory. Raises if the system gives none."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class HostMemory:
    """Pins at most `most` bytes. Beyond that, and if memory cannot be pinned, pieces are ordinary memory.

    The first slab is pinned at once. The next, which takes some 100 ms, is pinned by a thread of its own when the last
    is half full. `longest`: bytes that must fit into one.
    """

    def __init__(self, most: int, *, longest: int = 0, pin: Callable[[int], Tensor] = pin) -> None:
        self.pinned_bytes = 0
        self.used_bytes = 0
        """Of what is pinned."""
        self.unpinned_pieces = 0
        """How many pieces were ever given that are not pinned."""
        self.trouble = ""
        """Why no more can be pinned."""
        self._pin = pin
        # torch rounds up to powers of two.
        wanted = 1 << (max(SLAB_BYTES, longest) - 1).bit_length()
        self._slab_bytes = min(wanted, 1 << max(0, most.bit_length() - 1))
        self._most_slabs = most // self._slab_bytes
        self._slabs: list[Tensor] = []
        # For each slab: where its free runs begin, in order, and how long they are.
        self._starts: list[list[int]] = []
        self._sizes: list[list[int]] = []
        self._thread: ThreadPoolExecutor | None = None
        self._coming: Future[Tensor] | None = None
        if self._most_slabs:
            self._add(lambda: pin(self._slab_bytes))

    @property
    def idle_bytes(self) -> int:
        """Bytes that are pinned and not in use."""
        return self.pinned_bytes - self.used_bytes

    def take(self, count: int, size: int) -> list[Extent]:
        """Room for `count` pieces of `size` bytes, in as few extents as possible. Raises if there is no memory."""
        self._grow()
        return self._fitting(count, size)

    def give(self, extent: Extent) -> None:
        """It may be reused as soon as the work that was begun in the copy stream is done."""
        if extent.slab is None:
            return
        self.used_bytes -= extent.size
        starts, sizes = self._starts[extent.slab], self._sizes[extent.slab]
        at = bisect.bisect(starts, extent.start)
        starts.insert(at, extent.start)
        sizes.insert(at, extent.size)
        for left in (at, at - 1):
            if 0 <= left < len(starts) - 1 and starts[left] + sizes[left] == starts[left + 1]:
                sizes[left] += sizes[left + 1]
                del starts[left + 1], sizes[left + 1]

    def _fitting(self, count: int, size: int) -> list[Extent]:
        extent = self._first(count * size)
        if extent is not None:
            return [extent]
        if max((largest for sizes in self._sizes for largest in sizes), default=0) < size:
            self.unpinned_pieces += count
            return [Extent(torch.empty(size, dtype=torch.uint8), 0, size, None) for _ in range(count)]
        taken = self._fitting(count // 2, size)
        try:
            return taken + self._fitting(count - count // 2, size)
        except Exception:
            for extent in taken:
                self.give(extent)
            raise

    def _first(self, size: int) -> Extent | None:
        for slab, (starts, sizes) in enumerate(zip(self._starts, self._sizes, strict=True)):
            for at, free in enumerate(sizes):
                if free < size:
                    continue
                start = starts[at]
                starts[at] += size
                sizes[at] -= size
                if not sizes[at]:
                    del starts[at], sizes[at]
                self.used_bytes += size
                return Extent(self._slabs[slab], start, size, slab)
        return None

    def _grow(self) -> None:
        if self._coming is not None and self._coming.done():
            self._add(self._coming.result)
            self._coming = None
        full = self.idle_bytes < self._slab_bytes // 2
        if full and self._coming is None and not self.trouble and len(self._slabs) < self._most_slabs:
            self._thread = self._thread or ThreadPoolExecutor(1, "baton-pin")
            self._coming = self._thread.submit(self._pin, self._slab_bytes)

    def _add(self, slab: Callable[[], Tensor]) -> None:
        try:
            self._slabs.append(slab())
        except Exception as error:
            # Whatever a driver raises: it works without pinning, more slowly.
            self.trouble = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("memory of the host cannot be pinned (%s): copies of keys and values are slower", self.trouble)
            return
        self._starts.append([0])
        self._sizes.append([self._slab_bytes])
        self.pinned_bytes += self._slab_bytes
