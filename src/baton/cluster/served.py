"""An engine's side: takes asks from a front, and tells it the news of each iteration in one message."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from baton.cluster.port import Depot
from baton.cluster.prices import Carried, Line, Prices
from baton.cluster.wire import FIRST_TOKEN, Message, News, message_of, name_of, segment_of
from baton.core.clock import Clock
from baton.core.errors import BatonError
from baton.core.events import Update
from baton.engine.inbox import Deliver
from baton.engine.port import Loop
from baton.kv.parcel import Compile, Parcel, pack
from baton.kv.segment import KVSegment

log = logging.getLogger("baton.cluster")

BEAT_SECONDS = 1.0
"""At least so often an engine says how it is, so that its silence means something."""


class ServedEngine:
    """One engine's loop for one front.

    `send` brings a message to it, in order; called in the engine's thread and in one of its own. `depot`: where keys
    and values are laid down for another engine; None: what leaves is computed again there.
    """

    def __init__(
        self, loop: Loop, compile: Compile, clock: Clock, send: Callable[[Message], None], depot: Depot | None = None
    ) -> None:
        self._loop = loop
        self._compile = compile
        self._clock = clock
        self._send = send
        self._depot = depot
        self._lock = threading.Lock()
        self._live: set[str] = set()
        self._delivers: dict[int, Deliver] = {}
        # Of queries that move, what comes first waits for the other: the last update, and where keys and values are.
        self._moved: dict[str, tuple[int, Update]] = {}
        self._laid_down: dict[str, Any] = {}
        self._put, self._got = Carried(), Carried()
        self._until_token: set[str] = set()
        self._ending = False
        # Laying down takes its time, which neither the engine nor orders wait for.
        self._laying = ThreadPoolExecutor(1, thread_name_prefix="baton-laying")
        self._closed = threading.Event()
        threading.Thread(target=self._beat, name="baton-beats", daemon=True).start()

    def start(self, asks: Sequence[Message]) -> None:
        """Takes queries, which are new or were live elsewhere. One that cannot be taken gets an error as its update.

        An engine that ends takes none: they crossed with the word that it does, and move on at once.
        """
        if self._ending:
            for ask in asks:
                self._tell_moved(
                    int(ask.get("attempt", 0)), Update(name_of(ask), finish_reason="moved"), ask["laid_down"]
                )
            return
        new: list[KVSegment] = []
        fetch = None if self._depot is None else self._fetch
        for ask in asks:
            attempt, name = int(ask.get("attempt", 0)), name_of(ask)
            with self._lock:
                self._live.add(name)
                if ask.get("until") == FIRST_TOKEN:
                    self._until_token.add(name)
            try:
                _, segment = segment_of(ask, self._clock(), self._compile, fetch)
                if attempt == 1 and not segment.generated and not segment.cached:
                    new.append(segment)
                else:
                    self._loop.resume([segment], self._deliver(attempt))
            except BatonError as error:
                self._fail(attempt, name, error)
        if new:
            # In one call, so that choices of a prompt find each other.
            try:
                self._loop.submit([segment.query for segment in new], self._deliver(1), admitted=True)
            except BatonError as error:
                for segment in new:
                    self._fail(1, segment.query.id, error)

    def cancel(self, query_ids: Sequence[str]) -> None:
        self._loop.cancel(query_ids)

    def give(self, query_ids: Sequence[str] | None = None, without_keys: Collection[str] = ()) -> None:
        """The queries leave, and their keys and values are laid down, but of `without_keys`. Returns when they are.

        All if None: the engine ends, and what is asked of it later moves on at once.
        """
        self._ending = self._ending or query_ids is None
        self._lay_down(self._loop.give(query_ids).result(), frozenset(without_keys))

    def _lay_down(self, segments: Sequence[KVSegment], without_keys: Collection[str] = ()) -> None:
        for segment in segments:
            name = segment.query.id
            where = self._kept(segment, keys=name not in without_keys)
            with self._lock:
                moved = self._moved.pop(name, None)
                if moved is None:
                    self._laid_down[name] = where
            if moved is not None:
                self._tell_moved(*moved, where)

    def _kept(self, segment: KVSegment, *, keys: bool) -> Any:
        try:
            if keys and self._depot is not None and segment.cached:
                began, tokens = self._clock(), segment.cached
                where = self._depot.put(pack(segment, began))
                self._put.add(tokens, self._clock() - began)
                return where
        except Exception:
            log.warning("query %s leaves without keys and values", segment.query.id, exc_info=True)
        finally:
            segment.release()
        return None

    def _fetch(self, where: Any) -> Parcel:
        assert self._depot is not None
        began = self._clock()
        parcel = self._depot.get(where)
        self._got.add(int(parcel.header["cached"]), self._clock() - began)
        return parcel

    def _give_begun(self, names: Sequence[str]) -> None:
        """These have their first token, and are to go on elsewhere. Called in the engine's thread."""

        def given(segments: Future[list[KVSegment]]) -> None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._laying.submit(lambda: self._lay_down(segments.result()))

        with contextlib.suppress(BatonError):  # it ends, and so do they
            self._loop.give(names).add_done_callback(given)

    def _deliver(self, attempt: int) -> Deliver:
        """What tells the news of queries of this attempt. One object, so that an iteration's news are one message.

        Updates of an earlier attempt, which a new one ends here, keep the earlier number.
        """
        with self._lock:
            return self._delivers.setdefault(attempt, partial(self._tell, attempt))

    @property
    def busy(self) -> bool:
        """Whether it has queries of this front."""
        with self._lock:
            return bool(self._live)

    def close(self) -> None:
        """The front is gone: its queries are cancelled, and no more is said by itself. May be called twice."""
        self._closed.set()
        with self._lock:
            live = list(self._live)
        self._loop.cancel(live)
        self._laying.shutdown(wait=False)

    def _tell(self, attempt: int, updates: list[Update]) -> None:
        told: list[tuple[int, Update]] = []
        laid_down: dict[str, Any] = {}
        begun: list[str] = []
        with self._lock:
            for update in updates:
                name = update.query_id
                if name in self._until_token and (update.token_ids or update.finish_reason is not None):
                    self._until_token.discard(name)
                    begun += [name] if update.finish_reason is None else []
                if update.finish_reason == "moved" and name not in self._laid_down:
                    self._moved[name] = (attempt, update)
                    continue
                if update.finish_reason == "moved":
                    laid_down[name] = self._laid_down.pop(name)
                told.append((attempt, update))
        if told:
            self._tell_news(told, laid_down)
        if begun:
            self._give_begun(begun)

    def _tell_moved(self, attempt: int, update: Update, where: Any) -> None:
        self._tell_news([(attempt, update)], {update.query_id: where})

    def _fail(self, attempt: int, name: str, error: BatonError) -> None:
        self._tell(attempt, [Update(name, finish_reason="error", error=error.message)])

    def _beat(self) -> None:
        # The first at once: a front knows nothing of an engine before it.
        while not self._closed.is_set():
            try:
                self._tell_news([], {}, self._prices())
            except Exception:
                # Without a way to the front there is nothing to say; the transport tells the loss.
                log.debug("a beat did not reach the front", exc_info=True)
            self._closed.wait(BEAT_SECONDS)

    def _prices(self) -> Prices:
        costs = self._loop.stats().costs
        fill = None
        if costs.fill_token_seconds is not None:
            fill = Line(costs.fill_fixed_seconds + costs.fill_experts_seconds, costs.fill_token_seconds)
        return Prices(fill, costs.fill_column_seconds, self._put.line(), self._got.line())

    def _tell_news(
        self, updates: Sequence[tuple[int, Update]], laid_down: Mapping[str, Any], prices: Prices | None = None
    ) -> None:
        known = {name: where for name, where in laid_down.items() if where is not None}
        message = message_of(News(updates, self._loop.stats(), self._loop.stuck_seconds(), known, prices))
        with self._lock:
            self._live.difference_update(update.query_id for _, update in updates if update.finish_reason is not None)
            self._send(message)
