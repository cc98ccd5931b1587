"""Threads that are there before they are needed.

CPython's `Thread.start()` waits for the new thread to say that it runs. One that dies of want of memory before never
does, and whoever started it waits for ever: on an event loop's thread that is the end of the server.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor


def started(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of so many threads, all of which run already. A pool starts them one by one otherwise, with its tasks."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    all_there = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(all_there.wait)
    all_there.wait()
    return pool
