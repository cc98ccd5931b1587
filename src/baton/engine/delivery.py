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
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from baton.core.errors import BatonError, SlowReader
from baton.core.events import Update
from baton.engine.held import Held
from baton.engine.inbox import Deliver

_AGAIN_SECONDS = 0.05
# What an update takes in memory, about: by itself, for each token, and for each log-probability that is told.
_UPDATE_BYTES, _TOKEN_BYTES, _LOGPROB_BYTES = 400, 40, 130


class Subscriber:
    """What came for one asker and was not taken yet. Everything here happens on one event loop.

    Where more than `most_bytes` are left untaken all of it is dropped, with all that comes later, and `overflowed` is
    called; so it is where this one has the most of all that is `held`.
    """

    def __init__(
        self,
        most_bytes: int | None = None,
        overflowed: Callable[[], None] = lambda: None,
        held: Held | None = None,
    ) -> None:
        self._updates: list[Update] = []
        self._bytes = 0
        self._most_bytes = most_bytes
        self._overflowed = overflowed
        self._full = ""  # why all was dropped
        self._hold = None if held is None else held.hold(self._dropped)
        self._failure: BatonError | None = None
        self._news = asyncio.Event()

    def put(self, updates: Sequence[Update]) -> None:
        # Counted only where something is left: a reader that keeps up costs nothing.
        if self._most_bytes is not None and self._updates:
            self._bytes += sum(map(size_of, updates))
            if self._bytes > self._most_bytes and not self._full:
                self._overflow(f"more than {self._most_bytes} bytes were left unread (--max-unread-bytes)")
            if self._hold is not None:
                self._hold.set(0 if self._full else self._bytes)
        if self._full:
            self._updates.clear()
        else:
            self._updates += updates
        self._news.set()

    def fail(self, error: BatonError) -> None:
        """Nothing more will come: `take` raises this when all that is there was taken."""
        self._failure = error
        self._news.set()

    async def take(self, silence_seconds: float | None = None) -> list[Update]:
        """All there is, as soon as there is something; nothing, where nothing came for so long.

        Raises SlowReader, and what it was failed with.
        """
        if not (self._updates or self._full or self._failure):
            await self._wait(silence_seconds)
        if self._failure is not None and not self._updates:
            raise self._failure
        if self._full:
            raise SlowReader(self._full)
        self._news.clear()
        updates, self._updates = self._updates, []
        if self._bytes:
            self._bytes = 0
            self.free()
        return updates

    def free(self) -> None:
        """Holds nothing any more."""
        if self._hold is not None:
            self._hold.free()

    def _dropped(self) -> None:
        self._overflow("all clients left too much unread, and this one the most (--max-answers-bytes)")

    def _overflow(self, why: str) -> None:
        self._full = why
        self._updates.clear()
        self._overflowed()
        self._news.set()

    async def _wait(self, seconds: float | None) -> None:
        if seconds is None:
            await self._news.wait()
            return
        timer = asyncio.get_running_loop().call_later(seconds, self._news.set)
        try:
            await self._news.wait()
        finally:
            timer.cancel()


_Parcel = tuple[asyncio.AbstractEventLoop, Subscriber, Sequence[Update]]


class OutputDelivery:
    """Brings updates to listeners on any event loops: what is there at once crosses in one wake-up per loop."""

    def __init__(self) -> None:
        self._parcels: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._carry, name="baton-post", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._listening: dict[Subscriber, asyncio.AbstractEventLoop] = {}

    def begin(self) -> None:
        """Has its thread run from now on, and not from the first listener on."""
        with self._lock:
            if self._thread.ident is None and not self._closed:
                self._thread.start()

    def to(self, listener: Subscriber) -> Deliver:
        """What delivers to a listener on the running event loop. In order, from any one thread."""
        self.begin()
        return partial(self._put, asyncio.get_running_loop(), listener)

    @contextlib.contextmanager
    def listening(self, listener: Subscriber) -> Iterator[None]:
        """Meanwhile the listener, on the running event loop, hears of it when nothing more will come."""
        self._listening[listener] = asyncio.get_running_loop()
        try:
            yield
        finally:
            del self._listening[listener]

    def fail(self, error: BatonError) -> None:
        """Tells all who are listening that nothing more will come. From any thread."""
        for listener, loop in list(self._listening.items()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(listener.fail, error)

    def close(self) -> None:
        """Ends the thread, when it has carried what it was given before."""
        with self._lock:
            self._closed = True
        self._parcels.put(None)

    def _put(self, loop: asyncio.AbstractEventLoop, listener: Subscriber, updates: list[Update]) -> None:
        self._parcels.put((loop, listener, updates))

    def _carry(self) -> None:
        while self._carried():
            pass

    def _carried(self) -> bool:
        """Waits for something to carry, and takes it and all behind it; answers whether more may come."""
        parcels = [self._parcels.get()]
        # What there is no memory for now is carried the next time.
        with contextlib.suppress(queue.Empty, MemoryError):
            while True:
                parcels.append(self._parcels.get_nowait())
        by_loop: dict[asyncio.AbstractEventLoop, list[_Parcel]] = {}
        for parcel in parcels:
            if parcel is not None:
                _patiently(partial(_sorted_in, by_loop, parcel))
        for loop, some in by_loop.items():
            # Whoever asked is gone with a loop that is closed.
            with contextlib.suppress(RuntimeError):
                _patiently(partial(loop.call_soon_threadsafe, _arrive, some))
        return None not in parcels


def _sorted_in(by_loop: dict[asyncio.AbstractEventLoop, list[_Parcel]], parcel: _Parcel) -> None:
    by_loop.setdefault(parcel[0], []).append(parcel)


def _patiently(act: Callable[[], object]) -> None:
    """Again and again while there is no memory for it: else all streams would stand still for ever."""
    while True:
        try:
            act()
            return
        except MemoryError:
            time.sleep(_AGAIN_SECONDS)


def _arrive(parcels: Sequence[_Parcel]) -> None:
    for _, listener, updates in parcels:
        listener.put(updates)


def size_of(update: Update) -> int:
    """Bytes that it takes in memory, about. Of all log-probabilities as many are told as of the first."""
    told = sum(len(some) * (1 + len(some[0].best)) for some in (update.logprobs, update.prompt_logprobs) if some)
    return _UPDATE_BYTES + len(update.text) + _TOKEN_BYTES * len(update.token_ids) + _LOGPROB_BYTES * told
