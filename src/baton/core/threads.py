"""Threads that are started before they are needed.

CPython's `Thread.start()` waits until the new thread says that it runs. If the thread dies for lack of memory before,
the caller waits for ever; on an event loop's thread that is the end of the server.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def started(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of so many threads, all of which run already. Otherwise a pool starts them one by one, with its tasks."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_there = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(all_there.wait)
    all_there.wait()
    return pool
