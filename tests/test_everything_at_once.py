"""Everything at once on real tiny models: whatever meets whatever, a query gives what it gives alone, and all is freed.

The other tests have one feature each. Here a seed draws a scenario: a family, a policy, rows, budgets barely above one
row, prefixes, choices, later turns, all kinds of sampling, log-probabilities, deadlines, cancellations, logits that are
not finite, memory that runs out inside layers and that others take. `SCENARIOS=400 pytest ...` tells so many more.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from baton.core.events import TokenLogprobs
from baton.core.query import Query, SamplingParams
from baton.kv.budget import SPARE_BYTES, Budget
from baton.kv.rectangle import Rectangle
from baton.native import library as native
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from families import CONTEXT, model_of
from random_batch import RandomBatch, Shaken, alone, late_offload, random_batch
from scenario import FAMILIES, POISON, Scenario
from test_failing_forward import Trouble, layers_of, program_of
from turns import is_idle

ENDLESS = 2**50
TOLD_TOLERANCE = 1e-3

SCENARIOS = int(os.environ.get("SCENARIOS", "0"))
# One of each family, and two more for the policies that those leave out and for memory that runs out.
USUAL = (*range(len(FAMILIES)), 26, 31)
SEEDS = random.SystemRandom().sample(range(10**6), SCENARIOS) if SCENARIOS else USUAL


@dataclass
class OnPhase:
    """What a query was told."""

    tokens: list[int]
    reason: str
    logprobs: list[TokenLogprobs]
    prompt_logprobs: list[TokenLogprobs]


def told(batch: RandomBatch, name: str) -> OnPhase:
    updates = batch.updates[name]
    reasons = [update.finish_reason for update in updates if update.finish_reason]
    assert len(reasons) == 1, "each query ends, and is told so once"
    return OnPhase(
        batch.tokens(name),
        reasons[0],
        [one for update in updates for one in update.logprobs],
        [one for update in updates for one in update.prompt_logprobs],
    )


def poisoned_batch(family: str, policy: Policy, **settings: Any) -> tuple[RandomBatch, torch.nn.Module]:
    """After the self-check, which would refuse such a model."""
    model = model_of(family)
    batch = random_batch(model, policy, **settings)
    model.get_input_embeddings().weight[POISON] = torch.nan
    return batch, model


@functools.cache
def lonely(family: str) -> RandomBatch:
    return poisoned_batch(family, Orca(), rows=1, chunk=None)[0]


def by_itself(family: str, query: Query) -> OnPhase:
    """The oracle: an engine of one row without others; greedy plain queries also through stock `generate`."""
    batch = lonely(family)
    batch.updates.clear()
    batch.run([replace(query, deadline=None, sibling_of="")])
    answer, params = told(batch, query.id), query.params
    plain = SamplingParams(temperature=0, max_tokens=params.max_tokens, ignore_eos=True)
    if query.constraint is not None:
        matcher = query.constraint.start()
        for at, token in enumerate(answer.tokens):
            assert matcher.allowed(answer.tokens[:at])[token // 8] >> token % 8 & 1
    elif answer.reason == "length" and replace(params, logprobs=None, prompt_logprobs=None, stop_token_ids=()) == plain:
        assert answer.tokens == alone(stock(family), query)[0]
    return answer


@functools.cache
def stock(family: str) -> Any:
    return model_of(family)


class ScenarioRun:
    """A running scenario: `turn` by turn, until all queries have come and left."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.dice, self.clock = scenario, random.Random(scenario.seed + 1), ManualClock()
        inner: Policy = POLICIES[scenario.policy]() if scenario.policy in POLICIES else Baton(fused=False)
        self.batch, model = poisoned_batch(
            scenario.family,
            Shaken(inner, self.dice) if scenario.shaken else inner,
            rows=scenario.rows,
            chunk=scenario.chunk,
            guaranteed_tokens=scenario.sure,
            prefix_cache=scenario.prefixes,
            prefix_block=scenario.block,
            clock=self.clock,
            offload=late_offload(scenario.seed % 4, staged=2 ** (12 + scenario.seed % 5)) if scenario.late else None,
        )
        self.engine = self.batch.engine
        self.row_bytes = self.engine.batch._rows.rectangle.footprint.of(CONTEXT)  # type: ignore[attr-defined]
        self.free_bytes = ENDLESS
        self.engine.budget = Budget(
            int(scenario.kv * self.row_bytes),
            int(scenario.pool * self.row_bytes),
            floor_bytes=self.row_bytes,
            free_bytes=lambda: self.free_bytes + SPARE_BYTES,
            clock=self.clock,
        )
        if scenario.short:
            layer, program = self.dice.choice(list(layers_of(model))), program_of(self.batch)
            Trouble(program or layer, "run" if program else "forward", self.dice)
        self.coming = dict(enumerate(scenario.asks))
        self.queries: dict[str, Query] = {}
        self.cancelled: set[str] = set()

    def tell(self, most: int = 4000) -> None:
        for turn in range(most):
            self.arrivals(turn)
            if not self.coming and not self.engine.busy:
                return
            self.disturb()
            self.engine.iterate()
            self.engine.flush()
            self.check()
        raise AssertionError(f"not done after {most} iterations: {self.engine.lifecycle.live}")

    def arrivals(self, turn: int) -> None:
        for number, ask in list(self.coming.items()):
            queries = ask.queries
            if ask.after is None:
                if turn < ask.turn:
                    continue
            else:
                first = f"q{ask.after}.0"
                if first not in self.queries or first in self.engine.lifecycle.live:
                    continue
                queries = [self.goes_on(query, first) for query in queries]
            del self.coming[number]
            now = self.clock()
            for query in queries:
                deadline = query.deadline and now + query.deadline
                self.queries[query.id] = replace(query, arrived=now, deadline=deadline)
                self.engine.accept(self.queries[query.id], self.batch.hear)

    def goes_on(self, query: Query, first: str) -> Query:
        """The next turn of a conversation: all that was said before, and this query's own."""
        before = [*self.queries[first].prompt, *self.batch.tokens(first)]
        prompt = (before + list(query.prompt))[: CONTEXT - query.limit_tokens]
        return replace(query, prompt=tuple(prompt))

    def disturb(self) -> None:
        dice, live = self.dice, list(self.engine.lifecycle.live)
        if self.scenario.squeezed and dice.random() < 0.1:
            self.free_bytes = dice.choice([0, self.row_bytes // 3, self.row_bytes, 3 * self.row_bytes, ENDLESS])
            self.clock.advance(1.5)
        self.clock.advance(dice.choice([0.0, 0.05, 0.1]))
        if live and len(self.cancelled) < 3 and dice.random() < 0.03:
            self.cancelled.add(dice.choice(live))
            self.engine.cancel(max(self.cancelled & set(live)))

    def check(self) -> None:
        """After every iteration: the ledger balances, and what is held is within what may be."""
        engine, budget, lives = self.engine, self.engine.budget, self.engine.lifecycle
        pool = engine.queries.pool
        assert lives.submitted == len(self.queries) == sum(lives.ended.values()) + len(lives.live)
        assert engine.kv_bytes_used <= budget.rows_bytes
        assert engine.swap_bytes_used == sum(segment.bytes for segment, _ in pool._segments.values())
        assert engine.swap_bytes_used + engine.queries.prefixes.bytes_used <= budget.swap_bytes

    def compare(self) -> None:
        for name, query in self.queries.items():
            mine, theirs = told(self.batch, name), by_itself(self.scenario.family, query)
            assert mine.tokens == theirs.tokens[: len(mine.tokens)], name
            if mine.reason in ("cancelled", "expired"):
                assert name in self.cancelled or query.deadline is not None
                continue
            assert (len(mine.tokens), mine.reason) == (len(theirs.tokens), theirs.reason), name
            assert_same(mine.logprobs, theirs.logprobs)
            if mine.reason != "error":
                assert_same(mine.prompt_logprobs, theirs.prompt_logprobs)


def assert_same(some: Sequence[TokenLogprobs], others: Sequence[TokenLogprobs]) -> None:
    assert [one.token_id for one in some] == [one.token_id for one in others]
    assert all(abs(a.logprob - b.logprob) < TOLD_TOLERANCE for a, b in zip(some, others, strict=True))


def tell(seed: int) -> ScenarioRun:
    run = ScenarioRun(Scenario(seed))
    run.tell()
    assert is_idle(run.engine)
    assert not run.engine.queries.prefixes.bytes_held
    run.compare()
    return run


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: str(Scenario(seed)))
def test_whatever_meets_whatever_each_gives_what_it_gives_alone(seed: int) -> None:
    tell(seed)


def test_the_scenarios_have_everything_in_them() -> None:
    """The control: what the scenarios are about happens in them."""
    scenarios = [Scenario(seed) for seed in USUAL]
    assert {scenario.policy for scenario in scenarios} == {*POLICIES, "apart"}
    assert {scenario.family for scenario in scenarios} == set(FAMILIES)
    assert {scenario.late for scenario in scenarios} == {True, False}
    queries = [query for scenario in scenarios for ask in scenario.asks for query in ask.queries]
    has: list[Callable[[Query], object]] = [
        lambda query: POISON in query.prompt,
        lambda query: query.sibling_of,
        lambda query: query.deadline,
        lambda query: not query.params.greedy,
        lambda query: query.constraint,
        lambda query: query.params.prompt_logprobs is not None,
    ]
    assert all(any(map(one, queries)) for one in has)


def written_wrong(self: Rectangle, row: int, parts: Sequence[torch.Tensor], count: int) -> None:
    _WRITE(self, row, [torch.zeros_like(part) for part in parts], count)


def swapped_wrong(self: Rectangle, row: int, other: int) -> None:
    self.lens[row], self.lens[other] = self.lens[other], self.lens[row]


_WRITE = Rectangle.write


@pytest.mark.parametrize(
    ("verb", "wrong", "seed"),
    [("write", written_wrong, 5), ("write", written_wrong, 28), ("swap_rows", swapped_wrong, 2)],
)
def test_keys_and_values_that_are_moved_wrong_are_noticed(
    verb: str, wrong: Callable[..., None], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: a scenario notices it if a row was moved or a prefix used."""
    if verb == "swap_rows" and native.library is None:
        pytest.skip("no rows are swapped without native steps")
    run = ScenarioRun(Scenario(seed))
    with monkeypatch.context() as patch:
        patch.setattr(Rectangle, verb, wrong)
        run.tell()
    with pytest.raises(AssertionError):
        run.compare()
