"""An engine's side: takes asks from a front, and tells it the news of each iteration in one message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

from baton.cluster.wire import Message, News, message_of, segment_of
from baton.core.clock import Clock
from baton.core.errors import BatonError
from baton.core.events import Update
from baton.engine.port import Loop
from baton.kv.parcel import Compile


class ServedEngine:
    """One engine's loop for one front. `send` brings a message to it, in order; called in the engine's thread."""

    def __init__(self, loop: Loop, compile: Compile, clock: Clock, send: Callable[[Message], None]) -> None:
        self._loop = loop
        self._compile = compile
        self._clock = clock
        self._send = send
        self._lock = threading.Lock()

    def start(self, asks: Sequence[Message]) -> None:
        """Takes queries, which are new or were live elsewhere. One that cannot be taken gets an error as its update."""
        for ask in asks:
            attempt, name = int(ask.get("attempt", 0)), _name(ask)
            try:
                _, segment = segment_of(ask, self._clock(), self._compile)
                # Updates of an earlier attempt, which the new one ends here, keep the earlier number.
                self._loop.resume([segment], partial(self._tell, attempt))
            except BatonError as error:
                self._tell(attempt, [Update(name, finish_reason="error", error=error.message)])

    def cancel(self, query_ids: Sequence[str]) -> None:
        self._loop.cancel(query_ids)

    def give(self, query_ids: Sequence[str] | None = None) -> None:
        """The queries leave. The front knows their tokens, so their segments are let go."""
        for segment in self._loop.give(query_ids).result():
            segment.release()

    def _tell(self, attempt: int, updates: list[Update]) -> None:
        message = message_of(News([(attempt, update) for update in updates], self._loop.stats()))
        with self._lock:
            self._send(message)


def _name(ask: Message) -> str:
    try:
        return str(ask["parcel"]["query"]["id"])
    except (KeyError, TypeError):
        return ""
