"""An abort ends a query wherever it is, at once, once, and harms no other query."""

from __future__ import annotations

import threading

import pytest

from baton.core.clock import monotonic
from baton.core.query import State
from baton.engine.loop import EngineLoop
from baton.policy.baton import Baton
from engine.test_loop import PATIENCE_SECONDS, Asker
from engine.test_time_limits import WAYS, asked, brought, settle
from toy import hashed, toy_alone, toy_batch


@pytest.mark.parametrize("way", WAYS)
def test_an_abort_takes_a_query_from_every_state_and_may_come_twice(way: str) -> None:
    batch, _ = brought(way)
    engine = batch.engine
    for _ in range(2):
        engine.cancel("a")
        assert "a" not in engine.lifecycle.live, "before anything else happens"
        assert {*engine.batch.lens, *engine.prefiller.lens} == {"neighbour"} and "a" not in engine.queries.pool
    engine.flush()
    engine.cancel("a")
    engine.flush()
    assert [update.finish_reason for update in batch.updates["a"] if update.finish_reason] == ["cancelled"]
    assert engine.lifecycle.ended[State.CANCELLED] == 1
    settle(batch)


def test_an_abort_of_what_just_finished_changes_nothing() -> None:
    batch = toy_batch(Baton())
    engine = batch.engine
    engine.accept(asked("a", limit=3), batch.hear)
    while engine.busy:
        engine.iterate()
    assert not batch.updates, "it has finished and nobody has heard of it"
    engine.cancel("a")
    engine.flush()
    assert batch.reason("a") == "length" and batch.tokens("a") == toy_alone(asked("a", limit=3))
    assert engine.lifecycle.ended[State.CANCELLED] == 0


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_an_abort_takes_effect_within_one_iteration(after: int) -> None:
    """The engine is held inside a forward, the abort comes, the forward goes on: no other has the query in it."""
    held, goes_on = threading.Event(), threading.Event()
    asks: list[int] = []
    prompt = list(asked("a").prompt)

    def say(tokens: list[int]) -> int:
        if tokens[: len(prompt)] == prompt:
            asks.append(len(tokens))
            if len(asks) == after:
                held.set()
                assert goes_on.wait(PATIENCE_SECONDS)
        return hashed(tokens)

    loop, asker = EngineLoop(toy_batch(Baton(), say=say, clock=monotonic).engine, monotonic), Asker()
    loop.submit([asked("a", limit=30), asked("neighbour")], asker)
    assert held.wait(PATIENCE_SECONDS)
    loop.cancel(["a", "a"])
    goes_on.set()
    asker.wait_for("a", "neighbour")
    loop.close()
    assert asker.reasons == {"a": "cancelled", "neighbour": "length"}
    # Behind the prompt's own forward comes the same iteration's step.
    assert len(asks) == max(after, 2)
    assert asker.tokens["neighbour"] == toy_alone(asked("neighbour"))
