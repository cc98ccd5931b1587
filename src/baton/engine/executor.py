"""Runs forwards and applies their results. A failed one is tried again with less, until the faulty query is found."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from baton.core.clock import Clock
from baton.core.events import TokenLogprobs
from baton.core.query import State
from baton.core.step import MEMORY, Chunk, StepOutput, merged
from baton.engine.costs import AnswerMeter, CostMeter
from baton.engine.iteration import Iteration
from baton.engine.queries import Queries
from baton.kv.budget import out_of_memory

log = logging.getLogger("baton.engine")

GOOD_STEPS = 32
"""After so many steps without a lack of memory the batch may have one row more."""


class RowLimit:
    """How many rows the batch may have: all of them, or fewer for a while after memory ran out."""

    def __init__(self, most: int) -> None:
        self.rows = self._most = most
        self._good = 0

    def cut(self, rows: int) -> None:
        self.rows, self._good = max(1, rows), 0

    def good(self) -> None:
        """A step went well."""
        self._good += self.rows < self._most
        if self._good >= GOOD_STEPS:
            self.rows, self._good = self.rows + 1, 0


class Executor:
    """Prefills and steps of the queries in `Queries`. A forward that raises has fed nothing."""

    def __init__(self, queries: Queries, costs: CostMeter, answers: AnswerMeter, limit: RowLimit, clock: Clock) -> None:
        self._queries = queries
        self._costs = costs
        self._answers = answers
        self._limit = limit
        self._clock = clock

    def prefill(self, chunks: Sequence[Chunk], now: Iteration) -> None:
        """Prefills chunks in a forward of their own; running rows wait for it."""
        chunks = [chunk for chunk in chunks if chunk.query_id in self._queries.lifecycle.live]
        if not chunks:
            return
        with now.stalling("prefill"):
            began = self._clock()
            output = self._advance(chunks, now)
            if output.shares:
                seconds = output.fill_seconds or self._clock() - began
                now.prefilled_tokens += self._filled(output, list(output.shares), seconds)
            self._apply(output, now)

    def step(self, now: Iteration) -> None:
        """Runs one step of the batch, with the prompts `beside`. A lack of memory costs rows, not queries."""
        plan, queries = now.plan, self._queries
        while queries.batch.lens:
            began = self._clock()
            try:
                output = queries.batch.step(plan.feed, plan.how, queries.held.keys(), now.beside)
            except Exception as error:
                self._step_failed(error, now)
                continue
            now.step_seconds = self._clock() - began
            self._limit.good()
            self._measure(output, now)
            self._apply(output, now)
            return

    # If a forward fails

    def _step_failed(self, error: Exception, now: Iteration) -> None:
        """Leaves less to step: without the prompts, with fewer rows, or with none."""
        queries, short = self._queries, out_of_memory(error)
        running = self._running()
        log.warning("a step of %d rows failed", len(queries.batch.lens), exc_info=None if short else error)
        if now.beside:
            # The culprit shows when the batch and each prompt run by themselves.
            chunks = [Chunk(query_id, tokens) for query_id, tokens in now.beside.items()]
            now.beside = {}
            self.prefill(chunks, now)
        elif short and queries.prefixes.let_go():
            log.warning("out of memory in a step: stored prefixes were let go")
        elif short and queries.held:
            queries.release_held()
        elif short and len(running) > 1:
            self._shrink(now)
        elif short and (self._free_all_beside() or now.try_once_more()):
            pass
        else:
            why = "out of memory, even by itself" if short else f"the step failed: {type(error).__name__}"
            for query_id in running:
                queries.fail(query_id, why)
            queries.release_held()

    def _shrink(self, now: Iteration) -> None:
        """Swaps out at least half of the rows, the latest arrivals first."""
        victims = self._running()
        victims = victims[: (len(victims) + 1) // 2]
        for query_id in victims:
            self._queries.swap_out(query_id, MEMORY)
            now.detached.append(query_id)
        self._limit.cut(len(self._queries.batch.lens))
        log.warning("out of memory in a step: %d rows go on", self._limit.rows)

    def _free_all_beside(self) -> bool:
        """Forgets every query that keeps anything outside the batch. Returns whether there was one."""
        queries = self._queries
        keeps = [
            query_id
            for query_id, record in queries.lifecycle.live.items()
            if record.state in (State.PREFILLING, State.READY)
        ]
        for query_id in keeps:
            queries.forget(query_id, MEMORY)
        return bool(keeps)

    def _running(self) -> list[str]:
        """The running queries, in the order in which they lose their rows."""
        records = [record for record in self._queries.lifecycle.live.values() if record.state is State.RUNNING]
        return [record.query.id for record in sorted(reversed(records), key=lambda record: -record.query.priority)]

    def _advance(self, chunks: Sequence[Chunk], now: Iteration) -> StepOutput:
        """Prefills the chunks together. If that fails, one by one, so that only the culprit's query fails."""
        try:
            return self._queries.prefiller.advance(chunks)
        except Exception as error:
            if len(chunks) > 1:
                return merged(self._advance([chunk], now) for chunk in chunks)
            if not out_of_memory(error):
                log.exception("prefill of query %s failed", chunks[0].query_id)
                self._queries.fail(chunks[0].query_id, f"prefill failed: {type(error).__name__}")
                return StepOutput()
        return self._advance(chunks, now) if self._queries.prefixes.let_go() else self._halve_chunk(chunks[0], now)

    def _halve_chunk(self, chunk: Chunk, now: Iteration) -> StepOutput:
        """Halves a chunk for which there was no memory. If nothing is left of it, its query waits for others to end."""
        queries = self._queries
        if chunk.tokens > 1:
            pending = self._queries.lifecycle.live[chunk.query_id].pending()
            return self._advance([Chunk(chunk.query_id, min(chunk.tokens, pending) // 2 or 1)], now)
        if queries.batch.lens or len(queries.prefiller.lens) > 1 or queries.pool.bytes_used:
            queries.forget(chunk.query_id, MEMORY)
        elif now.try_once_more():
            return self._advance([chunk], now)
        else:
            queries.fail(chunk.query_id, "out of memory, even by itself")
        return StepOutput()

    # The results of a forward

    def _filled(self, output: StepOutput, prompts: Iterable[str], seconds: float) -> int:
        """Measures what these prompts' chunks cost. Returns how many tokens they had."""
        tokens, columns = 0, 0.0
        for query_id in prompts:
            fed = sum(output.shares[query_id])
            tokens += fed
            columns += fed * (self._queries.lifecycle.live[query_id].cached + fed / 2)
        if tokens:
            self._costs.filled(tokens, columns, seconds)
        return tokens

    def _measure(self, output: StepOutput, now: Iteration) -> None:
        """Measures what the step cost.

        If prompts were in it, its extra time is a stall of the rows that only decode.
        """
        usual = self._costs.costs.step_seconds
        slots = {query_id: useful + idle for query_id, (useful, idle) in output.shares.items()}
        extra_tokens = sum(slots.values()) - sum(query_id not in now.beside for query_id in slots)
        if not extra_tokens and not output.beside:
            if slots:
                self._costs.stepped(now.step_seconds, len(slots))
            return
        now.prefilled_tokens += extra_tokens
        extra = max(0.0, now.step_seconds - (usual or 0.0))
        if usual is not None:
            now.stalled("prefill", extra)
        if output.beside and output.fill_seconds is None:
            # Prompts that are not finished yet made the step longer, not the few tokens that were fed in it.
            return
        seconds = extra if output.fill_seconds is None else output.fill_seconds
        self._filled(output, [query_id for query_id in slots if query_id in now.beside], seconds)

    def _apply(self, output: StepOutput, now: Iteration) -> None:
        """Counts slots and tokens, and ends finished queries in the same iteration."""
        queries, lifecycle = self._queries, self._queries.lifecycle
        now.slots.add(output.slots)
        if output.shares:
            now.went_well()
        lens, ended = {**queries.batch.lens, **queries.prefiller.lens}, output.ended
        for query_id, (useful, idle) in output.shares.items():
            now.fed[query_id] = now.fed.get(query_id, 0) + useful + idle
            if query_id in ended:
                lifecycle.fed(query_id, lens[query_id], useful, idle)
            else:
                queries.fed(query_id, lens[query_id], useful, idle)
        for query_id, logprobs in output.prompt_logprobs.items():
            queries.outputs.append_prompt(query_id, logprobs)
        for query_id, token in output.tokens.items():
            if lifecycle.live[query_id].state is State.PREFILLING:
                lifecycle.move(query_id, State.READY, "prefilled")
            now.generated_tokens += 1
            lifecycle.token(query_id)
            self._say(query_id, token, output.logprobs.get(query_id), hold=now.plan.hold_finished)
        for query_id, why in output.failed.items():
            queries.fail(query_id, why)
        for query_id, why in output.infeasible.items():
            queries.give_up(query_id, why)

    def _say(self, query_id: str, token: int, logprobs: TokenLogprobs | None, *, hold: bool) -> None:
        """Adds a query's next token to its text, and ends the query if that was its last."""
        try:
            reason = self._queries.outputs.append(query_id, token, logprobs)
        except Exception as error:
            log.exception("the text of query %s failed", query_id)
            self._queries.fail(query_id, f"its text could not be made: {type(error).__name__}")
            return
        if reason is not None:
            record = self._queries.lifecycle.live[query_id]
            self._answers.finished(record.generated, record.query.limit_tokens)
            self._queries.end(query_id, State.FINISHED, reason, hold=hold)
