"""From the engine's thread to event loops: carried by a thread of its own, while the engine computes.

Waking a loop is a system call, at which Python's lock changes hands, and whoever listens there runs before the engine
comes round again: eight listeners cost it a millisecond per iteration. The engine hands on to this thread and keeps the
lock; the thread gets it when the next forward lets go of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from functools import partial

from baton.engine.inbox import Deliver
from baton.events import Update

Listener = asyncio.Queue[list[Update]]
_Parcel = tuple[asyncio.AbstractEventLoop, Listener, list[Update]]


class Post:
    """Brings updates to listeners on any event loops: what is there at once crosses in one wake-up per loop."""

    def __init__(self) -> None:
        self._parcels: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._carry, name="baton-post", daemon=True)
        self._lock = threading.Lock()
        self._closed = False

    def to(self, listener: Listener) -> Deliver:
        """What delivers to a listener on the running event loop. In order, from any one thread."""
        with self._lock:
            if self._thread.ident is None and not self._closed:
                self._thread.start()
        return partial(self._put, asyncio.get_running_loop(), listener)

    def close(self) -> None:
        """Ends the thread, when it has carried what it was given before."""
        with self._lock:
            self._closed = True
        self._parcels.put(None)

    def _put(self, loop: asyncio.AbstractEventLoop, listener: Listener, updates: list[Update]) -> None:
        self._parcels.put((loop, listener, updates))

    def _carry(self) -> None:
        while self._carried():
            pass

    def _carried(self) -> bool:
        """Waits for something to carry, and takes it and all behind it; answers whether more may come."""
        parcels = [self._parcels.get()]
        with contextlib.suppress(queue.Empty):
            while True:
                parcels.append(self._parcels.get_nowait())
        by_loop: dict[asyncio.AbstractEventLoop, list[_Parcel]] = {}
        for parcel in parcels:
            if parcel is not None:
                by_loop.setdefault(parcel[0], []).append(parcel)
        for loop, some in by_loop.items():
            # Whoever asked is gone with a loop that is closed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_arrive, some)
        return None not in parcels


def _arrive(parcels: Sequence[_Parcel]) -> None:
    for _, listener, updates in parcels:
        listener.put_nowait(updates)
