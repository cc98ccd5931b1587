"""Steps that begin before the last one is read: a query gives what it gives alone, and every slot is counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from baton.core.events import Event, IterationDone
from baton.core.query import Query
from baton.core.step import Feeding
from baton.cuda import async_stepper as ahead
from baton.cuda.async_stepper import AsyncStepper
from baton.cuda.decode_steps import Steps
from baton.cuda.forward import CudaForward
from baton.cuda.slots import Slot
from baton.kv.rectangle import Rectangle
from baton.kv.segment import arrived
from baton.model.execution import PrefillPlacement
from baton.model.visibility import Span
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from families import model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch, some_queries

# First light's six.
FAMILIES = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")


def run(family: str, queries: list[Query], *, policy: str = "baton", seed: int = 1, **options: object) -> RandomBatch:
    dice = random.Random(seed)
    batch = random_batch(model_of(family), Shaken(POLICIES[policy](), dice), ahead=True, **options)  # type: ignore[arg-type]
    batch.run(queries, dice)
    return batch


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["baton", "orca", "run_to_completion"])
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str, policy: str) -> None:
    queries = some_queries(14, random.Random(3))
    expected = {query.id: alone(family, query)[0] for query in queries}
    batch = run(family, queries, policy=policy)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert batch.engine.kv_bytes_used == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_in_one_forward_with_steps_give_the_same(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [*some_queries(10, random.Random(3)), *(replace(query, id=f"s{query.id}") for query in sampled(8))]
    plain = random_batch(model_of(family), Baton(), native=False)
    plain.run(queries)
    expected = {query.id: plain.tokens(query.id) for query in queries}
    fills: list[set[bool]] = []
    fill = CudaForward.fill

    def counted(self: CudaForward, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> object:
        fills.append({span.count > 1 for span in spans})
        return fill(self, rectangle, spans, tokens)

    monkeypatch.setattr(CudaForward, "fill", counted)
    events: list[Event] = []
    batch = run(family, queries, prompts=PrefillPlacement.FUSED, sinks=[events.append])
    assert {name: batch.tokens(name) for name in expected} == expected
    assert sum(kinds == {True, False} for kinds in fills) > 5
    # The step that was begun ahead when a prompt came was useful: it was read before.
    done = [event.slots for event in events if isinstance(event, IterationDone)]
    useful = sum(slots.useful for slots in done)
    assert useful == sum(len(query.prompt) + len(batch.tokens(query.id)) - 1 for query in queries)
    assert sum(slots.finished_row for slots in done) < 0.2 * useful


def test_the_step_that_runs_is_heard_before_a_prompt_goes_with_the_next() -> None:
    rows = random_batch(model_of("llama"), Baton(), ahead=True, prompts=PrefillPlacement.FUSED).rows
    stepper = rows.stepper
    assert isinstance(stepper, AsyncStepper)
    rows.place(arrived(query_of("a", [5] * 7, 40), "tiny"), range(4))
    rows.feed({"a": 7}, Feeding.RAGGED)
    rows.feed({"a": 1}, Feeding.RAGGED)
    rows.place(arrived(query_of("b", [6] * 20, 40), "tiny"), range(4, 9))
    assert stepper._begun is not None
    heard, *fused = (rows.feed({"a": 1, "b": 10}, Feeding.RAGGED) for _ in range(3))
    assert list(heard.shares) == ["a"] and heard.tokens
    assert [told.shares for told in fused] == [{"a": (1, 0), "b": (10, 0)}] * 2
    assert [sorted(told.tokens) for told in fused] == [["a"], ["a", "b"]]
    assert stepper._begun is None
    both = rows.feed({"a": 1, "b": 1}, Feeding.RAGGED)
    assert len(both.tokens) == 2 and stepper._begun is not None
    # Nothing was computed in vain.
    assert not any(told.slots.finished_row for told in (heard, *fused, both))


def sampled(count: int) -> list[Query]:
    """Queries that draw in every way there is, some of them not on the device."""
    ways: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 0},
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "logprobs": 2},
        {"temperature": 1.0, "top_p": 0.999},
        {"temperature": 0.7, "min_tokens": 6},
    ]
    dice = random.Random(5)
    return [
        query_of(
            f"q{i}", [dice.randrange(3, 160) for _ in range(dice.randint(1, 30))], 20, seed=i, **ways[i % len(ways)]
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("end_ids", [(), tuple(range(3, 20))])
def test_sampled_queries_draw_what_they_draw_step_by_step(end_ids: tuple[int, ...]) -> None:
    """With tokens that end a text, rows end unforeseen."""
    queries = sampled(24)
    if end_ids:
        queries = [query_of(q.id, q.prompt, 20, seed=q.seed, ignore_eos=False, temperature=1.0) for q in queries]
    plain = random_batch(model_of("llama"), Baton(), native=False, end_ids=end_ids)
    plain.run(queries)
    batch = run("llama", queries, end_ids=end_ids)
    assert {q.id: batch.tokens(q.id) for q in queries} == {q.id: plain.tokens(q.id) for q in queries}
    assert {q.id: batch.reason(q.id) for q in queries} == {q.id: plain.reason(q.id) for q in queries}


def test_steps_are_begun_ahead_and_each_slot_of_them_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[tuple[int, bool]] = []
    served: list[int] = []
    launch, collect = Steps.launch, AsyncStepper._collect

    def launching(self: Steps, slots: list[Slot]) -> object:
        launched.append((len(slots), any(slot.token < 0 for slot in slots)))
        return launch(self, slots)

    def collecting(self: AsyncStepper, begun: object, spans: list[Span], *others: object, **more: object) -> None:
        served.append(len(spans))
        collect(self, begun, spans, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Steps, "launch", launching)
    monkeypatch.setattr(AsyncStepper, "_collect", collecting)
    events: list[Event] = []
    # Rows end unforeseen.
    queries = [query_of(f"q{i}", [5 + i] * 7, 40, seed=i, temperature=1.0, ignore_eos=False) for i in range(9)]
    batch = random_batch(model_of("llama"), Baton(), ahead=True, sinks=[events.append], end_ids=tuple(range(3, 20)))
    batch.run(queries)
    slots = [event.slots for event in events if isinstance(event, IterationDone)]
    useful, surplus = sum(one.useful for one in slots), sum(one.finished_row for one in slots)
    generated = sum(len(batch.tokens(query.id)) for query in queries)
    assert useful == sum(len(query.prompt) for query in queries) + generated - len(queries)
    assert sum(following for _, following in launched) > len(launched) / 2
    assert surplus > 0
    # The last step was begun before the last row was known to have ended.
    assert sum(count for count, _ in launched) in (sum(served) + surplus, sum(served) + surplus + launched[-1][0])


def test_a_step_that_does_not_begin_ahead_takes_nothing_from_those_that_were_fed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts have been fed beside, and their first tokens drawn, when memory runs out for the step after."""
    launch, dice, refused = Steps.launch, random.Random(7), 0

    def launching(self: Steps, slots: list[Slot]) -> object:
        nonlocal refused
        if any(slot.token < 0 for slot in slots) and dice.random() < 0.5:
            refused += 1
            raise torch.OutOfMemoryError("no page is left")
        return launch(self, slots)

    monkeypatch.setattr(Steps, "launch", launching)
    queries = some_queries(14, random.Random(3))
    expected = {query.id: alone("llama", query)[0] for query in queries}
    batch = run("llama", queries)
    assert {name: batch.tokens(name) for name in expected} == expected and refused > 20


def test_the_comparison_notices_a_token_fed_back_from_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "follows", lambda slot: -1 - max(slot - 1, 0))
    queries = some_queries(8, random.Random(3))
    expected = {query.id: alone("llama", query)[0] for query in queries}
    batch = run("llama", queries)
    # What does not fit is not taken, unless it is not looked at.
    assert {name: batch.tokens(name) for name in expected} == expected
    monkeypatch.setattr(ahead._Begun, "serves", lambda self, wanted: wanted.place in self.slot_of)
    batch = run("llama", queries)
    assert {name: batch.tokens(name) for name in expected} != expected


@pytest.mark.parametrize("seed", range(4))
def test_a_step_that_cannot_be_launched_loses_no_token(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of prompts that were fed beside it, nor because the step after it was launched already."""
    dice, often = random.Random(seed), random.Random(seed)
    queries = some_queries(14, random.Random(3))
    expected = {query.id: alone("llama", query)[0] for query in queries}
    launch, failed = Steps.launch, 0

    def failing(self: Steps, slots: list[Slot]) -> object:
        nonlocal failed
        if often.random() < 1 / 6:
            failed += 1
            raise MemoryError
        return launch(self, slots)

    monkeypatch.setattr(Steps, "launch", failing)
    batch = random_batch(model_of("llama"), Shaken(Baton(), dice), ahead=True)
    batch.run(queries, dice)
    assert failed > 5
    for name in expected:
        tokens = batch.tokens(name)
        assert tokens == expected[name][: len(tokens)]
        assert len(tokens) == len(expected[name]) or batch.reason(name) == "error"
