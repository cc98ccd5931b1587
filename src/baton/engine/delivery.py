"""Carries updates from the engine's thread to event loops, on a thread of its own, while the engine computes.

Waking a loop is a system call, at which Python's lock changes hands, and the loop's code runs before the engine comes
round again: eight subscribers cost it a millisecond per iteration. The engine hands updates to this thread and keeps
the lock. The thread gets the lock when the next forward releases it.
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
# The memory that an update takes, roughly: by itself, for each token, and for each log-probability.
_UPDATE_BYTES, _TOKEN_BYTES, _LOGPROB_BYTES = 400, 40, 130


class Subscriber:
    """Updates for one client that were not taken yet. Everything here happens on one event loop.

    If more than `most_bytes` are left untaken, all of it is dropped, with all that comes later, and `overflowed` is
    called. The same happens if this subscriber has the most of all that is `held`.
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
        self._full = ""  # why everything was dropped
        self._hold = None if held is None else held.hold(self._dropped)
        self._failure: BatonError | None = None
        self._news = asyncio.Event()

    def put(self, updates: Sequence[Update]) -> None:
        # Counted only if something is left over: a reader that keeps up costs nothing.
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
        """Nothing more will come: `take` raises this error once everything that is there was taken."""
        self._failure = error
        self._news.set()

    async def take(self, silence_seconds: float | None = None) -> list[Update]:
        """Waits for updates and returns all of them; returns nothing if none came for so long.

        Raises SlowReader, and the error that it was failed with.
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
        """Gives up its part of what is held."""
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


_Delivery = tuple[asyncio.AbstractEventLoop, Subscriber, Sequence[Update]]


class OutputDelivery:
    """Brings updates to subscribers on any event loops.

    Everything that is there at once crosses in one wake-up per loop.
    """

    def __init__(self) -> None:
        self._deliveries: queue.SimpleQueue[_Delivery | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._carry, name="baton-post", daemon=True)
        self._lock = threading.Lock()
        self._closed = False
        self._subscribed: dict[Subscriber, asyncio.AbstractEventLoop] = {}

    def begin(self) -> None:
        """Starts the thread now instead of with the first subscriber."""
        with self._lock:
            if self._thread.ident is None and not self._closed:
                self._thread.start()

    def to(self, subscriber: Subscriber) -> Deliver:
        """Returns what delivers to a subscriber on the running event loop, in order for each calling thread."""
        self.begin()
        return partial(self._put, asyncio.get_running_loop(), subscriber)

    @contextlib.contextmanager
    def subscribed(self, subscriber: Subscriber) -> Iterator[None]:
        """While in this block, the subscriber on the running event loop is told if nothing more will come."""
        self._subscribed[subscriber] = asyncio.get_running_loop()
        try:
            yield
        finally:
            del self._subscribed[subscriber]

    def fail(self, error: BatonError) -> None:
        """Tells all subscribers that nothing more will come. May be called from any thread."""
        for subscriber, loop in list(self._subscribed.items()):
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(subscriber.fail, error)

    def close(self) -> None:
        """Ends the thread after it has delivered what it was given before."""
        with self._lock:
            self._closed = True
        self._deliveries.put(None)

    def _put(self, loop: asyncio.AbstractEventLoop, subscriber: Subscriber, updates: list[Update]) -> None:
        self._deliveries.put((loop, subscriber, updates))

    def _carry(self) -> None:
        while self._carried():
            pass

    def _carried(self) -> bool:
        """Waits for updates and delivers all that are there. Returns whether more may come."""
        deliveries = [self._deliveries.get()]
        # What there is no memory for now is delivered the next time.
        with contextlib.suppress(queue.Empty, MemoryError):
            while True:
                deliveries.append(self._deliveries.get_nowait())
        by_loop: dict[asyncio.AbstractEventLoop, list[_Delivery]] = {}
        for delivery in deliveries:
            if delivery is not None:
                _patiently(partial(_sorted_in, by_loop, delivery))
        for loop, some in by_loop.items():
            # If the loop is closed, the client is gone.
            with contextlib.suppress(RuntimeError):
                _patiently(partial(loop.call_soon_threadsafe, _arrive, some))
        return None not in deliveries


def _sorted_in(by_loop: dict[asyncio.AbstractEventLoop, list[_Delivery]], delivery: _Delivery) -> None:
    by_loop.setdefault(delivery[0], []).append(delivery)


def _patiently(act: Callable[[], object]) -> None:
    """Tries again while there is no memory; without the updates all streams would stand still for ever."""
    while True:
        try:
            act()
            return
        except MemoryError:
            time.sleep(_AGAIN_SECONDS)


def _arrive(deliveries: Sequence[_Delivery]) -> None:
    for _, subscriber, updates in deliveries:
        subscriber.put(updates)


def size_of(update: Update) -> int:
    """The memory that an update takes, roughly. All log-probabilities count as the first, which has as many entries."""
    entries = sum(len(some) * (1 + len(some[0].best)) for some in (update.logprobs, update.prompt_logprobs) if some)
    return _UPDATE_BYTES + len(update.text) + _TOKEN_BYTES * len(update.token_ids) + _LOGPROB_BYTES * entries
