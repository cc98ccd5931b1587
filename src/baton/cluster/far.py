"""The body of the engine's loop whose engines are elsewhere: admission, routing, and going on after a loss."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

from baton.cluster.admission import Admission
from baton.cluster.choice import Choice
from baton.cluster.follow import Follow
from baton.cluster.leaving import Leaving
from baton.cluster.port import EngineLost, Engines
from baton.cluster.prices import PriceBook
from baton.cluster.silence import Silence
from baton.cluster.totals import Totals
from baton.cluster.wire import About, Message, News, ask_of, news_of
from baton.core.clock import Clock
from baton.core.errors import EngineUnhealthy
from baton.core.events import Sink, Update
from baton.core.query import Query
from baton.core.replicas import LOSSES
from baton.core.values import AUTO
from baton.engine.inbox import Deliver, is_counted
from baton.engine.port import Stats
from baton.kv.segment import KVSegment

log = logging.getLogger("baton.cluster")

_MOST_MISSED = 16


class FarLoop:
    """Everything may be called from any thread. Each query is asked of one engine at a time.

    `losses`: so many engines may be lost with a query on board before it fails. `handover`: how queries leave an
    engine that is ended (`REPLICA_HANDOVER`).
    """

    def __init__(
        self, engines: Engines, about: About, clock: Clock, *, losses: int = LOSSES, handover: str = AUTO
    ) -> None:
        self._engines = engines
        self._about = about
        self._clock = clock
        self._losses = losses
        self._lock = threading.Lock()
        self._follows: dict[str, Follow] = {}
        self._totals = Totals()
        self._prices = PriceBook()
        self._choice = Choice(self._prices)
        self._leaving = Leaving(handover, self._prices)
        self._silence = Silence(about.settings.hang_seconds)
        self._admission = Admission(about.settings, clock)
        self._idle = threading.Event()
        self._idle.set()
        self._over = threading.Event()
        engines.listen(self)

    def start(self) -> None:
        """From now on engines that hang are given up, and queries that wait too long for an engine."""
        threading.Thread(target=self._watch, name="baton-front", daemon=True).start()

    def tell_refusals(self, sink: Sink) -> None:
        """From now on the sink is told of each query that is refused here."""
        self._admission.sinks.append(sink)

    def submit(self, queries: Sequence[Query], deliver: Deliver, *, admitted: bool = False) -> None:
        """Submits all of them or none. Raises QueueFull, ShuttingDown, EngineUnhealthy."""
        counted = 0 if admitted else sum(map(is_counted, queries))
        self._enter([Follow(query, deliver) for query in queries], counted)

    def resume(self, segments: Sequence[KVSegment], deliver: Deliver) -> None:
        """Queries go on that were live elsewhere, from their tokens. Raises ShuttingDown, EngineUnhealthy."""
        follows = []
        for segment in segments:
            follows.append(Follow(segment.query, deliver, tokens=segment.tokens[len(segment.query.prompt) :]))
            segment.release()
        self._enter(follows, 0)

    def give(self, query_ids: Sequence[str] | None = None) -> Future[list[KVSegment]]:
        """A front gives no queries: it has no engine of its own. Raises EngineUnhealthy."""
        raise EngineUnhealthy("queries of several engines stay with them")

    def check_room(self, count: int = 1) -> None:
        with self._lock:
            self._admission.check_room(self._follows.values(), self._staying(), count, rejected=1)

    def cancel(self, query_ids: Sequence[str]) -> None:
        with self._lock:
            gone = [self._follows.pop(name) for name in query_ids if name in self._follows]
            self._tell_idle()
        for follow in gone:
            if follow.engine is not None:
                self._try(follow.engine, "cancel", [follow.query.id])
            follow.deliver([Update(follow.query.id, finish_reason="cancelled")])

    def stats(self) -> Stats:
        with self._lock:
            return self._totals.sum()

    def stats_by_engine(self) -> Mapping[str, Stats]:
        """What each engine said last."""
        with self._lock:
            return self._totals.by_engine()

    def stuck_seconds(self) -> float:
        return 0.0  # each engine has a watchdog of its own

    def not_ready(self) -> str | None:
        with self._lock:
            return self._admission.not_ready(self._follows.values(), self._staying())

    def stop_admitting(self) -> None:
        with self._lock:
            self._admission.draining = True

    def drain(self, timeout_seconds: float) -> bool:
        self.stop_admitting()
        finished = self._idle.wait(timeout_seconds)
        if not finished:
            self._end_all("cancelled", None)
        return finished

    def close(self) -> None:
        self._over.set()
        self.stop_admitting()
        self._end_all("cancelled", None)
        self._engines.close()

    # Called by the engines' threads

    def heard(self, engine: str, message: Message) -> None:
        news = news_of(message)
        told: dict[Deliver, list[Update]] = {}
        moved: list[Follow] = []
        with self._lock:
            for attempt, update in news.updates:
                follow = self._follows.get(update.query_id)
                if follow is None:
                    continue
                tell, again = follow.take(engine, attempt, update, news.laid_down.get(update.query_id))
                if tell is not None:
                    told.setdefault(follow.deliver, []).append(tell)
                    if tell.finish_reason is not None:
                        del self._follows[update.query_id]
                if again:
                    moved.append(follow)
            if engine in self._engines.names():
                self._note(engine, news)
            self._tell_idle()
        for deliver, updates in told.items():
            deliver(updates)
        self._send(moved)

    def _note(self, engine: str, news: News) -> None:
        """How an engine is, after its updates."""
        self._silence.heard(engine, self._clock(), news.stuck_seconds)
        if news.stats is not None:
            self._totals.heard(engine, news.stats)
        if news.prices is not None:  # once a second
            self._prices.heard(engine, news.prices)
            if news.stats is not None:
                self._choice.heard(engine, news.stats, self._follows.values())

    def took(self, engine: str, query_ids: Sequence[str]) -> None:
        with self._lock:
            for name in query_ids:
                if name in self._follows and self._follows[name].engine == engine:
                    self._follows[name].taken = True

    def lost(self, engine: str) -> None:
        self._lose(engine)
        with self._lock:
            self._leaving.names.discard(engine)

    def _lose(self, engine: str) -> None:
        with self._lock:
            counts = self._leaving.gone(engine)
            self._choice.forget(engine)
            self._silence.lost(engine)
            self._totals.lost(engine)
            self._prices.lost(engine)
            # In order of arrival, as they are kept.
            aboard = [follow for follow in self._follows.values() if follow.lost(engine, counts=counts)]
            poison = [follow for follow in aboard if self._is_poison(follow)]
            for follow in poison:
                del self._follows[follow.query.id]
            self._tell_idle()
        for follow in poison:
            count = follow.losses + follow.missed
            error = f"{count} engines were lost with this query on board, so it is asked of no other"
            follow.deliver([Update(follow.query.id, finish_reason="error", error=error, code=EngineLost.code)])
        self._send([follow for follow in aboard if follow not in poison])

    def _is_poison(self, follow: Follow) -> bool:
        """Whether it may be what ends engines. Of engines that end together, it has come to one, or it is bad luck."""
        return follow.losses >= self._losses or follow.missed >= self._losses + _MOST_MISSED

    def came(self, engine: str) -> None:
        with self._lock:
            self._leaving.came(engine)
            waiting = [follow for follow in self._follows.values() if follow.engine is None]
        self._send(waiting)
        self._let_go()

    def leaves(self, engine: str) -> None:
        with self._lock:
            self._leaving.ends(engine)
        self._let_go()

    def _let_go(self) -> None:
        """Has engines that end give their queries."""
        with self._lock:
            giving = self._leaving.to_give(self._engines.names(), self._follows.values())
        for engine, without_keys in giving.items():
            self._try(engine, "give", None, without_keys)

    def check(self) -> None:
        """Gives up engines that hang with queries on board, and queries that have waited too long for an engine."""
        now = self._clock()
        with self._lock:
            aboard = {follow.engine for follow in self._follows.values() if follow.engine is not None}
            hanging = self._silence.beyond(aboard, now)
            overdue: list[tuple[Follow, str]] = []
            for follow in list(self._follows.values()):
                why = follow.query.overdue(now, begun=bool(follow.tokens)) if follow.engine is None else None
                if why is not None:
                    overdue.append((self._follows.pop(follow.query.id), why))
            self._tell_idle()
        for follow, why in overdue:
            follow.deliver([Update(follow.query.id, finish_reason="expired", error=why)])
        for engine in hanging:
            log.error("%s hangs (--hang-timeout): its queries go on elsewhere", engine)
            self._lose(engine)
            self._try(engine, "abandon")

    def _watch(self) -> None:
        while not self._over.wait(min(self._about.settings.hang_seconds / 4, 1.0)):
            try:
                self.check()
            except Exception:
                log.exception("the front's watch goes on after an error")

    def _enter(self, follows: list[Follow], counted: int) -> None:
        with self._lock:
            self._admission.check_open(rejected=len(follows))
            if counted:
                self._admission.check_room(self._follows.values(), self._staying(), counted, rejected=len(follows))
            self._follows |= {follow.query.id: follow for follow in follows}
            self._idle.clear()
        self._send(follows)

    def _send(self, follows: Sequence[Follow]) -> None:
        """Asks an engine for each. Without an engine they wait until one comes."""
        left = list(follows)
        while left:
            chosen: dict[str, list[tuple[Follow, Message]]] = {}
            with self._lock:
                for follow in left:
                    if follow.engine is not None or follow.query.id not in self._follows:
                        continue  # another thread was quicker, or it has ended
                    engine, until = self._choice.engine_for(follow, self._follows, self._free(), self._prefill())
                    if engine is not None:
                        chosen.setdefault(engine, []).append((follow, self._ask(follow, engine, until)))
            left = []
            for engine, pairs in chosen.items():
                try:
                    self._engines.start(engine, [ask for _, ask in pairs])
                except EngineLost:
                    # It was not on board, so this is no loss of the query's.
                    left += self._back([follow for follow, _ in pairs], engine)

    def _back(self, follows: Sequence[Follow], engine: str) -> list[Follow]:
        with self._lock:
            self._leaving.names.add(engine)
            back = [follow for follow in follows if follow.engine == engine]
            for follow in back:
                follow.engine = None
        return back

    def _free(self) -> set[str]:
        """The engines that take queries."""
        return set(self._engines.names()) - self._leaving.names

    def _prefill(self) -> set[str]:
        return set(self._engines.prefill_names())

    def _ask(self, follow: Follow, engine: str, until: str) -> Message:
        where = follow.goes_to(engine)
        told, stamp = follow.tokens, self._about.stamp
        return ask_of(follow.query, told, follow.attempt, stamp, self._clock(), where, until=until)

    def _staying(self) -> int:
        """How many engines take queries; those for prompts count if there are no others."""
        free = self._free()
        return len(free - self._prefill() or free)

    def _end_all(self, reason: str, error: str | None) -> None:
        with self._lock:
            follows, self._follows = list(self._follows.values()), {}
            self._tell_idle()
        for follow in follows:
            if follow.engine is not None:
                self._try(follow.engine, "cancel", [follow.query.id])
            follow.deliver([Update(follow.query.id, finish_reason=reason, error=error)])

    def _try(self, engine: str, verb: str, *given: object) -> None:
        # What a lost engine had is asked of others when its loss is told.
        with contextlib.suppress(EngineLost):
            getattr(self._engines, verb)(engine, *given)

    def _tell_idle(self) -> None:
        if not self._follows:
            self._idle.set()
