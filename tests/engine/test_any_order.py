"""Anything, in any order: whatever comes, the ledger balances, bytes are what they are said to be, no token is lost."""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from baton.core.events import Event, IterationDone, QueryEnded, QueryMoved
from baton.core.query import Query, State
from baton.kv.budget import SPARE_BYTES
from baton.kv.prefix import PrefixStore
from baton.policy.baton import Baton
from baton.policy.port import Policy
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from random_batch import Shaken, query_of
from toy import BYTES_PER_TOKEN, COLUMNS, NAN, hashed, prompt_of, toy_batch
from turns import accept, faulty, is_idle, turn

POISON = 1
"""A prompt that begins with it gives logits that are not finite after a few tokens.

No other prompt or answer has it.
"""


class Counted:
    """A sink that keeps the ledger by itself."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {}
        self.ends = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, QueryMoved):
            assert self.states.get(event.query_id) is event.was
            self.states[event.query_id] = event.now
        elif isinstance(event, QueryEnded):
            self.ends += 1
            assert self.states[event.query_id] is event.outcome
        elif isinstance(event, IterationDone):
            count = list(self.states.values()).count
            assert (count(State.WAITING), count(State.PREFILLING), count(State.READY)) == (
                event.waiting,
                event.prefilling,
                event.ready,
            )


def say(tokens: list[int]) -> int:
    return NAN if tokens[0] == POISON and len(tokens) % 9 == 0 else hashed(tokens)


def alone(query: Query) -> tuple[list[int], str]:
    """What the query gives by itself, and how it ends."""
    tokens = list(query.prompt)
    while len(tokens) < len(query.prompt) + query.limit_tokens:
        said = say(tokens)
        if said == NAN:
            return tokens[len(query.prompt) :], "error"
        tokens.append(said)
    return tokens[len(query.prompt) :], "length"


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, cancellations, deadlines and all kinds of trouble in any order, under a policy that is shaken too."""

    @initialize(
        policy=st.sampled_from([*sorted(POLICIES), "baton, prefill apart"]),
        shaken=st.booleans(),
        rows=st.integers(1, 4),
        chunk=st.sampled_from([None, 1, 3, 50]),
        budget=st.integers(COLUMNS, 4 * COLUMNS),
        pool=st.sampled_from([0, COLUMNS // 2, 4 * COLUMNS]),
        sure=st.sampled_from([0, 3, 64]),
        cut=st.sampled_from([None, 0, 8, sys.maxsize]),
        seed=st.integers(0, 1000),
    )
    def begin(
        self,
        policy: str,
        shaken: bool,
        rows: int,
        chunk: int | None,
        budget: int,
        pool: int,
        sure: int,
        cut: int | None,
        seed: int,
    ) -> None:
        inner: Policy = POLICIES[policy]() if policy in POLICIES else Baton(fused=False)
        self.clock = ManualClock()
        self.sink = Counted()
        self.free_bytes = 2**40
        self.faults = 0
        self.batch = toy_batch(
            Shaken(inner, random.Random(seed)) if shaken else inner,
            say=say,
            clock=self.clock,
            sinks=[self.sink],
            max_rows=rows,
            prefill_chunk=chunk,
            kv_bytes=budget * BYTES_PER_TOKEN,
            swap_bytes=pool * BYTES_PER_TOKEN,
            free_bytes=lambda: self.free_bytes + SPARE_BYTES,
            guaranteed_tokens=sure,
            prefix_store=None if cut is None else PrefixStore(0, divisible_tokens=cut, block=4),
        )
        faulty(self.batch, self.fails)
        self.engine = self.batch.engine
        self.queries: dict[str, Query] = {}
        self.cancelled: set[str] = set()

    def fails(self, number: int, rows: int, tokens: int) -> Exception | None:
        if not self.faults or rows == 1:
            return None
        self.faults -= 1
        return MemoryError()

    @rule(
        prompt=st.integers(1, 20),
        limit=st.integers(1, 20),
        deadline=st.sampled_from([None, None, 3.0]),
        priority=st.integers(0, 2),
        poison=st.sampled_from([False, False, False, True]),
        alike=st.booleans(),
        choices=st.sampled_from([1, 1, 1, 3]),
    )
    def arrive(
        self, prompt: int, limit: int, deadline: float | None, priority: int, poison: bool, alike: bool, choices: int
    ) -> None:
        first = f"q{len(self.queries)}"
        tokens = [POISON] * poison + prompt_of(12 * alike, 0) + prompt_of(prompt, len(self.queries))
        ends = deadline and self.clock() + deadline
        for _ in range(choices):
            name = f"q{len(self.queries)}"
            query = query_of(name, tokens[:20], limit)
            shared = first if choices > 1 else ""
            self.queries[name] = replace(query, deadline=ends, priority=priority, sibling_of=shared)
            accept(self.batch, self.queries[name])

    @rule(free=st.sampled_from([0, 10, 50, 2**40]))
    def others_take_memory_or_give_it_back(self, free: int) -> None:
        self.free_bytes = free * BYTES_PER_TOKEN
        self.clock.advance(1.5)

    @rule(times=st.integers(1, 4))
    def memory_runs_out(self, times: int) -> None:
        """In the next forwards of several rows."""
        self.faults = times

    @rule(times=st.integers(1, 6))
    def iterate(self, times: int) -> None:
        for _ in range(times):
            self.clock.advance(0.1)
            turn(self.batch)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.queries:
            name = data.draw(st.sampled_from(sorted(self.queries)))
            if name in self.engine.lifecycle.live:
                self.cancelled.add(name)
            self.engine.cancel(name)

    @invariant()
    def the_ledger_balances_and_each_query_is_in_one_place(self) -> None:
        if not hasattr(self, "engine"):
            return
        engine, lives = self.engine, self.engine.lifecycle
        assert lives.submitted == len(self.queries) == sum(lives.ended.values()) + len(lives.live)
        assert self.sink.ends == sum(lives.ended.values())
        batch, prefiller = set(engine.batch.lens), set(engine.prefiller.lens)
        pool, held = set(engine.queries.pool), set(engine.queries.held)
        budget = engine.budget
        by_state = {state: {i for i, life in lives.live.items() if life.state is state} for state in State}
        assert not batch & prefiller and not batch & pool and not prefiller & pool
        assert batch == by_state[State.RUNNING] | held
        assert prefiller | pool == set(lives.live) - by_state[State.RUNNING]
        assert by_state[State.PREFILLING] <= prefiller
        assert by_state[State.WAITING] <= pool
        assert len(batch) <= engine.batch.rows <= engine.settings.max_rows
        assert engine.kv_bytes_used <= budget.rows_bytes <= engine.settings.kv_bytes
        assert engine.swap_bytes_used <= budget.swap_bytes <= engine.settings.swap_bytes
        stored = engine.queries.prefixes
        assert stored.bytes_used <= max(budget.swap_bytes - engine.swap_bytes_used, stored.bytes_held)
        segments = [segment for segment, _ in engine.queries.pool._segments.values()]
        assert engine.swap_bytes_used == sum(segment.bytes for segment in segments)
        for name, query in self.queries.items():
            if name in self.batch.updates:
                tokens = self.batch.tokens(name)
                assert tokens == alone(query)[0][: len(tokens)]

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        for _ in range(3000):
            if not self.engine.busy:
                break
            turn(self.batch)
        self.engine.flush()
        assert is_idle(self.engine)
        for name, query in self.queries.items():
            reasons = [update.finish_reason for update in self.batch.updates[name] if update.finish_reason]
            assert len(reasons) == 1, "each query ends, and is told so once"
            if name in self.cancelled:
                assert reasons == ["cancelled"]
            elif query.deadline is None:
                assert (self.batch.tokens(name), reasons[0]) == alone(query)


# Each of up to 30 events, thousands together. `SCENARIOS=2000 pytest ...` draws so many other ones each time.
SCENARIOS = int(os.environ.get("SCENARIOS", "0"))

TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(
    max_examples=SCENARIOS or 125, stateful_step_count=30, deadline=None, derandomize=not SCENARIOS
)
