"""The iteration: view, plan, carry it out, step, tell. One thread calls everything here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.batch.port import Batch
from baton.clock import Clock
from baton.config import Settings
from baton.engine.costs import CostMeter
from baton.engine.inbox import Deliver
from baton.engine.lifecycle import Lifecycle
from baton.engine.talk import Talks
from baton.errors import Refused
from baton.events import IterationDone, Sink, Slots
from baton.footprint import Footprint
from baton.kv.segment import KVSegment, arrived
from baton.policy.port import Plan, Policy, View
from baton.prefill.port import Prefiller
from baton.query import Query, State
from baton.work import Chunk, Stepped

log = logging.getLogger("baton.engine")


@dataclass(slots=True)
class Iteration:
    """What one iteration did, gathered while it runs."""

    began: float
    had_running: bool
    plan: Plan
    beside: dict[str, int] = field(default_factory=dict)
    slots: Slots = field(default_factory=Slots)
    stalls: dict[str, float] = field(default_factory=dict)
    inserted: list[str] = field(default_factory=list)
    detached: list[str] = field(default_factory=list)
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    step_seconds: float = 0.0


@dataclass(slots=True)
class Totals:
    """What all iterations did together."""

    iterations: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    insertions: int = 0
    slots: Slots = field(default_factory=Slots)


class Engine:
    """Carries out what the policy plans, once per iteration, and tells what happened."""

    def __init__(
        self,
        *,
        batch: Batch,
        prefiller: Prefiller,
        policy: Policy,
        settings: Settings,
        talks: Talks,
        footprint: Footprint,
        stamp: str,
        clock: Clock,
        sinks: Iterable[Sink] = (),
    ) -> None:
        self.batch = batch
        self.prefiller = prefiller
        self.settings = settings
        self.totals = Totals()
        self._policy = policy
        self._talks = talks
        self._footprint = footprint
        self._stamp = stamp
        self._clock = clock
        self._sinks = tuple(sinks)
        self.lifecycle = Lifecycle(clock, self._sinks)
        self._costs = CostMeter()
        # Segments of waiting queries, and of those that were detached and are ready to run again.
        self._pool: dict[str, KVSegment] = {}
        # Finished queries whose rows the plan asked to hold.
        self._held: dict[str, Query] = {}

    @property
    def busy(self) -> bool:
        return bool(self.lifecycle.live or self._held)

    @property
    def kv_bytes_used(self) -> int:
        pooled = sum(segment.bytes for segment in self._pool.values())
        return self.batch.bytes_used + self.prefiller.bytes_used + pooled

    def accept(self, query: Query, deliver: Deliver) -> None:
        """A query comes in; it is waiting from now on."""
        self._talks.open(query, deliver)
        self.lifecycle.arrive(query)
        self._pool[query.id] = arrived(query, self._stamp)
        self.totals.prompt_tokens += len(query.prompt)

    def cancel(self, query_id: str) -> None:
        """The query leaves, wherever it is. No matter if it ended before."""
        if query_id in self.lifecycle.live:
            self._end(query_id, State.CANCELLED, "cancelled")

    def fail_all(self, why: str) -> None:
        """Every live query fails and is told so; the batch is empty afterwards. Raises where memory cannot be freed."""
        troubles: list[Exception] = []
        for query_id in list(self.lifecycle.live):
            try:
                self._end(query_id, State.FAILED, "error", why)
            except Exception as error:
                troubles.append(error)
        self._release_held()
        if troubles:
            raise troubles[0]

    def iterate(self) -> bool:
        """One iteration (ARCHITECTURE.md section 8); answers whether anything was computed in it."""
        self._expire()
        if self._held and not self.lifecycle.count(State.RUNNING):
            self._release_held()
        view = self._view()
        now = Iteration(self._clock(), bool(view.running), self._policy.plan(view))
        self._carry_out(now)
        if self.batch.lens:
            self._step(now)
        self._tell(now)
        return now.slots.useful + now.slots.idle > 0

    def hand_over(self) -> None:
        """Delivers what clients have not heard yet."""
        self._talks.hand_over()

    # What the policy sees

    def _view(self) -> View:
        by_state = {
            state: self.lifecycle.standings(state, self._footprint)
            for state in (State.WAITING, State.PREFILLING, State.READY, State.RUNNING)
        }
        grown = [q for state in (State.PREFILLING, State.READY, State.RUNNING) for q in by_state[state]]
        reserved = sum(query.bytes_reserved for query in grown)
        reserved += sum(self._footprint.of(len(q.prompt) + q.limit_tokens) for q in self._held.values())
        return View(
            now=self._clock(),
            rows=self.batch.rows,
            max_rows=self.settings.max_rows,
            held_rows=len(self._held),
            prefill_room=self.prefiller.room,
            bytes_left=self.settings.kv_bytes - reserved,
            prefill_chunk=self.settings.prefill_chunk,
            max_stall_seconds=self.settings.max_stall_seconds,
            costs=self._costs.costs,
            waiting=by_state[State.WAITING],
            prefilling=by_state[State.PREFILLING],
            ready=by_state[State.READY],
            running=by_state[State.RUNNING],
            footprint=self._footprint,
            bytes_budget=self.settings.kv_bytes,
        )

    # Carrying a plan out

    def _carry_out(self, now: Iteration) -> None:
        plan = now.plan
        if self._held and not plan.hold_finished:
            self._release_held()
        with self._stalling(now, "other"):
            for query_id in plan.detach:
                self._pool[query_id] = self.batch.detach(query_id)
                self.lifecycle.move(query_id, State.READY, "policy")
                now.detached.append(query_id)
            for query_id in plan.forget:
                self._forget(query_id, plan.why)
        if plan.resize is not None:
            with self._stalling(now, "resize"):
                self.batch.resize(plan.resize)
        if plan.prefill:
            self._start_prefill(now)
            if plan.fused and self.prefiller.beside_batch and (self.batch.lens or plan.insert):
                now.beside = {chunk.query_id: chunk.tokens for chunk in plan.prefill}
            else:
                self._prefill(now)
        with self._stalling(now, "insert"):
            for query_id in plan.insert:
                self._insert(query_id, now)

    def _forget(self, query_id: str, why: str) -> None:
        segment = self._pool.pop(query_id, None) or self.prefiller.take(query_id)
        segment.release()
        self._pool[query_id] = segment
        self.lifecycle.forgot(query_id)
        self.lifecycle.move(query_id, State.WAITING, why)

    def _insert(self, query_id: str, now: Iteration) -> None:
        life = self.lifecycle.live.get(query_id)
        if life is None:
            return  # its prefill ended it: its first token was its last, or it failed
        if life.state is State.PREFILLING:
            raise Refused(f"query {query_id} is not prefilled yet")
        segment = self._pool.pop(query_id, None) or self.prefiller.take(query_id)
        try:
            self.batch.insert(segment)
        except Refused:
            self._pool[query_id] = segment
            raise
        self.lifecycle.move(query_id, State.RUNNING, now.plan.why)
        self.totals.insertions += 1
        now.inserted.append(query_id)

    def _start_prefill(self, now: Iteration) -> None:
        for chunk in now.plan.prefill:
            if self.lifecycle.live[chunk.query_id].state is State.WAITING:
                self.prefiller.start(self._pool[chunk.query_id])
                del self._pool[chunk.query_id]
                self.lifecycle.move(chunk.query_id, State.PREFILLING, now.plan.why)

    def _prefill(self, now: Iteration) -> None:
        """The plan's chunks in a forward of their own; running rows wait for it."""
        with self._stalling(now, "prefill"):
            began = self._clock()
            stepped = self._advance([chunk for chunk in now.plan.prefill if chunk.query_id in self.lifecycle.live])
            computed = stepped.slots.useful + stepped.slots.idle
            now.prefilled_tokens += computed
            if computed:
                self._costs.filled(computed, self._clock() - began)
            self._apply(stepped, now)

    def _advance(self, chunks: list[Chunk]) -> Stepped:
        """Prefills the chunks together; where that fails, one by one, so that only the culprit's query fails."""
        try:
            return self.prefiller.advance(chunks)
        except Exception as error:
            if len(chunks) > 1:
                return _joined(self._advance([chunk]) for chunk in chunks)
            log.exception("prefill of query %s failed", chunks[0].query_id)
            self._end(chunks[0].query_id, State.FAILED, "error", f"prefill failed: {type(error).__name__}")
            return Stepped()

    # The step and what comes of it

    def _step(self, now: Iteration) -> None:
        plan, began = now.plan, self._clock()
        try:
            stepped = self.batch.step(plan.feed, plan.how, self._held.keys(), now.beside)
        except Exception as error:
            log.exception("a step of %d rows failed", len(self.batch.lens))
            if now.beside:
                # Whose fault it was shows when the batch and each prompt go by themselves.
                now.beside = {}
                self._prefill(now)
                self._step(now)
                return
            for query_id in [i for i, life in self.lifecycle.live.items() if life.state is State.RUNNING]:
                self._end(query_id, State.FAILED, "error", f"the step failed: {type(error).__name__}")
            self._release_held()
            return
        now.step_seconds = self._clock() - began
        filled = sum(useful + idle for useful, idle in stepped.shares.values())
        filled -= sum(query_id not in now.beside for query_id in stepped.shares)
        now.prefilled_tokens += filled
        self._measure(now, filled)
        self._apply(stepped, now)

    def _measure(self, now: Iteration, filled: int) -> None:
        """What the step cost; where prompts were in it, rows that only decode waited for what it took longer."""
        usual = self._costs.costs.step_seconds
        if not filled:
            self._costs.stepped(now.step_seconds)
        elif now.had_running and usual is not None:
            extra = max(0.0, now.step_seconds - usual)
            now.stalls["prefill"] = now.stalls.get("prefill", 0.0) + extra
            if now.beside:
                self._costs.filled(filled, extra)

    def _apply(self, stepped: Stepped, now: Iteration) -> None:
        """Counts slots and tokens, and ends what is finished, in the same iteration."""
        now.slots.add(stepped.slots)
        lens = {**self.batch.lens, **self.prefiller.lens}
        for query_id, (useful, idle) in stepped.shares.items():
            self.lifecycle.fed(query_id, lens[query_id], useful, idle)
        for query_id, token in stepped.tokens.items():
            if self.lifecycle.live[query_id].state is State.PREFILLING:
                self.lifecycle.move(query_id, State.READY, "prefilled")
            now.generated_tokens += 1
            self.lifecycle.token(query_id)
            try:
                reason = self._talks.hear(query_id, token)
            except Exception as error:
                log.exception("the text of query %s failed", query_id)
                self._end(query_id, State.FAILED, "error", f"its text could not be made: {type(error).__name__}")
                continue
            if reason is not None:
                self._end(query_id, State.FINISHED, reason, hold=now.plan.hold_finished)
        for query_id, why in stepped.failed.items():
            self._end(query_id, State.FAILED, "error", why)

    def _end(self, query_id: str, state: State, reason: str, error: str | None = None, *, hold: bool = False) -> None:
        """The query leaves wherever it is; its row and memory are free, unless the row is to be held."""
        life = self.lifecycle.live[query_id]
        try:
            if life.state is not State.RUNNING:
                (self._pool.pop(query_id, None) or self.prefiller.take(query_id)).release()
            elif hold:
                self._held[query_id] = life.query
            else:
                self.batch.remove(query_id)
        finally:
            usage = self.lifecycle.end(query_id, state, reason)
            self._talks.close(query_id, reason, error, usage)

    def _release_held(self) -> None:
        for query_id in self._held:
            self.batch.remove(query_id)
        self._held.clear()

    def _expire(self) -> None:
        now = self._clock()
        deadlines = {query_id: life.query.deadline for query_id, life in self.lifecycle.live.items()}
        late = [query_id for query_id, deadline in deadlines.items() if deadline is not None and deadline < now]
        for query_id in late:
            self._end(query_id, State.EXPIRED, "error", "the query's deadline has passed")

    # Telling

    @contextmanager
    def _stalling(self, now: Iteration, cause: str) -> Iterator[None]:
        """Whatever happens inside makes running rows wait."""
        began = self._clock()
        yield
        if now.had_running:
            now.stalls[cause] = now.stalls.get(cause, 0.0) + self._clock() - began

    def _tell(self, now: Iteration) -> None:
        totals, lifecycle = self.totals, self.lifecycle
        totals.iterations += 1
        totals.generated_tokens += now.generated_tokens
        totals.slots.add(now.slots)
        ended = self._clock()
        decoded = now.slots.useful + now.slots.idle > now.prefilled_tokens
        kinds = {(True, True): "both", (True, False): "decode", (False, True): "prefill", (False, False): "none"}
        event = IterationDone(
            index=totals.iterations,
            time=ended,
            seconds=ended - now.began,
            kind=kinds[decoded, now.prefilled_tokens > 0],
            why=now.plan.why,
            rows=self.batch.rows,
            occupied=len(self.batch.lens),
            columns=self.batch.columns,
            slots=now.slots,
            generated_tokens=now.generated_tokens,
            prefilled_tokens=now.prefilled_tokens,
            inserted=tuple(now.inserted),
            detached=tuple(now.detached),
            resized_to=now.plan.resize,
            waiting=lifecycle.count(State.WAITING),
            prefilling=lifecycle.count(State.PREFILLING),
            ready=lifecycle.count(State.READY),
            preempted=lifecycle.preempted,
            kv_bytes_used=self.kv_bytes_used,
            step_seconds=now.step_seconds,
            stall_seconds=now.stalls,
        )
        for sink in self._sinks:
            sink(event)


def _joined(parts: Iterable[Stepped]) -> Stepped:
    whole = Stepped()
    for part in parts:
        whole.tokens.update(part.tokens)
        whole.failed.update(part.failed)
        whole.shares.update(part.shares)
        whole.slots.add(part.slots)
    return whole
