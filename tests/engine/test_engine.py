"""The iteration: how queries end, when rows are taken, whose fault is whose, and what is left afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from baton.core.errors import Refused
from baton.core.events import Event, QueryMoved
from baton.core.query import Query, State
from baton.core.text import TextStream
from baton.engine.engine import Engine
from baton.policy.baton import Baton
from baton.policy.port import Chunk, Plan
from baton.policy.run_to_completion import RunToCompletion
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from families import model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch
from toy import BYTES_PER_TOKEN, NAN, Say, hashed, toy_alone, toy_batch
from turns import Scripted, accept, asked, done, ended, is_idle, turn

EVERY_POLICY = pytest.mark.parametrize("policy", sorted(POLICIES))
END = 2


def reserved(engine: Engine) -> int:
    """Bytes to which queries that hold or may still fill memory may grow."""
    grown = (State.PREFILLING, State.READY, State.RUNNING)
    views = [s for state in grown for s in engine.lifecycle.views(state)]
    held = [len(query.prompt) + query.limit_tokens for query in engine.queries.held.values()]
    return sum(view.bytes_reserved for view in views) + sum(held) * BYTES_PER_TOKEN


# How queries end


def count_up(tokens: list[int]) -> int:
    """Says 10, 11, 12, ... from wherever it is."""
    return max(tokens[-1] + 1, 10)


@EVERY_POLICY
@pytest.mark.parametrize(
    ("params", "reason", "tokens"),
    [
        ({}, "stop", [10, 11, 12, 13]),
        ({"ignore_eos": True}, "length", [10, 11, 12, 13, 14, 15]),
        ({"ignore_eos": True, "stop_token_ids": (14, 40)}, "stop", [10, 11, 12, 13, 14]),
        ({"stop_token_ids": (11,)}, "stop", [10, 11]),
        ({"stop": ("<12>",)}, "stop", [10, 11, 12]),
        ({"stop": ("0><1",)}, "stop", [10, 11]),
        ({"stop": ("<99>",), "ignore_eos": True}, "length", [10, 11, 12, 13, 14, 15]),
        ({"min_tokens": 3}, "stop", [10, 11, 12, 13]),
    ],
)
def test_a_query_ends_for_its_reason_and_with_its_tokens(
    policy: str, params: dict[str, Any], reason: str, tokens: list[int]
) -> None:
    told: list[Event] = []
    batch = toy_batch(POLICIES[policy](), say=count_up, end_ids=(13,), sinks=[told.append])
    batch.run([query_of("a", [3, 4, 5], 6, **{"ignore_eos": False, **params})])
    assert (batch.reason("a"), batch.tokens("a")) == (reason, tokens)
    assert ended(told)["a"].usage.generated_tokens == len(tokens)
    assert is_idle(batch.engine)


def test_no_end_is_drawn_before_min_tokens() -> None:
    batch = toy_batch(Baton(), say=lambda tokens: 13, end_ids=(13,))
    batch.run([query_of("a", [3], 6, ignore_eos=False, min_tokens=3)])
    assert batch.reason("a") == "stop"
    assert len(batch.tokens("a")) == 4
    assert 13 not in batch.tokens("a")[:3]


@EVERY_POLICY
def test_a_query_of_one_token_ends_with_its_prefill(policy: str) -> None:
    queries = [asked(f"q{i}", limit=1) for i in range(6)]
    batch = toy_batch(POLICIES[policy]())
    batch.run(queries)
    assert {q.id: batch.tokens(q.id) for q in queries} == {q.id: toy_alone(q) for q in queries}
    assert is_idle(batch.engine)


def test_text_and_usage_come_with_the_last_update() -> None:
    batch = toy_batch(Baton(), say=count_up)
    batch.run([query_of("a", [3, 4], 3)])
    updates = batch.updates["a"]
    assert "".join(update.text for update in updates) == "<10><11><12>"
    assert [update.finish_reason for update in updates] == [None] * (len(updates) - 1) + ["length"]
    usage = updates[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.generated_tokens, usage.useful_slots, usage.idle_slots) == (2, 3, 4, 0)


# Rows are taken at once


def test_a_finished_row_is_free_in_its_iteration_and_taken_in_the_very_next() -> None:
    told: list[Event] = []
    batch = toy_batch(Baton(), sinks=[told.append], max_rows=2, prefill_chunk=50)
    queries = [asked("short", limit=3), asked("long", limit=20), asked("next", limit=4), asked("last", limit=4)]
    accept(batch, *queries)
    while "short" not in ended(told):
        turn(batch)
    assert set(batch.engine.batch.lens) == {"long"}, "its row is free in the iteration in which it ended"
    assert batch.engine.lifecycle.live["next"].state is State.READY, "the next one was prefilled ahead"
    turn(batch)
    assert done(told)[-1].inserted == ("next",)
    assert set(batch.engine.batch.lens) == {"long", "next"}
    assert len(batch.tokens("next")) == 2, "it was fed in the iteration that inserted it"


def test_baton_never_steps_with_a_free_row_while_a_query_is_ready() -> None:
    dice = random.Random(5)
    batch = toy_batch(Baton(), max_rows=3, prefill_chunk=4)
    engine, seen = batch.engine, []
    right = engine.batch.step

    def watched(*args: Any) -> Any:
        free = engine.settings.max_rows - len(engine.batch.lens)
        seen.append((free, engine.lifecycle.count(State.READY)))
        return right(*args)

    engine.batch.step = watched  # type: ignore[method-assign, assignment]
    queries = [asked(f"q{i}", dice.randint(1, 15), dice.randint(1, 12)) for i in range(25)]
    batch.run(queries, dice)
    assert not [free for free, ready in seen if free and ready]
    assert any(ready for _, ready in seen)
    assert any(free for free, _ in seen)
    assert batch.engine.totals.slots.idle == 0


def test_run_to_completion_holds_finished_rows_until_the_longest_is_done() -> None:
    told: list[Event] = []
    batch = toy_batch(RunToCompletion(), sinks=[told.append], max_rows=2)
    accept(batch, asked("short", limit=2), asked("long", limit=7), asked("next", limit=2))
    for at in range(1, 8):
        turn(batch)
        assert set(batch.engine.batch.lens) == {"short", "long"}, "the row is held"
        assert ("short" in ended(told)) == (at >= 2)
        assert batch.engine.lifecycle.live["next"].state is State.WAITING
        assert done(told)[-1].slots.finished_row == (1 if at > 2 else 0)
    assert "long" in ended(told)
    turn(batch)
    assert done(told)[-1].inserted == ("next",)
    assert set(batch.engine.batch.lens) == {"next"}
    turn(batch)
    assert batch.engine.busy, "the last row is held as well"
    turn(batch)
    assert is_idle(batch.engine)
    # short drew its second token in step 2; steps 3 to 7 computed its row for nothing.
    assert batch.engine.totals.slots.finished_row == 5


def test_finished_rows_are_no_longer_held_when_the_policy_stops_asking_for_it() -> None:
    batch = toy_batch(RunToCompletion(), max_rows=2)
    accept(batch, asked("short", limit=1), asked("long", limit=9))
    turn(batch)
    assert set(batch.engine.batch.lens) == {"short", "long"}
    batch.engine._policy = Baton()
    turn(batch)
    assert set(batch.engine.batch.lens) == {"long"}


def test_while_rows_run_an_iteration_prefills_no_more_than_the_chunk() -> None:
    told: list[Event] = []
    batch = toy_batch(Baton(), sinks=[told.append], max_rows=4, prefill_chunk=3)
    accept(batch, asked("a", 2, 30))
    turn(batch)
    accept(batch, *(asked(f"q{i}", 10, 3) for i in range(4)))
    while "q3" not in ended(told):
        turn(batch)
    beside = [event for event in done(told)[1:] if event.kind in ("both", "prefill")]
    assert {event.kind for event in beside} == {"both"}
    assert max(event.prefilled_tokens for event in beside) == 3
    assert sum(event.prefilled_tokens for event in beside) == 40


# Whose fault is whose


def broken_for(*names: str, after: int = 0, how: str = "raise") -> Callable[[list[int]], int]:
    """Fails once a row of these queries has `after` more tokens than its prompt."""
    prompts = [list(asked(name).prompt) for name in names]

    def say(tokens: list[int]) -> int:
        if len(tokens) >= 4 + after and tokens[:4] in prompts:
            if how == "raise":
                raise RuntimeError("device trouble")
            return NAN
        return hashed(tokens)

    return say


def test_a_prefill_that_raises_fails_its_query_alone_also_when_packed_with_others() -> None:
    told: list[Event] = []
    batch = toy_batch(Baton(), say=broken_for("b"), sinks=[told.append], prefill_chunk=50)
    queries = [asked("a"), asked("b"), asked("c")]
    batch.run(queries)
    assert done(told)[0].prefilled_tokens == 8, "all three were in one forward, then two alone"
    assert batch.reason("b") == "error"
    assert "prefill failed" in (batch.updates["b"][-1].error or "")
    for query in (queries[0], queries[2]):
        assert batch.tokens(query.id) == toy_alone(query)
    assert ended(told)["b"].outcome is State.FAILED
    assert is_idle(batch.engine)


def test_a_draw_that_raises_in_a_packed_prefill_fails_its_query_alone() -> None:
    batch = toy_batch(Baton(), prefill_chunk=50)
    queries = [asked("a"), replace(asked("b"), seed=77), asked("c")]
    right = batch.engine.prefiller._rows.feeder.sampler  # type: ignore[attr-defined]

    def trips(logits: torch.Tensor, draws: Sequence[Any]) -> list[int | None]:
        if any(draw.seed == 77 for draw in draws):
            raise RuntimeError("a bad draw")
        return right(logits, draws)

    batch.engine.prefiller._rows.feeder.sampler = trips  # type: ignore[attr-defined]
    batch.run(queries)
    assert batch.reason("b") == "error"
    for query in (queries[0], queries[2]):
        assert batch.tokens(query.id) == toy_alone(query)
    assert is_idle(batch.engine)


def beside_one_that_runs(say: Say, *names: str, told: list[Event] | None = None) -> RandomBatch:
    """A batch in which query "a" runs, and these prompts ride in its next step."""
    batch = toy_batch(Baton(), say=say, prefill_chunk=50, sinks=[] if told is None else [told.append])
    accept(batch, asked("a", limit=12))
    turn(batch)
    accept(batch, *(asked(name) for name in names))
    turn(batch)
    return batch


def test_prompts_beside_running_rows_ride_in_their_step() -> None:
    told: list[Event] = []
    batch = beside_one_that_runs(hashed, "b", "c", told=told)
    calls = batch.engine.batch._rows.feeder.forward.calls  # type: ignore[attr-defined]
    assert calls == {"fill": 2, "decode": 1, "padded": 0}, "a's prefill and first step, then one forward for all three"
    assert (done(told)[-1].kind, done(told)[-1].prefilled_tokens, done(told)[-1].generated_tokens) == ("both", 8, 3)
    turn(batch)
    assert done(told)[-1].inserted == ("b", "c")
    batch.run([])
    assert [batch.tokens(name) for name in "bc"] == [toy_alone(asked(name)) for name in "bc"]
    assert batch.tokens("a") == toy_alone(asked("a", limit=12))


def test_a_prefill_that_raises_in_the_running_rows_step_fails_its_query_alone() -> None:
    batch = beside_one_that_runs(broken_for("b"), "b", "c")
    assert batch.reason("b") == "error"
    assert "prefill failed" in (batch.updates["b"][-1].error or "")
    batch.run([])
    assert batch.tokens("a") == toy_alone(asked("a", limit=12))
    assert batch.tokens("c") == toy_alone(asked("c"))
    assert is_idle(batch.engine)


def test_a_running_row_that_raises_in_a_step_with_prompts_fails_without_them() -> None:
    batch = beside_one_that_runs(broken_for("a", after=2), "b", "c")
    assert batch.reason("a") == "error"
    assert "the step failed" in (batch.updates["a"][-1].error or "")
    batch.run([])
    assert [batch.tokens(name) for name in "bc"] == [toy_alone(asked(name)) for name in "bc"]
    assert is_idle(batch.engine)


def test_a_prompt_that_is_not_finite_in_the_running_rows_step_fails_alone() -> None:
    batch = beside_one_that_runs(broken_for("b", how="nan"), "b", "c")
    assert batch.reason("b") == "error"
    batch.run([])
    assert batch.tokens("a") == toy_alone(asked("a", limit=12))
    assert batch.tokens("c") == toy_alone(asked("c"))
    assert is_idle(batch.engine)


def test_a_prompt_of_one_token_that_ends_in_the_running_rows_step_is_done_with() -> None:
    batch = toy_batch(Baton(), prefill_chunk=50)
    accept(batch, asked("a", limit=12))
    turn(batch)
    accept(batch, asked("b", 1, limit=1))
    turn(batch)
    assert (batch.reason("b"), batch.tokens("b")) == ("length", toy_alone(asked("b", 1, limit=1)))
    batch.run([])
    assert is_idle(batch.engine)


@EVERY_POLICY
@pytest.mark.parametrize("after", [0, 3])
def test_a_row_that_is_not_finite_fails_alone(policy: str, after: int) -> None:
    told: list[Event] = []
    batch = toy_batch(POLICIES[policy](), say=broken_for("b", after=after, how="nan"), sinks=[told.append])
    queries = [asked("a"), asked("b"), asked("c")]
    batch.run(queries)
    assert batch.reason("b") == "error"
    assert batch.tokens("b") == toy_alone(queries[1])[:after]
    assert "not finite" in (batch.updates["b"][-1].error or "")
    for query in (queries[0], queries[2]):
        assert (batch.tokens(query.id), batch.reason(query.id)) == (toy_alone(query), "length")
    assert is_idle(batch.engine)


@pytest.mark.parametrize("when", ["prompt", "answer"])
@EVERY_POLICY
def test_nan_in_a_real_models_row_leaves_its_neighbours_tokens_right(policy: str, when: str) -> None:
    """A token whose embedding is NaN poisons the keys and values of every layer of its row."""
    poison = 77
    dice = random.Random(1)
    clean = [t for t in range(3, 160) if t != poison]
    queries = [query_of(f"q{i}", dice.choices(clean, k=dice.randint(3, 20)), 12, seed=i) for i in range(5)]
    model = model_of("mistral_window")
    expected = [alone(model, query)[0] for query in queries]
    model.get_input_embeddings().weight[poison] = torch.nan
    model.lm_head.weight[poison] = 0.0
    bad = [3, poison, 4] if when == "prompt" else [3, 5, 4]
    bias = {} if when == "prompt" else {"logit_bias": {poison: 100.0}}
    batch = random_batch(model, POLICIES[policy](), rows=3)
    # The bad one comes first, so that others are given its row afterwards.
    batch.run([query_of("bad", bad, 12, seed=99, **bias), *queries])
    assert batch.reason("bad") == "error"
    assert batch.tokens("bad") == ([] if when == "prompt" else [poison])
    for query, tokens in zip(queries, expected, strict=True):
        assert poison not in tokens
        assert batch.tokens(query.id) == tokens
    assert batch.engine.kv_bytes_used == 0


@EVERY_POLICY
def test_a_step_that_raises_fails_those_that_run_and_the_engine_goes_on(policy: str) -> None:
    told: list[Event] = []
    batch = toy_batch(POLICIES[policy](), say=broken_for("b", after=2), sinks=[told.append], max_rows=2)
    queries = [asked("a"), asked("b"), asked("c"), asked("d")]
    batch.run(queries)
    assert [batch.reason(query.id) for query in queries] == ["error", "error", "length", "length"]
    assert "the step failed: RuntimeError" in (batch.updates["a"][-1].error or "")
    for query in queries[2:]:
        assert batch.tokens(query.id) == toy_alone(query)
    assert batch.engine.lifecycle.ended[State.FAILED] == 2
    assert is_idle(batch.engine)


def test_a_decoder_that_raises_fails_its_query_alone() -> None:
    class Trips:
        def step(self, token_id: int) -> str:
            raise ValueError("no such token")

        def flush(self) -> str:
            return ""

    def text_of(query: Query) -> TextStream:
        return TextStream(Trips() if query.id == "b" else Crowdless(), query.params.stop)

    batch = toy_batch(Baton(), text_of=text_of)
    queries = [asked("a"), asked("b"), asked("c")]
    batch.run(queries)
    assert batch.reason("b") == "error"
    assert "its text could not be made" in (batch.updates["b"][-1].error or "")
    assert batch.tokens("a") == toy_alone(queries[0])
    assert is_idle(batch.engine)


class Crowdless:
    """A decoder that says nothing."""

    def step(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def test_a_query_whose_text_cannot_even_begin_is_not_taken_at_all() -> None:
    def text_of(query: Query) -> TextStream:
        if query.id == "b":
            raise ValueError("no decoder")
        return TextStream(Crowdless())

    batch = toy_batch(Baton(), text_of=text_of)
    accept(batch, asked("a"))
    with pytest.raises(ValueError, match="no decoder"):
        accept(batch, asked("b"))
    assert set(batch.engine.lifecycle.live) == {"a"}
    assert batch.engine.lifecycle.submitted == 1
    batch.run([])
    assert batch.reason("a") == "length"
    assert is_idle(batch.engine)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(prefill=(Chunk("a", 4), Chunk("b", 4), Chunk("c", 4)), why="more than the prefiller has room for"),
        Plan(insert=("a", "b"), why="more than there are rows"),
        Plan(prefill=(Chunk("a", 1),), insert=("a",), why="not prefilled yet"),
        Plan(resize=9),
        Plan(detach=("a",)),
        Plan(insert=("nobody",), prefill=(Chunk("nobody", 1),)),
    ],
)
def test_a_plan_that_cannot_be_carried_out_raises_and_all_can_be_failed_afterwards(plan: Plan) -> None:
    batch = toy_batch(Scripted([plan]), max_rows=1)
    accept(batch, asked("a"), asked("b"), asked("c"))
    with pytest.raises((Refused, KeyError)):
        turn(batch)
    batch.engine.fail_all("internal error")
    batch.engine.flush()
    assert {batch.reason(name) for name in "abc"} == {"error"}
    assert is_idle(batch.engine)
    batch.engine._policy = Baton()
    batch.run([asked("d")])
    assert batch.tokens("d") == toy_alone(asked("d"))


# Cancelled, expired, failed: wherever a query is, it leaves nothing over


def brought_to(state: State, batch: RandomBatch, name: str) -> None:
    """Brings the first query to this state, with a neighbour that runs."""
    plans = {
        State.WAITING: [],
        State.PREFILLING: [Plan(prefill=(Chunk(name, 2),))],
        State.READY: [Plan(prefill=(Chunk(name, 4),))],
        State.RUNNING: [Plan(prefill=(Chunk(name, 4),)), Plan(insert=(name,))],
    }[state]
    batch.engine._policy = Scripted([Plan(insert=("neighbour",), feed=9), *plans])
    for _ in range(len(plans) + 1):
        turn(batch)
    assert batch.engine.lifecycle.live[name].state is state


@pytest.mark.parametrize("how", ["cancel", "expire", "fail"])
@pytest.mark.parametrize(
    ("state", "detached"), [*((state, False) for state in State if state.live), (State.READY, True)]
)
def test_in_every_state_a_query_that_leaves_frees_its_row_and_bytes_at_once(
    state: State, detached: bool, how: str
) -> None:
    clock = ManualClock()
    batch = toy_batch(Baton(), clock=clock)
    neighbour = asked("neighbour", limit=20)
    accept(batch, neighbour, replace(asked("a"), deadline=5.0))
    if detached:
        brought_to(State.RUNNING, batch, "a")
        batch.engine._policy = Scripted([Plan(detach=("a",))])
        turn(batch)
        assert "a" in batch.engine.queries.pool
    else:
        brought_to(state, batch, "a")
    engine = batch.engine
    if how == "cancel":
        engine.cancel("a")
    elif how == "expire":
        clock.advance(5.0)
        engine._expire()
        assert "a" in engine.lifecycle.live, "a deadline is not past before its time"
        clock.advance(0.1)
        engine._expire()
    else:
        engine.queries.end("a", State.FAILED, "error", "test")
    assert "a" not in engine.lifecycle.live
    assert set(engine.batch.lens) == {"neighbour"}
    assert not engine.prefiller.lens
    assert not len(engine.queries.pool)
    assert engine.kv_bytes_used == engine.batch.lens["neighbour"] * BYTES_PER_TOKEN
    engine.cancel("a")
    engine.flush()
    reason = {"cancel": "cancelled", "expire": "expired", "fail": "error"}[how]
    assert [update.finish_reason for update in batch.updates["a"] if update.finish_reason] == [reason]
    engine._policy = Baton()
    batch.run([])
    assert batch.tokens("neighbour") == toy_alone(neighbour)
    assert is_idle(engine)


def test_a_deadline_at_time_zero_is_a_deadline() -> None:
    clock = ManualClock(1.0)
    batch = toy_batch(Baton(), clock=clock)
    accept(batch, replace(asked("a"), deadline=0.0))
    turn(batch)
    assert batch.engine.lifecycle.ended[State.EXPIRED] == 1
    assert "deadline" in (batch.updates["a"][-1].error or "")


def test_a_query_with_a_deadline_that_is_met_finishes() -> None:
    batch = toy_batch(Baton())
    batch.run([replace(asked("a"), deadline=1e9)])
    assert batch.reason("a") == "length"


# Budget


@EVERY_POLICY
def test_never_is_more_reserved_than_the_budget(policy: str) -> None:
    dice = random.Random(3)
    budget = 60 * BYTES_PER_TOKEN
    batch = toy_batch(POLICIES[policy](), kv_bytes=budget, max_rows=6)
    queries = [asked(f"q{i}", dice.randint(1, 20), dice.randint(1, 18)) for i in range(20)]
    engine, most = batch.engine, 0
    right = engine.batch.step

    def watched(*args: Any) -> Any:
        nonlocal most
        most = max(most, reserved(engine))
        assert engine.kv_bytes_used <= reserved(engine)
        return right(*args)

    engine.batch.step = watched  # type: ignore[method-assign, assignment]
    batch.run(queries, dice)
    assert budget / 2 < most <= budget
    assert all(batch.tokens(query.id) == toy_alone(query) for query in queries)
    assert is_idle(engine)


def test_what_a_policy_sees_is_left_of_the_budget_counts_held_rows_and_all_that_may_still_grow() -> None:
    hold = Plan(insert=("short", "long"), feed=9, hold_finished=True)
    policy = Scripted([hold, Plan(prefill=(Chunk("half", 2),), hold_finished=True)])
    batch = toy_batch(policy, kv_bytes=100 * BYTES_PER_TOKEN)
    accept(batch, asked("short", 4, 1), asked("long", 4, 9), asked("half", 4, 3), asked("waits", 4, 9))
    for _ in range(3):
        turn(batch)
    seen = [view.bytes_left // BYTES_PER_TOKEN for view in policy.views]
    assert seen == [100, 100 - 5 - 13, 100 - 5 - 13 - 7]
    assert [view.held_rows for view in policy.views] == [0, 1, 1]


# Events


def test_what_happened_is_told_once_each_and_in_order() -> None:
    told: list[Event] = []
    batch = toy_batch(Baton(), sinks=[told.append], max_rows=1, prefill_chunk=50)
    batch.run([asked("a", 3, 3), asked("b", 5, 2)])
    moves = [(event.query_id, event.was, event.now) for event in told if isinstance(event, QueryMoved)]
    w, p, r, x, f = State.WAITING, State.PREFILLING, State.READY, State.RUNNING, State.FINISHED
    for name in "ab":
        assert [(was, now) for query_id, was, now in moves if query_id == name] == [
            (None, w),
            (w, p),
            (p, r),
            (r, x),
            (x, f),
        ]
    iterations = done(told)
    assert [event.index for event in iterations] == list(range(1, len(iterations) + 1))
    assert [event.kind for event in iterations] == ["both", "decode", "decode"]
    assert [event.generated_tokens for event in iterations] == [3, 1, 1]
    assert [event.inserted for event in iterations] == [("a",), (), ("b",)]
    assert [event.prefilled_tokens for event in iterations] == [8, 0, 0]


def test_totals_are_the_sums_of_what_iterations_told() -> None:
    told: list[Event] = []
    dice = random.Random(8)
    batch = toy_batch(Shaken(Baton(), dice), sinks=[told.append], prefill_chunk=4)
    queries = [asked(f"q{i}", dice.randint(1, 12), dice.randint(1, 10)) for i in range(12)]
    batch.run(queries, dice)
    iterations, totals = done(told), batch.engine.totals
    assert totals.iterations == len(iterations)
    assert totals.generated_tokens == sum(event.generated_tokens for event in iterations)
    assert totals.generated_tokens == sum(query.limit_tokens for query in queries)
    assert totals.prompt_tokens == sum(len(query.prompt) for query in queries)
    assert totals.insertions == sum(len(event.inserted) for event in iterations)
    for kind, count in totals.slots.by_kind().items():
        assert count == sum(event.slots.by_kind()[kind] for event in iterations)
    assert totals.slots.recomputed > 0
    # Each token but a query's last is needed exactly once.
    assert totals.slots.useful == sum(len(query.prompt) + query.limit_tokens - 1 for query in queries)
    usages = [event.usage for event in ended(told).values()]
    assert sum(usage.useful_slots for usage in usages) == totals.slots.useful
    assert sum(usage.idle_slots for usage in usages) == totals.slots.idle
    assert sum(usage.preemptions for usage in usages) == batch.engine.lifecycle.preemptions > 0
