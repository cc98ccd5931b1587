"""Prompts computed beside steps, for however long that takes: every query gives what it gives alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from baton.batch.rows import Rows
from baton.core.errors import Refused
from baton.core.events import Event, IterationDone
from baton.core.query import Query
from baton.core.step import Feeding
from baton.cuda import placement
from baton.cuda.forward import CudaForward
from baton.cuda.prefill_stream import PrefillStreamStepper
from baton.engine.costs import CostMeter
from baton.kv.segment import arrived
from baton.model.execution import WHERE, PrefillPlacement
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from delayed import DelayedStream
from families import model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch, some_queries

# First light's six.
FAMILIES = ("llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe")


def batch_beside(family: str, side: DelayedStream, dice: random.Random | None = None, **options: Any) -> RandomBatch:
    policy = Baton() if dice is None else Shaken(Baton(), dice)
    return random_batch(model_of(family), policy, ahead=True, side=lambda _: side, **options)


@pytest.mark.parametrize(("seed", "family"), enumerate(FAMILIES))
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str, seed: int) -> None:
    queries = some_queries(14, random.Random(3))
    expected = {query.id: alone(family, query)[0] for query in queries}
    dice = random.Random(seed)
    side = DelayedStream(dice)
    batch = batch_beside(family, side, dice)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert batch.engine.kv_bytes_used == 0
    assert side.flights > 10


@pytest.mark.parametrize("seed", range(3))
def test_stored_prefixes_are_those_of_rows_that_were_not_in_flight(seed: int) -> None:
    dice = random.Random(seed)
    begin = [dice.randrange(3, 160) for _ in range(40)]
    queries = [
        query_of(f"q{i}", begin[: dice.randint(1, 40)] + [5 + i] * dice.randint(1, 20), 12, seed=i) for i in range(16)
    ]
    expected = {query.id: alone("llama", query)[0] for query in queries}
    batch = batch_beside("llama", DelayedStream(dice), dice, prefix_cache=True, prefix_block=8)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert batch.engine.lifecycle.prefix_cached_tokens > 0


def test_sampled_queries_draw_what_they_draw_step_by_step() -> None:
    ways: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0, "repetition_penalty": 1.2},
        {"temperature": 1.0, "logprobs": 2, "prompt_logprobs": 1},
    ]
    dice = random.Random(5)
    queries = [
        query_of(f"q{i}", [dice.randrange(3, 160) for _ in range(dice.randint(1, 30))], 20, seed=i, **ways[i % 4])
        for i in range(16)
    ]
    plain = random_batch(model_of("llama"), Baton(), native=False)
    plain.run(queries)
    batch = batch_beside("llama", DelayedStream(dice), dice)
    batch.run(queries, dice)
    assert {q.id: batch.tokens(q.id) for q in queries} == {q.id: plain.tokens(q.id) for q in queries}
    for query in queries:
        told, expected = ([len(u.prompt_logprobs) for u in some.updates[query.id]] for some in (batch, plain))
        assert sum(told) == sum(expected)


@pytest.mark.parametrize("seed", range(3))
def test_queries_that_leave_in_the_middle_of_their_prompt_harm_nobody(seed: int) -> None:
    dice = random.Random(seed)
    queries = some_queries(20, dice)
    expected = {query.id: alone("gemma3", query)[0] for query in queries}
    side = DelayedStream(dice, longest=8)
    batch = batch_beside("gemma3", side, dice)
    left: set[str] = set()
    rows = batch.rows
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    in_flight = 0
    for query in queries:
        batch.engine.accept(query, batch.hear)
    while batch.engine.busy:
        batch.engine.iterate()
        batch.engine.flush()
        if dice.random() < 0.2 and len(left) < 10:
            flying = (
                []
                if stepper._in_flight is None
                else [rows._row_states[row].query.id for row in stepper._in_flight.rows]
            )
            name = dice.choice(flying or list(batch.engine.lifecycle.live) or [""])
            in_flight += name in flying
            batch.engine.cancel(name)
            left.add(name)
    assert in_flight > 3
    for name in expected.keys() - left:
        assert batch.tokens(name) == expected[name]
    for name in left & expected.keys():
        assert batch.tokens(name) == expected[name][: len(batch.tokens(name))]


class Trouble:
    """Memory runs out after, or before, one call in so many."""

    def __init__(self, right: Callable[..., Any], dice: random.Random, often: int, *, before: bool) -> None:
        self.times = 0
        self._right, self._dice, self._often, self._before = right, dice, often, before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = None if self._before else self._right(*args, **kwargs)
        if self._dice.random() < 1 / self._often:
            self.times += 1
            raise MemoryError
        return self._right(*args, **kwargs) if self._before else result


@pytest.mark.parametrize("where", ["fill", "sample", "step"])
@pytest.mark.parametrize(("seed", "family"), enumerate(["llama", "gemma3"]))
def test_what_fails_is_repeated_and_gives_the_same(
    where: str, seed: int, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is launched, while it runs, while the next token is drawn from it, or in a step beside it."""
    dice = random.Random(seed)
    queries = some_queries(16, dice)
    expected = {query.id: alone(family, query)[0] for query in queries}
    side = DelayedStream(dice)
    batch = batch_beside(family, side, dice)
    rows = batch.rows
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    owner: Any = {"fill": rows.feeder.forward, "sample": rows.feeder, "step": stepper._steps}[where]
    name = {"fill": "fill", "sample": "sampler", "step": "launch"}[where]
    # A sampler is not asked for what steps draw.
    trouble = Trouble(getattr(owner, name), dice, 2 if where == "sample" else 5, before=where == "step")
    monkeypatch.setattr(owner, name, trouble)
    batch.run(queries, dice)
    assert trouble.times > 2 and side.flights > 10
    whole = {name for name in expected if batch.reason(name) == "length"}
    assert len(whole) > 12
    assert {name: batch.tokens(name) for name in whole} == {name: expected[name] for name in whole}
    for name in expected.keys() - whole:
        # Three times in a row, by itself.
        assert batch.tokens(name) == expected[name][: len(batch.tokens(name))]
    assert batch.engine.kv_bytes_used == 0


def placed(rows: Rows, query: Query, among: range) -> Query:
    rows.place(arrived(query, "tiny"), among)
    return query


def begun(side: DelayedStream) -> tuple[Rows, Query, Query]:
    """One that decodes, and one whose prompt is in flight."""
    rows = batch_beside("llama", side).rows
    assert rows is not None
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    short = placed(rows, query_of("short", [7], 30), range(4))
    long = placed(rows, query_of("long", range(3, 43), 5), range(4, 9))
    rows.feed({"short": 1}, Feeding.RAGGED)
    told = rows.feed({"short": 1, "long": 40}, Feeding.RAGGED)
    assert list(told.shares) == ["short"] and told.beside and stepper._in_flight is not None
    return rows, short, long


class Never(random.Random):
    """Dice that put everything off as long as they can."""

    def randint(self, low: int, high: int) -> int:
        return high

    def random(self) -> float:
        return 1.0


def test_rows_in_flight_are_fed_nothing_until_it_is_done() -> None:
    rows, *_ = begun(DelayedStream(Never(), longest=3))
    lens = rows.lens(range(9))
    assert lens["long"] == 0
    for _ in range(2):
        told = rows.feed({"short": 1, "long": 40}, Feeding.RAGGED)
        assert list(told.tokens) == ["short"] and told.fill_seconds is None and told.beside
    told = rows.feed({"short": 1, "long": 40}, Feeding.RAGGED)
    assert set(told.tokens) == {"short", "long"} and told.shares["long"] == (40, 0)
    assert told.fill_seconds == 0.25
    assert rows.lens(range(9))["long"] == 40


def test_where_there_is_nothing_else_to_feed_it_is_waited_for() -> None:
    rows, *_ = begun(DelayedStream(Never(), longest=1000))
    told = rows.feed({"long": 40}, Feeding.RAGGED)
    assert list(told.tokens) == ["long"] and told.fill_seconds == 0.25


@pytest.mark.parametrize("verb", ["drop", "lift", "lift copied", "pack"])
def test_a_row_that_is_taken_away_ends_its_flight_and_nothing_came_of_it(verb: str) -> None:
    rows, _, long = begun(DelayedStream(Never(), longest=1000))
    if verb == "drop":
        rows.drop("long")
    elif verb == "pack":
        rows.pack(range(4, 9), 4)
    else:
        segment = rows.lift("long", copy="copied" in verb)
        assert (segment.cached, segment.tokens) == (0, list(long.prompt))
        segment.release()
    assert rows.stepper._in_flight is None  # type: ignore[attr-defined]
    # Its slots are counted as computed in vain, and its place is as good as new.
    told = rows.feed({"short": 1}, Feeding.RAGGED)
    assert told.slots.finished_row >= 40 and not told.beside
    if verb != "pack":
        placed(rows, query_of("other", range(60, 90), 3), range(4, 9))
        rows.drop("short")
        told = rows.feed({"other": 30}, Feeding.RAGGED)
        assert told.tokens["other"] == alone("llama", query_of("other", range(60, 90), 3))[0][0]


def test_a_refused_verb_leaves_a_flight_alone() -> None:
    rows, *_ = begun(DelayedStream(Never(), longest=1000))
    with pytest.raises(Refused):
        rows.drop("nobody")
    rows.pack(range(4), 2)
    rows.drop("short")
    assert rows.stepper._in_flight is not None  # type: ignore[attr-defined]


def test_orcas_prompts_are_in_the_iteration() -> None:
    side = DelayedStream(random.Random(1))
    batch = random_batch(model_of("llama"), Orca(), ahead=True, side=lambda _: side)
    queries = some_queries(8, random.Random(3))
    batch.run(queries, random.Random(1))
    assert side.flights == 0
    assert all(batch.tokens(query.id) == alone("llama", query)[0] for query in queries)


def test_fills_cost_what_they_took_by_themselves_and_steps_beside_them_tell_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that stands still, everything else takes no time."""
    fills: list[tuple[int, float]] = []
    steps: list[int] = []
    monkeypatch.setattr(CostMeter, "filled", lambda self, tokens, columns, seconds: fills.append((tokens, seconds)))
    monkeypatch.setattr(CostMeter, "stepped", lambda self, seconds, rows: steps.append(rows))
    side = DelayedStream(random.Random(2), longest=6, seconds=0.25)
    queries = [query_of(f"q{i}", range(3, 43), 20 + 5 * i, seed=i) for i in range(8)]
    events: list[Event] = []
    batch = batch_beside("llama", side, chunk=20, sinks=[events.append])
    batch.run(queries, random.Random(1))
    assert sum(seconds == 0.25 for _, seconds in fills) == side.flights > 5
    assert sum(tokens for tokens, _ in fills) == sum(len(query.prompt) for query in queries)
    done = [event for event in events if isinstance(event, IterationDone)]
    assert sum(event.prefilled_tokens for event in done) == sum(len(query.prompt) for query in queries)
    assert sum(event.slots.useful for event in done) == sum(len(q.prompt) + q.limit_tokens - 1 for q in queries)
    alone = [event for event in done if event.generated_tokens and not event.prefilled_tokens]
    assert 0 < len(steps) < len(alone)


def test_the_measurement_leaves_nothing_behind() -> None:
    side = DelayedStream(random.Random(1))
    batch = batch_beside("llama", side)
    rows = batch.rows
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    gains = placement.gains(rows, stepper, range(4), range(4, 9))
    assert gains.keys() == {PrefillPlacement.SIDE_STREAM, PrefillPlacement.FUSED} and min(gains.values()) > 0
    assert side.flights == 4 and stepper.placement is PrefillPlacement.SIDE_STREAM and not rows._row_of
    assert rows.rectangle.lens == [0] * 9
    queries = some_queries(8, random.Random(3))
    batch.run(queries, random.Random(1))
    assert all(batch.tokens(query.id) == alone("llama", query)[0] for query in queries)


def test_what_was_measured_decides_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch_beside("llama", DelayedStream(random.Random(1))).rows
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    forward = rows.feeder.forward
    assert isinstance(forward, CudaForward)
    measured = (
        (1.25, 1.1, "on a stream of their own"),
        (0.9, 1.1, "in one forward with a step"),
        (0.9, 0.8, "behind steps"),
    )
    for beside, fused, words in measured:
        gains = {PrefillPlacement.SIDE_STREAM: beside, PrefillPlacement.FUSED: fused}
        monkeypatch.setattr(placement, "gains", lambda *_, gains=gains: gains)
        forward.gains = None
        how = placement.fastest(rows, stepper, forward, 4)
        assert how is forward.placement and WHERE[how] == words
        figures = f"measured: on a stream of their own {beside:.2f}x, in one forward with a step {fused:.2f}x"
        assert f"prompts {words} ({figures})" in forward.parts()
    # Once for a model.
    monkeypatch.setattr(placement, "gains", lambda *_: {PrefillPlacement.SIDE_STREAM: 2.0})
    assert placement.fastest(rows, stepper, forward, 4) is PrefillPlacement.AFTER_DECODE


def test_a_measurement_that_fails_leaves_prompts_behind_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = batch_beside("llama", DelayedStream(random.Random(1))).rows
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    forward = rows.feeder.forward
    assert isinstance(forward, CudaForward)
    right = forward.fill
    monkeypatch.setattr(forward, "fill", Trouble(right, random.Random(1), 1, before=True))
    assert placement.fastest(rows, stepper, forward, 4) is PrefillPlacement.AFTER_DECODE
    assert not rows._row_of and stepper._in_flight is None and rows.rectangle.lens == [0] * 9
