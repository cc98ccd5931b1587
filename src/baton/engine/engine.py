"""The iteration: view, plan, carry out, step, report. One thread calls everything here."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import replace

from baton.batch.port import Batch, Prefiller
from baton.core.clock import Clock
from baton.core.events import Sink
from baton.core.footprint import Footprint
from baton.core.query import Query, State
from baton.core.settings import Settings
from baton.engine.costs import AnswerMeter, CostMeter
from baton.engine.executor import Executor, RowLimit
from baton.engine.inbox import Deliver
from baton.engine.iteration import Iteration, Totals, done
from baton.engine.lifecycle import Lifecycle
from baton.engine.output import OutputProcessor
from baton.engine.prefixes import Prefixes
from baton.engine.queries import Queries
from baton.kv.budget import Budget, out_of_memory
from baton.kv.pool import SegmentPool
from baton.kv.prefix import PrefixStore
from baton.kv.segment import KVSegment
from baton.policy.port import GUARANTEED_TOKENS, Chunk, Costs, Policy, QueryView, View

log = logging.getLogger("baton.engine")


class Engine:
    """Carries out the policy's plan, once per iteration, and reports what happened."""

    def __init__(
        self,
        *,
        batch: Batch,
        prefiller: Prefiller,
        policy: Policy,
        settings: Settings,
        outputs: OutputProcessor,
        footprint: Footprint,
        stamp: str,
        budget: Budget,
        clock: Clock,
        sinks: Iterable[Sink] = (),
        whole_prompts: bool = False,
        prefix_store: PrefixStore | None = None,
        guaranteed_tokens: int = GUARANTEED_TOKENS,
        chosen_share: float = 0.0,
    ) -> None:
        self.settings = settings
        self.totals = Totals()
        self.budget = budget
        self._policy = policy
        self._footprint = footprint
        self._whole_prompts = whole_prompts
        self._guaranteed_tokens = guaranteed_tokens
        self._clock = clock
        self._sinks = tuple(sinks)
        self._costs = CostMeter(chosen_share)
        self._answers = AnswerMeter()
        self._limit = RowLimit(settings.max_rows)
        pool, lifecycle = SegmentPool(budget.swap_bytes), Lifecycle(clock, self._sinks, footprint)
        prefixes = Prefixes(prefix_store, whole_prompts=whole_prompts)
        self.queries = Queries(batch, prefiller, pool, lifecycle, outputs, stamp, prefixes)
        self._executor = Executor(self.queries, self._costs, self._answers, self._limit, clock)
        # No live query is overdue before this time.
        self._in_time_until = math.inf

    @property
    def batch(self) -> Batch:
        return self.queries.batch

    @property
    def prefiller(self) -> Prefiller:
        return self.queries.prefiller

    @property
    def lifecycle(self) -> Lifecycle:
        return self.queries.lifecycle

    @property
    def busy(self) -> bool:
        return bool(self.lifecycle.live or self.queries.held)

    @property
    def kv_bytes_used(self) -> int:
        """Bytes of all rows."""
        return self.queries.row_bytes

    @property
    def costs(self) -> Costs:
        """What steps and fills cost, as measured so far."""
        return self._costs.costs

    @property
    def swap_bytes_used(self) -> int:
        """Bytes of what is kept of queries that were swapped out."""
        return self.queries.pool.bytes_used

    def accept(self, query: Query, deliver: Deliver) -> None:
        """Takes a query, which waits from now on."""
        self.queries.arrive(query, deliver)
        self.totals.prompt_tokens += len(query.prompt)
        self._in_time_until = min(self._in_time_until, query.overdue_after(begun=False))

    def resume(self, segment: KVSegment, deliver: Deliver) -> None:
        """A query comes in that was live in another engine: with its keys and values, or to be computed again."""
        self.queries.resume(segment, deliver)
        query = segment.query
        self._in_time_until = min(self._in_time_until, query.overdue_after(begun=query.start_by is None))

    def give(self, query_id: str) -> KVSegment | None:
        """A live query leaves to go on in another engine. Returns its segment; None if it is not live."""
        return self.queries.give(query_id) if query_id in self.lifecycle.live else None

    def cancel(self, query_id: str) -> None:
        """Ends the query wherever it is. Does nothing if it has ended before."""
        if query_id in self.lifecycle.live:
            self.queries.end(query_id, State.CANCELLED, "cancelled")

    def fail_all(self, why: str) -> None:
        """Fails every live query and tells its client; the batch is empty afterwards.

        Raises if memory cannot be freed.
        """
        troubles: list[Exception] = []
        for query_id in list(self.lifecycle.live):
            try:
                self.queries.fail(query_id, why)
            except Exception as error:
                troubles.append(error)
        self.queries.release_held()
        if troubles:
            raise troubles[0]

    def iterate(self) -> bool:
        """Runs one iteration (ARCHITECTURE.md, "One iteration"). Returns whether anything was computed in it."""
        self._expire()
        if self.queries.held and not self.lifecycle.count(State.RUNNING):
            self.queries.release_held()
        self.budget.update(self.kv_bytes_used, self.swap_bytes_used + self.queries.prefixes.bytes_used)
        self.queries.pool.bytes_most = self.budget.swap_bytes
        self.queries.limit_prefixes()
        view = self._view()
        now = Iteration(self._clock, self._clock(), bool(view.running), self._policy.plan(view))
        self._carry_out(now)
        self._executor.step(now)
        self.totals.add(now)
        event = done(now, self.totals.iterations, self.queries, self.budget.rows_bytes)
        for sink in self._sinks:
            sink(event)
        return now.slots.useful + now.slots.idle > 0

    def flush(self) -> None:
        """Delivers what clients have not got yet."""
        self.queries.outputs.flush()

    def _view(self) -> View:
        """What the policy sees."""
        states = (State.WAITING, State.PREFILLING, State.READY, State.RUNNING)
        waiting, prefilling, ready, running = map(self.lifecycle.views, states)
        held = self.queries.held
        reserved = sum(query.bytes_reserved for some in (prefilling, ready, running) for query in some)
        reserved += sum(self._footprint.of(len(query.prompt) + query.limit_tokens) for query in held.values())
        lens = self.batch.lens if held else {}
        # By whole pages, as plans count queries that were swapped out and forgotten: in fact it takes no more.
        swapped = sum(self._footprint.of(query.cached) for query in ready if query.swapped_out)
        return View(
            now=self._clock(),
            rows=self.batch.rows,
            max_rows=self._limit.rows,
            held_rows=len(held),
            prefill_room=self.prefiller.room,
            bytes_left=self.budget.rows_bytes - reserved,
            prefill_chunk=self.settings.prefill_chunk,
            max_stall_seconds=self.settings.max_stall_seconds,
            costs=self._costs.costs,
            waiting=self._may_begin(waiting),
            prefilling=prefilling,
            ready=ready,
            running=running,
            footprint=self._footprint,
            bytes_budget=self.budget.rows_bytes,
            swap_left=self.budget.swap_bytes - swapped - self.queries.prefixes.bytes_held,
            whole_prompts=self._whole_prompts,
            held_bytes=sum(self._footprint.of(lens[query_id]) for query_id in held),
            guaranteed_tokens=self._guaranteed_tokens,
            answer_share=self._answers.share,
        )

    def _may_begin(self, waiting: Iterable[QueryView]) -> tuple[QueryView, ...]:
        """The waiting queries whose prompt no other query is computing, with the length of their stored prefix."""
        prefixes = self.queries.prefixes
        hidden = prefixes.waiting
        return tuple(self._with_prefix(query) for query in waiting if query.id not in hidden)

    def _with_prefix(self, query: QueryView) -> QueryView:
        guaranteed = self.queries.prefixes.guaranteed(query.id)
        return replace(query, cached=guaranteed) if guaranteed else query

    def _carry_out(self, now: Iteration) -> None:
        """Carries out the plan, in the order of `Plan`, except its step."""
        plan, queries = now.plan, self.queries
        ending = {chunk.query_id for chunk in plan.prefill if chunk.tokens >= self._pending(chunk.query_id)}
        if queries.held and not plan.hold_finished:
            queries.release_held()
        with now.stalling("other"):
            self._preempt(now)
        resized = True
        if plan.resize is not None:
            with now.stalling("resize"):
                resized = self._resize(plan.resize)
        started = self._start_prefill(now)
        if plan.fused and self.prefiller.beside_batch and (self.batch.lens or plan.insert):
            now.beside = {chunk.query_id: chunk.tokens for chunk in started}
        else:
            self._executor.prefill(started, now)
        with now.stalling("insert"):
            for query_id in plan.insert:
                if not resized and len(self.batch.lens) >= self.batch.rows:
                    break  # the rows that these queries should get: they are inserted in the next iteration
                # Skip queries that ended during prefill: their first token was the last, or they failed. Skip queries
                # whose prefill was cut short: memory ran out, their prefix could not be used, or prompt
                # log-probabilities are asked for.
                record = self.lifecycle.live.get(query_id)
                if record is None or (query_id in ending and record.state is not State.READY):
                    continue
                if queries.insert(query_id, plan.why):
                    now.inserted.append(query_id)

    def _preempt(self, now: Iteration) -> None:
        plan = now.plan
        for query_id in plan.forget:
            self.queries.forget(query_id, plan.reasons.get(query_id, "policy"))
        for query_id in plan.detach:
            if query_id not in plan.forget:
                self.queries.swap_out(query_id, plan.reasons.get(query_id, "policy"))
            now.detached.append(query_id)

    def _resize(self, rows: int) -> bool:
        try:
            self.batch.resize(rows)
        except Exception as error:
            if not out_of_memory(error):
                raise
            log.warning("out of memory while the batch was resized: it keeps its rows")
            return False
        return True

    def _start_prefill(self, now: Iteration) -> list[Chunk]:
        """Moves waiting queries of the plan's chunks to the prefiller. Returns the chunks that can be fed."""
        waiting = [c.query_id for c in now.plan.prefill if self.lifecycle.live[c.query_id].state is State.WAITING]
        short = {query_id for query_id in waiting if not self.queries.start_prefill(query_id, now.plan.why)}
        return [chunk for chunk in now.plan.prefill if chunk.query_id not in short]

    def _pending(self, query_id: str) -> int:
        """Tokens left to feed as the view counted them, without the stored prefix of a query that waits."""
        return self.lifecycle.live[query_id].pending(stored=self.queries.prefixes.guaranteed(query_id))

    def _expire(self) -> None:
        """Ends queries whose time is over. Checks them only when one of them may be overdue."""
        now = self._clock()
        if now <= self._in_time_until:
            return
        for record in list(self.lifecycle.live.values()):
            why = record.query.overdue(now, begun=record.state is not State.WAITING or record.useful_slots > 0)
            if why is not None:
                self.queries.end(record.query.id, State.EXPIRED, "expired", why)
        # A query with a row that is not fed yet may lose the row, and then has not begun.
        left = (record.query.overdue_after(begun=record.useful_slots > 0) for record in self.lifecycle.live.values())
        self._in_time_until = min(left, default=math.inf)
