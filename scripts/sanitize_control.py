"""Uses the native library wrongly on purpose, so that `scripts/sanitize` sees that the sanitizer ends it.

`address`: writes behind the end of 8 bytes. `thread`: two threads write to the same bytes.
"""

from __future__ import annotations

import sys
from ctypes import CDLL, POINTER, c_int64, c_size_t
from threading import Barrier, Thread
from typing import Any

from baton.native.library import library
from baton.native.structs import STRUCTURES

assert library is not None
sizes = library.baton_sizes


def memory(count: int) -> Any:
    """Room for so many numbers, from the allocator that the sanitizer watches."""
    allocate = CDLL(None).malloc
    allocate.restype, allocate.argtypes = POINTER(c_int64), (c_size_t,)
    return allocate(count * 8)


def write(place: Any, start: Barrier) -> None:
    start.wait()
    for _ in range(20_000):
        sizes(place, len(STRUCTURES))


threads = 2 if sys.argv[1] == "thread" else 1
shared = memory(len(STRUCTURES) if threads == 2 else 1)
barrier = Barrier(threads)
writers = [Thread(target=write, args=(shared, barrier)) for _ in range(threads)]
for writer in writers:
    writer.start()
for writer in writers:
    writer.join()
