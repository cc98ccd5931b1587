"""How much memory rows and swap may take now: as set, or less while other processes need the memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from baton.core.clock import Clock

log = logging.getLogger("baton.kv")

SPARE_BYTES = 128 * 2**20
"""Left to other processes: rows and swap never grow into the machine's last so many bytes."""
DEVICE_SPARE_BYTES = 2**30
"""The same if rows grow into the memory from which activations are taken."""
_ASK_SECONDS = 1.0
_MESSAGES = ("out of memory", "can't allocate memory", "cannot allocate memory")


class Budget:
    """`rows_bytes` for all rows and `swap_bytes` for what is swapped out. If the machine has less, swap shrinks first.

    `floor_bytes`: what rows may always take, so that the longest query can run by itself. `spare_bytes` are left to
    other processes. `free_bytes` returns what this process could still take; it is called at most once a second. If
    memory is not committed as rows grow (`lazy` False), rows have theirs already, and only swap shrinks.
    `swap_free_bytes`: free bytes of the memory that swap is in, if it is not the rows'; then neither shrinks for the
    other.
    """

    def __init__(
        self,
        rows_bytes: int,
        swap_bytes: int,
        *,
        floor_bytes: int,
        free_bytes: Callable[[], int],
        clock: Clock,
        lazy: bool = True,
        swap_free_bytes: Callable[[], int] | None = None,
        spare_bytes: int = SPARE_BYTES,
    ) -> None:
        self.rows_bytes = rows_bytes
        self.swap_bytes = swap_bytes
        self._most_rows = rows_bytes
        self._most_swap = swap_bytes
        self._floor = floor_bytes
        self._free_bytes = free_bytes
        self._clock = clock
        self._lazy = lazy
        self._swap_free_bytes = swap_free_bytes
        self._spare = spare_bytes
        self._asked: float | None = None

    def update(self, rows_used: int, swap_used: int) -> None:
        """Sets `rows_bytes` and `swap_bytes` to what is possible now, while rows and swap use so much of it."""
        now = self._clock()
        if self._asked is not None and now - self._asked < _ASK_SECONDS:
            return
        self._asked = now
        apart = self._swap_free_bytes is not None
        room = self._free_bytes() - self._spare + (0 if apart else swap_used)
        rows = self._most_rows
        if self._lazy:
            room += rows_used
            rows = min(rows, max(room, self._floor))
            room -= rows
        if self._swap_free_bytes is not None:
            room = self._swap_free_bytes() - SPARE_BYTES + swap_used
        swap = max(0, min(self._most_swap, room))
        if (rows < self._most_rows) != (self.rows_bytes < self._most_rows):
            log.warning("memory for keys and values: %d MiB of %d MiB", rows >> 20, self._most_rows >> 20)
        self.rows_bytes, self.swap_bytes = rows, swap


def out_of_memory(error: BaseException) -> bool:
    """Whether the error is an allocator's: there was no memory, on the host or on the device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _MESSAGES)
