"""The fake batch and prefiller: the verbs' promises, and the slots and seconds of real ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from baton.core.errors import Refused
from baton.core.events import Event, IterationDone
from baton.core.footprint import Columns, Footprint
from baton.core.query import Query
from baton.core.settings import Settings
from baton.core.step import ALL_PENDING, Chunk, Feeding
from baton.core.text import TextStream
from baton.engine.engine import Engine
from baton.engine.output import OutputProcessor
from baton.kv.budget import Budget
from baton.kv.segment import KVSegment, arrived
from baton.policy.baton import Baton
from baton.policy.memory_guard import MemoryGuard
from baton.policy.port import Policy
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from baton.testing.fake_batch import CostModel, FakeBatch, FakeDevice, FakePrefill
from random_batch import NoText, RandomBatch, Recorder, Shaken, query_of
from toy import hashed, prompt_of, toy_alone, toy_batch, toy_settings

FOOTPRINT = Footprint((Columns(4, count=2),))
COSTS = CostModel(fixed_seconds=1.0, row_seconds=0.1, slot_seconds=0.01, column_seconds=0.001)


def say(tokens: Sequence[int]) -> int:
    return hashed(list(tokens))


def device(clock: ManualClock | None = None, costs: CostModel = COSTS) -> FakeDevice:
    return FakeDevice(say=say, costs=costs, clock=clock or ManualClock(), columns=40, footprint=FOOTPRINT)


def segment(name: str, tokens: int = 4, limit: int = 6) -> KVSegment:
    return arrived(query_of(name, prompt_of(tokens, seed=sum(name.encode())), limit), "fake")


def fake_batch(
    policy: Policy, *, costs: CostModel = COSTS, sinks: Sequence[object] = (), **changes: object
) -> RandomBatch:
    """An engine on a fake batch; its clock moves by what forwards cost."""
    clock = ManualClock()
    settings: Settings = toy_settings(**changes)
    stage = device(clock, costs)
    engine = Engine(
        batch=FakeBatch(stage, settings.max_rows),
        prefiller=FakePrefill(stage, settings.max_rows + 1),
        policy=MemoryGuard(policy),
        settings=settings,
        outputs=OutputProcessor(lambda query: TextStream(NoText(), query.params.stop), ()),
        footprint=FOOTPRINT,
        stamp="fake",
        budget=Budget(settings.kv_bytes, settings.swap_bytes, floor_bytes=320, free_bytes=lambda: 2**50, clock=clock),
        clock=clock,
        sinks=sinks,  # type: ignore[arg-type]
    )
    return RandomBatch(engine, Recorder())


# Verbs


def test_a_segment_goes_in_is_fed_and_comes_out_with_what_it_keeps() -> None:
    stage = device()
    batch = FakeBatch(stage, 2)
    batch.insert(segment("a"))
    stepped = batch.step(3, Feeding.RAGGED)
    assert (stepped.tokens, batch.lens) == ({}, {"a": 3})
    assert batch.step(3, Feeding.RAGGED).tokens == {"a": toy_alone(segment("a").query)[0]}
    assert (batch.columns, batch.bytes_used) == (4, 32)
    out = batch.detach("a")
    assert (out.cached, out.pending, out.bytes, batch.lens, stage.segments) == (4, 1, 32, {}, {})
    batch.insert(out)
    assert (out.cached, out.bytes) == (0, 0), "the batch owns what it was passed"
    assert batch.lens == {"a": 4}
    emptied = batch.detach("a", keep=False)
    assert (emptied.cached, emptied.bytes, emptied.pending, emptied.computed) == (0, 0, 5, 4)
    batch.insert(emptied)
    assert batch.step(ALL_PENDING, Feeding.RAGGED).slots.recomputed == 4


def test_what_cannot_be_is_refused_and_changes_nothing() -> None:
    stage = device()
    batch, prefill = FakeBatch(stage, 1), FakePrefill(stage, 1)
    batch.insert(segment("a"))
    prefill.start(segment("p"))
    foreign, long = replace(segment("b"), stamp="other"), segment("b", 41)
    for place in (batch.insert, prefill.start):
        with pytest.raises(Refused):
            place(segment("b"))
        for bad in (foreign, long, segment("a"), segment("p")):
            with pytest.raises(Refused):
                FakePrefill(stage, 9).start(bad)
    for act in (
        lambda: batch.remove("p"),
        lambda: batch.detach("b"),
        lambda: batch.peek("p"),
        lambda: prefill.take("a"),
        lambda: prefill.advance([Chunk("a", 1)]),
        lambda: prefill.advance([]),
        lambda: batch.resize(0),
        lambda: batch.resize(2),
        lambda: batch.step(0, Feeding.RAGGED),
        lambda: FakeBatch(stage, 1).step(1, Feeding.RAGGED),
    ):
        with pytest.raises(Refused):
            act()
    assert (batch.lens, prefill.lens, prefill.room) == ({"a": 0}, {"p": 0}, 0)


def test_a_forward_that_raises_has_fed_nothing() -> None:
    def trips(tokens: Sequence[int]) -> int:
        raise RuntimeError("device trouble")

    clock = ManualClock()
    stage = FakeDevice(say=trips, costs=COSTS, clock=clock, columns=40, footprint=FOOTPRINT)
    batch = FakeBatch(stage, 2)
    batch.insert(segment("a"))
    with pytest.raises(RuntimeError):
        batch.step(9, Feeding.RAGGED)
    assert (batch.lens, clock()) == ({"a": 0}, 0.0)


def test_a_row_that_is_not_finite_fails_alone() -> None:
    bad = segment("b").tokens
    stage = FakeDevice(
        say=lambda tokens: None if list(tokens) == bad else 5,
        costs=COSTS,
        clock=ManualClock(),
        columns=40,
        footprint=FOOTPRINT,
    )
    batch = FakeBatch(stage, 2)
    batch.insert(segment("a"))
    batch.insert(segment("b"))
    stepped = batch.step(9, Feeding.RAGGED)
    assert (stepped.tokens, set(stepped.failed)) == ({"a": 5}, {"b"})


def test_a_forward_takes_what_the_model_of_costs_says() -> None:
    clock = ManualClock()
    stage = device(clock)
    batch, prefill = FakeBatch(stage, 2), FakePrefill(stage, 2)
    batch.insert(segment("a"))
    prefill.start(segment("p", 10))
    batch.step(9, Feeding.RAGGED, beside={"p": 6})
    assert clock() == pytest.approx(1.0 + 0.2 + 0.01 * 10 + 0.001 * 10)
    prefill.advance([Chunk("p", 4)])
    assert clock() == pytest.approx(1.31 + 1.0 + 0.1 + 0.01 * 4 + 0.001 * 10)


# In an engine


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_runs_to_the_end_on_it(policy: str) -> None:
    dice = random.Random(policy)
    queries = [
        replace(query_of(f"q{i}", prompt_of(dice.randint(1, 20), i), dice.randint(1, 18)), priority=dice.randrange(3))
        for i in range(25)
    ]
    batch = fake_batch(Shaken(POLICIES[policy](), dice))
    batch.run(queries, dice)
    assert all(batch.tokens(query.id) == toy_alone(query) for query in queries)
    engine = batch.engine
    assert (engine.kv_bytes_used, engine.swap_bytes_used, engine.busy) == (0, 0, False)
    assert engine.totals.slots.recomputed > 0, "some were forgotten on the way"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_engine_does_the_same_on_it_as_on_a_batch_that_computes(policy: str) -> None:
    """Iteration by iteration: what was inserted, detached and prefilled, and the slots by kind."""
    dice = random.Random(7)
    queries = [query_of(f"q{i}", prompt_of(dice.randint(1, 20), i), dice.randint(1, 18)) for i in range(20)]
    queries = [replace(query, priority=i % 3, user=str(i % 2)) for i, query in enumerate(queries)]

    def told(random_batch: object) -> list[tuple[object, ...]]:
        events: list[Event] = []
        batch: RandomBatch = random_batch(POLICIES[policy](), sinks=[events.append], max_rows=3)  # type: ignore[operator]
        batch.run(queries, random.Random(1))
        return [
            (e.inserted, e.detached, e.rows, e.prefilled_tokens, e.generated_tokens, e.slots.by_kind(), e.kv_bytes_used)
            for e in events
            if isinstance(e, IterationDone)
        ]

    free = CostModel()
    assert told(lambda *a, **k: fake_batch(*a, costs=free, **k)) == told(toy_batch)


def test_its_seconds_are_what_costs_are_measured_by() -> None:
    batch = fake_batch(Baton(), costs=CostModel(fixed_seconds=1.0, row_seconds=0.5), max_rows=2, prefill_chunk=50)
    queries: list[Query] = [query_of(f"q{i}", prompt_of(4, i), 8) for i in range(2)]
    batch.run(queries)
    costs = batch.engine._costs.costs
    assert costs.step_at(2) == pytest.approx(2.0)
    assert batch.updates["q0"][-1].usage is not None
    assert batch.updates["q0"][-1].usage.decode_seconds == pytest.approx(7 * 2.0)
