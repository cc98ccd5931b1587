"""The engine's thread: takes arrivals, iterates while there is work, and sleeps while there is none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from baton.core.clock import Clock
from baton.core.errors import ContextLengthExceeded, EngineUnhealthy, QueueFull, ShuttingDown
from baton.core.events import QueryRejected, Sink, Update
from baton.core.query import Query
from baton.engine.engine import Engine
from baton.engine.inbox import Deliver, Giving, Inbox, is_counted
from baton.engine.port import Stats
from baton.engine.stats import stats_of
from baton.engine.watchdog import Watchdog
from baton.kv.segment import KVSegment

log = logging.getLogger("baton.engine")

_NAP_SECONDS = 0.5
_PAUSE_SECONDS = 0.002
# How long `close` waits for the iteration that runs to be the last. As long again if it hangs.
_LAST_SECONDS = 60.0
_CUT_SECONDS = 10.0
_FAILURES_ALLOWED = 1


class EngineLoop:
    """The body of `engine/client.py`'s Loop. Everything public may be called from any thread."""

    def __init__(self, engine: Engine, clock: Clock, sinks: Sequence[Sink] = ()) -> None:
        self._engine = engine
        self._clock = clock
        self._sinks = tuple(sinks)
        self._inbox = Inbox()
        self._admission = threading.Lock()
        # Queries that were admitted and do not run yet. The thread sets it; admission adds to it.
        self._queued = 0
        self._draining = False
        self._stopping = False
        self._cut = False  # drain's time is over: live queries are cancelled
        self._broken: str | None = None
        self._beat = clock()
        self._idle = threading.Event()
        self._idle.set()
        self._stats = stats_of(self._engine)
        self._thread = threading.Thread(target=self._run, name="baton-engine", daemon=True)
        self._watchdog = Watchdog(self._stuck, engine.settings.hang_seconds)
        self._thread.start()
        self._watchdog.start()

    def submit(self, queries: Sequence[Query], deliver: Deliver, *, admitted: bool = False) -> None:
        """Submits all of them or none. Raises QueueFull, ShuttingDown, EngineUnhealthy.

        `admitted`: a front has admitted them, so the length of this queue bounds them not.
        """
        with self._admission:
            # Background queries take no place from others in the queue; their caller bounds them.
            counted = sum(map(is_counted, queries))
            self._check_room(0 if admitted else counted, rejected=len(queries))
            self._queued += counted
            self._idle.clear()
            self._inbox.put(queries, deliver)

    def resume(self, segments: Sequence[KVSegment], deliver: Deliver) -> None:
        """Queries go on that were live in another engine; all of them or none.

        They were admitted there, so the length of the queue bounds them not. Raises ShuttingDown, EngineUnhealthy, and
        ContextLengthExceeded for one that is too long for this engine.
        """
        longest = self._engine.settings.max_model_len
        for segment in segments:
            most = len(segment.query.prompt) + segment.query.limit_tokens
            if most > longest:
                message = f"query {segment.query.id} may have {most} tokens, this engine's context has {longest}"
                raise ContextLengthExceeded(message)
        with self._admission:
            self._check_open(rejected=len(segments))
            self._queued += sum(map(is_counted, segments))
            self._idle.clear()
            self._inbox.put(segments, deliver)

    def give(self, query_ids: Sequence[str] | None = None) -> Future[list[KVSegment]]:
        """The segments of these live queries, of all if None, which leave to go on in another engine.

        They are there between two iterations. Each query's last update here has the finish reason "moved"; one that has
        ended by then is not among them. Raises EngineUnhealthy where there will be no iteration any more.
        """
        giving = Giving(query_ids, Future())
        with self._admission:
            if (stopped := self._stopped()) is not None:
                raise EngineUnhealthy(stopped)
            if self._stopping:
                raise ShuttingDown("the engine is closed")
            self._inbox.give(giving)
        return giving.segments

    def check_room(self, count: int = 1) -> None:
        """Raises what `submit` of so many queries would raise now. A refusal counts as one rejected query."""
        with self._admission:
            self._check_room(count, rejected=1)

    def cancel(self, query_ids: Sequence[str]) -> None:
        self._inbox.cancel(query_ids)

    def stats(self) -> Stats:
        return replace(self._stats, last_iteration_age_seconds=self._clock() - self._beat)

    def stuck_seconds(self) -> float:
        return self._stuck()

    def not_ready(self) -> str | None:
        if (stopped := self._stopped()) is not None:
            return stopped
        if self._draining or self._stopping:
            return "the server is shutting down"
        stuck = self._stuck()
        if stuck > self._engine.settings.hang_seconds:
            return f"no iteration for {stuck:.0f} s (--hang-timeout)"
        if self._queued >= self._engine.settings.max_waiting:
            return f"{self._queued} queries are waiting (--max-waiting)"
        return None

    def stop_admitting(self) -> None:
        """Takes no more queries from now on. Those that are here go on."""
        with self._admission:
            self._draining = True

    def drain(self, timeout_seconds: float) -> bool:
        self.stop_admitting()
        finished = self._idle.wait(timeout_seconds)
        if not finished:
            self._cut = True
            self._inbox.wake()
            self._idle.wait(_CUT_SECONDS)
        return finished

    def close(self) -> None:
        with self._admission:
            self._stopping = True
        self._inbox.wake()
        self._watchdog.close()
        if threading.current_thread() is not self._thread:
            # If the drain was cut and is not done, the engine hangs: it is not waited for twice.
            self._thread.join(timeout=0.0 if self._cut and not self._idle.is_set() else _LAST_SECONDS)

    def _check_room(self, count: int, *, rejected: int) -> None:
        """Raises if so many queries must not be admitted. The sinks are told of `rejected` queries."""
        self._check_open(rejected=rejected)
        most, rows = self._engine.settings.max_waiting, self._engine.settings.max_rows
        if count and self._queued + count > most + max(0, rows - self._stats.running):
            self._reject("queue_full", rejected)
            raise QueueFull(f"{self._queued} queries are waiting and at most {most} may (--max-waiting)")

    def _check_open(self, *, rejected: int) -> None:
        """Raises if no query is taken at all."""
        if (stopped := self._stopped()) is not None:
            self._reject("engine_unhealthy", rejected)
            raise EngineUnhealthy(stopped)
        if self._draining or self._stopping:
            self._reject("shutting_down", rejected)
            raise ShuttingDown("the server is shutting down")

    def _stopped(self) -> str | None:
        """Why there will be no iteration any more although nobody asked for that."""
        if self._broken is not None:
            return f"the engine has stopped: {self._broken}"
        # After a fork the child has no such thread.
        if not self._stopping and not self._thread.is_alive():
            return "the engine has stopped: its thread is gone"
        return None

    def _stuck(self) -> float:
        """Seconds since the engine came round, if it has something to do; else 0."""
        return 0.0 if self._idle.is_set() else self._clock() - self._beat

    def _reject(self, reason: str, count: int) -> None:
        for sink in self._sinks:
            for _ in range(count):
                sink(QueryRejected(self._clock(), reason))

    # In the engine's thread

    def _run(self) -> None:
        try:
            self._iterate()
        except BaseException as error:
            # Errors that no iteration may raise, like SystemExit: the thread ends, and every client is told.
            log.critical("the engine's thread ends", exc_info=error)
            self._broken = type(error).__name__
        finally:
            self._stop()

    def _iterate(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                if self._turn():
                    failures = 0
            except Exception as error:
                failures += 1
                log.exception("an iteration failed")
                why = type(error).__name__  # its message may contain paths and addresses, which belong in the log
                if failures > _FAILURES_ALLOWED or not self._recover(why):
                    self._broken = why
                    return

    def _turn(self) -> bool:
        """Returns whether there was anything to iterate over."""
        queries, cancelled, givings = self._inbox.take()
        for query, deliver in queries:
            self._accept(query, deliver)
        for query_id in list(self._engine.lifecycle.live) if self._cut else cancelled:
            self._engine.cancel(query_id)
        for giving in givings:
            self._give(giving)
        busy = self._engine.busy
        computed = busy and self._engine.iterate()
        self._beat = self._clock()
        # Statistics come first, so that a client that hears of a query's end finds it counted.
        self._publish()
        self._engine.flush()
        if not self._engine.busy:
            self._inbox.wait(_NAP_SECONDS)
        elif not computed:
            # A policy that plans nothing now is asked again soon, but not in a busy loop.
            self._inbox.wait(_PAUSE_SECONDS)
        return busy

    def _give(self, giving: Giving) -> None:
        """What cannot be given goes on here."""
        live = self._engine.lifecycle.live
        segments: list[KVSegment] = []
        for query_id in list(live) if giving.query_ids is None else giving.query_ids:
            try:
                segment = self._engine.give(query_id)
            except Exception:
                log.exception("query %s could not be given", query_id)
                continue
            if segment is not None:
                segments.append(segment)
        giving.segments.set_result(segments)

    def _accept(self, came: Query | KVSegment, deliver: Deliver) -> None:
        """A query that cannot even begin fails alone."""
        query = came.query if isinstance(came, KVSegment) else came
        try:
            if isinstance(came, KVSegment):
                self._engine.resume(came, deliver)
            else:
                self._engine.accept(came, deliver)
        except Exception as error:
            log.exception("query %s could not begin", query.id)
            self._reject("internal_error", 1)
            deliver([Update(query.id, finish_reason="error", error=f"internal error ({type(error).__name__})")])

    def _recover(self, why: str) -> bool:
        """Fails all live queries, and the engine goes on. Returns whether that worked."""
        try:
            self._engine.fail_all(f"internal error ({why})")
            self._publish()
        except Exception:
            log.exception("the engine could not be emptied")
            return False
        finally:
            self._engine.flush()
        return True

    def _stop(self) -> None:
        """Tells every client that still waits that the engine has ended."""
        with self._admission:
            queries, _, givings = self._inbox.take()
            self._stopping = True
        self._watchdog.close()
        try:
            for query, deliver in queries:
                self._accept(query, deliver)
            if self._broken is None:
                for query_id in list(self._engine.lifecycle.live):
                    self._engine.cancel(query_id)
            self._recover(self._broken or "closed")
        finally:
            for giving in givings:
                giving.segments.set_exception(EngineUnhealthy("the engine has stopped"))
            self._idle.set()

    def _publish(self) -> None:
        lifecycle = self._engine.lifecycle
        self._stats = stats_of(self._engine)
        with self._admission:
            came = len(self._inbox)
            self._queued = lifecycle.queued() + self._inbox.counted()
            if not self._engine.busy and not came:
                self._idle.set()
