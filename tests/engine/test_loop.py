"""The engine's thread: queries from other threads, the bounded queue, draining, closing, failures that it survives."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from baton.core.clock import Clock, monotonic
from baton.core.errors import ContextLengthExceeded, EngineUnhealthy, QueueFull, ShuttingDown
from baton.core.events import Event, QueryRejected, Update
from baton.core.query import Query
from baton.core.text import TextStream
from baton.engine.inbox import Inbox
from baton.engine.loop import EngineLoop
from baton.kv.parcel import resumed
from baton.policy.baton import Baton
from baton.policy.port import Plan, Policy, View
from baton.policy.table import POLICIES
from baton.testing.clock import ManualClock
from random_batch import NoText, query_of
from toy import STAMP, hashed, prompt_of, toy_alone, toy_batch

PATIENCE_SECONDS = 20.0
"""How long a test waits for what should come at once."""


def asked(name: str, prompt_tokens: int = 4, limit: int = 6) -> Query:
    return query_of(name, prompt_of(prompt_tokens, seed=sum(name.encode())), limit)


class Asker:
    """One listener: gathers what it hears."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        self.tokens: dict[str, list[int]] = {}
        self.reasons: dict[str, str] = {}
        self.errors: dict[str, str | None] = {}

    def __call__(self, updates: list[Update]) -> None:
        self._inbox.put(updates)

    def wait_for(self, *names: str) -> None:
        """Returns when each of these has ended."""
        while not set(names) <= set(self.reasons):
            for update in self._inbox.get(timeout=PATIENCE_SECONDS):
                self.tokens.setdefault(update.query_id, []).extend(update.token_ids)
                if update.finish_reason is not None:
                    self.reasons[update.query_id] = update.finish_reason
                    self.errors[update.query_id] = update.error

    def wait_for_news(self) -> None:
        for update in self._inbox.get(timeout=PATIENCE_SECONDS):
            self.tokens.setdefault(update.query_id, []).extend(update.token_ids)


class Gate:
    """A model that says nothing until it is let: the engine's thread waits inside its forward."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, tokens: list[int]) -> int:
        self.reached.set()
        assert self.open.wait(PATIENCE_SECONDS)
        return hashed(tokens)


class Trips:
    """A policy that raises in these of its plans, counted from 0, and else plans as baton does."""

    def __init__(self, *when: int) -> None:
        self.when = set(when)
        self.plans = 0

    def plan(self, view: View) -> Plan:
        self.plans += 1
        if self.plans - 1 in self.when:
            raise ArithmeticError("a plan that went wrong at /some/path")
        return Baton().plan(view)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


Opens = Callable[..., EngineLoop]


@pytest.fixture
def open_loop() -> Iterator[Opens]:
    """Opens loops on toy engines and closes them when the test is over."""
    opened: list[EngineLoop] = []

    def opens(
        policy: Policy | None = None, *, clock: Clock = monotonic, sinks: Sequence[Any] = (), **kwargs: Any
    ) -> EngineLoop:
        engine = toy_batch(policy or Baton(), clock=clock, sinks=sinks, **kwargs).engine
        opened.append(EngineLoop(engine, clock, sinks))
        return opened[-1]

    yield opens
    for loop in opened:
        loop.close()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_queries_from_many_threads_are_all_answered_right(policy: str, open_loop: Opens) -> None:
    loop = open_loop(POLICIES[policy]())
    askers = [Asker() for _ in range(4)]
    queries = [[asked(f"t{t}q{i}", 1 + i, 2 + t) for i in range(5)] for t in range(4)]

    def ask(t: int) -> None:
        for query in queries[t]:
            loop.submit([query], askers[t])
        askers[t].wait_for(*(query.id for query in queries[t]))

    threads = [threading.Thread(target=ask, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    for t in range(4):
        for query in queries[t]:
            assert askers[t].tokens[query.id] == toy_alone(query)
            assert askers[t].reasons[query.id] == "length"
    assert loop.drain(PATIENCE_SECONDS)
    stats = loop.stats()
    assert (stats.running, stats.waiting, stats.prefilling, stats.ready, stats.kv_bytes_used) == (0, 0, 0, 0, 0)
    assert stats.outcomes["finished"] == 20
    assert stats.generated_tokens == sum(query.limit_tokens for some in queries for query in some)


def test_a_cancel_from_another_thread_ends_the_query_and_not_its_neighbour(open_loop: Opens) -> None:
    gate = Gate()
    loop, asker = open_loop(say=gate), Asker()
    loop.submit([asked("a", limit=30), asked("b")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    loop.cancel(["a"])
    loop.cancel(["a", "nobody"])
    gate.open.set()
    asker.wait_for("a", "b")
    assert asker.reasons == {"a": "cancelled", "b": "length"}
    assert asker.tokens["b"] == toy_alone(asked("b"))
    assert len(asker.tokens["a"]) < 30
    assert loop.drain(PATIENCE_SECONDS)
    assert loop.stats().kv_bytes_used == 0


def test_a_query_cancelled_before_the_engine_saw_it_never_runs(open_loop: Opens) -> None:
    gate = Gate()
    loop, asker = open_loop(say=gate), Asker()
    loop.submit([asked("first")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    loop.submit([asked("a")], asker)
    loop.cancel(["a"])
    gate.open.set()
    asker.wait_for("first", "a")
    assert (asker.reasons["a"], asker.tokens["a"]) == ("cancelled", [])


def test_a_full_queue_takes_all_of_a_call_or_nothing(open_loop: Opens) -> None:
    gate, told = Gate(), list[Event]()
    loop, asker = open_loop(say=gate, sinks=[told.append], max_rows=1, max_waiting=2), Asker()
    loop.submit([asked("a")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    # One row and two places to wait: a has the row, or will have it.
    with pytest.raises(QueueFull, match="--max-waiting"):
        loop.submit([asked("b"), asked("c"), asked("d")], asker)
    loop.submit([asked("b"), asked("c")], asker)
    with pytest.raises(QueueFull):
        loop.submit([asked("e")], asker)
    assert "are waiting" in (loop.not_ready() or "")
    gate.open.set()
    asker.wait_for("a", "b", "c")
    assert set(asker.reasons) == {"a", "b", "c"}
    rejected = [event for event in told if isinstance(event, QueryRejected)]
    assert [event.reason for event in rejected] == ["queue_full"] * 4
    assert loop.not_ready() is None
    loop.submit([asked("e")], asker)
    asker.wait_for("e")


def test_a_drain_lets_the_live_ones_finish_and_admits_nobody(open_loop: Opens) -> None:
    gate, told = Gate(), list[Event]()
    loop, asker = open_loop(say=gate, sinks=[told.append]), Asker()
    loop.submit([asked("a"), asked("b")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    ended: list[bool] = []
    drain = threading.Thread(target=lambda: ended.append(loop.drain(PATIENCE_SECONDS)))
    drain.start()
    until(lambda: loop.not_ready() is not None)
    assert "shutting down" in (loop.not_ready() or "")
    with pytest.raises(ShuttingDown):
        loop.submit([asked("c")], asker)
    assert [event.reason for event in told if isinstance(event, QueryRejected)] == ["shutting_down"]
    gate.open.set()
    drain.join(PATIENCE_SECONDS)
    assert ended == [True]
    asker.wait_for("a", "b")
    assert asker.reasons == {"a": "length", "b": "length"}


def test_a_drain_whose_time_is_over_cancels_what_is_left(open_loop: Opens) -> None:
    gate = Gate()
    loop, asker = open_loop(say=gate), Asker()
    loop.submit([asked("a", limit=30)], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    ended: list[bool] = []
    drain = threading.Thread(target=lambda: ended.append(loop.drain(0.0)))
    drain.start()
    until(lambda: loop._cut)
    gate.open.set()
    drain.join(PATIENCE_SECONDS)
    assert ended == [False]
    asker.wait_for("a")
    assert asker.reasons == {"a": "cancelled"}


def test_an_idle_engine_drains_at_once(open_loop: Opens) -> None:
    assert open_loop().drain(0.0)


def test_whoever_waits_when_the_engine_is_closed_hears_an_end(open_loop: Opens) -> None:
    gate = Gate()
    loop, asker = open_loop(say=gate, max_rows=1), Asker()
    loop.submit([asked("a", limit=30), asked("b")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    closes = threading.Thread(target=loop.close)
    closes.start()
    until(lambda: loop._stopping)
    with pytest.raises(ShuttingDown):
        loop.submit([asked("c")], asker)
    gate.open.set()
    closes.join(PATIENCE_SECONDS)
    assert not loop._thread.is_alive()
    asker.wait_for("a", "b")
    assert "length" not in asker.reasons.values()
    assert loop.stats().kv_bytes_used == 0
    loop.close()


def test_an_iteration_that_raises_fails_the_live_ones_and_the_engine_goes_on(open_loop: Opens) -> None:
    loop, asker = open_loop(Trips(0)), Asker()
    loop.submit([asked("a"), asked("b")], asker)
    asker.wait_for("a", "b")
    assert asker.reasons == {"a": "error", "b": "error"}
    assert asker.errors["a"] == "internal error (ArithmeticError)", "no path or address goes out"
    assert loop.not_ready() is None
    loop.submit([asked("c")], asker)
    asker.wait_for("c")
    assert asker.tokens["c"] == toy_alone(asked("c"))
    assert loop.stats().outcomes == {"finished": 1, "failed": 2, "cancelled": 0, "expired": 0, "moved": 0}


def test_an_iteration_that_raises_now_and_then_never_stops_the_engine(open_loop: Opens) -> None:
    policy = Trips(0)
    loop, asker = open_loop(policy), Asker()
    for i in range(4):
        loop.submit([asked(f"bad{i}")], asker)
        asker.wait_for(f"bad{i}")
        loop.submit([asked(f"good{i}")], asker)
        asker.wait_for(f"good{i}")
        assert (asker.reasons[f"bad{i}"], asker.reasons[f"good{i}"]) == ("error", "length")
        policy.when = {policy.plans}
    assert loop.not_ready() is None


def test_two_iterations_running_that_raise_stop_the_engine_which_says_why(open_loop: Opens) -> None:
    told: list[Event] = []
    loop, asker = open_loop(Trips(0, 1), sinks=[told.append]), Asker()
    loop.submit([asked("a")], asker)
    asker.wait_for("a")
    loop.submit([asked("b")], asker)
    asker.wait_for("b")
    loop._thread.join(PATIENCE_SECONDS)
    assert not loop._thread.is_alive()
    assert asker.reasons == {"a": "error", "b": "error"}
    assert loop.not_ready() == "the engine has stopped: ArithmeticError"
    with pytest.raises(EngineUnhealthy, match="ArithmeticError"):
        loop.submit([asked("c")], asker)
    assert [event.reason for event in told if isinstance(event, QueryRejected)] == ["engine_unhealthy"]
    assert loop.stats().kv_bytes_used == 0
    assert loop.drain(0.0)
    loop.close()


def test_an_engine_that_cannot_be_emptied_stops_and_everyone_hears_it(
    open_loop: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    loop, asker = open_loop(Trips(1), say=gate, max_rows=2), Asker()
    loop.submit([asked("a"), asked("b"), asked("c")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)

    def fails(query_id: str) -> None:
        raise OSError("no")

    monkeypatch.setattr(loop._engine.batch, "remove", fails)
    gate.open.set()
    asker.wait_for("a", "b", "c")
    assert set(asker.reasons.values()) == {"error"}
    loop._thread.join(PATIENCE_SECONDS)
    assert "the engine has stopped" in (loop.not_ready() or "")
    with pytest.raises(EngineUnhealthy):
        loop.submit([asked("d")], asker)


def test_a_query_that_cannot_begin_fails_alone_and_those_that_came_with_it_run(open_loop: Opens) -> None:
    def text_of(query: Query) -> TextStream:
        if query.id == "bad":
            raise ValueError("no decoder for it")
        return TextStream(NoText())

    told: list[Event] = []
    loop, asker = open_loop(text_of=text_of, sinks=[told.append]), Asker()
    loop.submit([asked("a"), asked("bad"), asked("b")], asker)
    asker.wait_for("a", "bad", "b")
    assert asker.reasons == {"a": "length", "bad": "error", "b": "length"}
    assert asker.tokens["b"] == toy_alone(asked("b"))
    assert [event.reason for event in told if isinstance(event, QueryRejected)] == ["internal_error"]


def test_a_policy_that_does_nothing_for_a_while_is_asked_again(open_loop: Opens) -> None:
    class Hesitates:
        plans = 0

        def plan(self, view: View) -> Plan:
            self.plans += 1
            return Plan() if self.plans < 5 else Baton().plan(view)

    loop, asker = open_loop(Hesitates()), Asker()
    loop.submit([asked("a")], asker)
    asker.wait_for("a")
    assert asker.tokens["a"] == toy_alone(asked("a"))


def test_a_wake_that_comes_before_the_wait_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = Inbox()
    inbox.wake()
    waits: list[float] = []
    monkeypatch.setattr(inbox._news, "wait", waits.append)
    inbox.wait(1.0)
    assert waits == []
    inbox.wait(2.0)
    assert waits == [2.0]


def test_an_iteration_that_does_not_end_is_told_as_not_ready(open_loop: Opens) -> None:
    clock, gate = ManualClock(), Gate()
    loop, asker = open_loop(clock=clock, say=gate), Asker()
    loop.submit([asked("a")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    assert loop.not_ready() is None
    clock.advance(61.0)
    assert loop.not_ready() == "no iteration for 61 s (--hang-timeout)"
    assert loop.stats().last_iteration_age_seconds == 61.0
    gate.open.set()
    asker.wait_for("a")
    assert loop.drain(PATIENCE_SECONDS)


def test_a_listener_hears_once_per_iteration(open_loop: Opens) -> None:
    gate = Gate()
    loop, asker = open_loop(say=gate, prefill_chunk=50), Asker()
    loop.submit([asked("a", 2, 1), asked("b", 3, 1), asked("c", 4, 1)], asker)
    gate.open.set()
    heard = asker._inbox.get(timeout=PATIENCE_SECONDS)
    assert {update.query_id for update in heard} == {"a", "b", "c"}
    assert asker._inbox.empty()


# Queries that leave for another engine


def test_queries_leave_and_go_on_in_another_loop(open_loop: Opens) -> None:
    gate, listener = Gate(), Asker()
    first, second = open_loop(say=gate), open_loop()
    first.submit([asked("a"), asked("b")], listener)
    assert gate.reached.wait(PATIENCE_SECONDS)
    giving = first.give()
    gate.open.set()
    segments = giving.result(PATIENCE_SECONDS)
    listener.wait_for("a", "b")
    assert {segment.query.id for segment in segments} == {"a", "b"} == set(listener.reasons)
    assert set(listener.reasons.values()) == {"moved"}
    listener.reasons.clear()
    second.resume(segments, listener)
    listener.wait_for("a", "b")
    assert all(listener.tokens[name] == toy_alone(asked(name)) for name in ("a", "b"))
    assert set(listener.reasons.values()) == {"length"}
    assert first.stats().outcomes["moved"] == 2 and first.drain(PATIENCE_SECONDS) and second.drain(PATIENCE_SECONDS)


def test_those_that_are_named_leave_and_others_stay(open_loop: Opens) -> None:
    gate, listener = Gate(), Asker()
    loop = open_loop(say=gate)
    loop.submit([asked("a"), asked("b")], listener)
    assert gate.reached.wait(PATIENCE_SECONDS)
    giving = loop.give(["b", "gone"])
    gate.open.set()
    assert [segment.query.id for segment in giving.result(PATIENCE_SECONDS)] == ["b"]
    listener.wait_for("a")
    assert listener.tokens["a"] == toy_alone(asked("a"))


def test_what_was_admitted_elsewhere_is_not_refused_for_a_full_queue(open_loop: Opens) -> None:
    gate, listener = Gate(), Asker()
    loop = open_loop(say=gate, max_waiting=1, max_rows=1)
    loop.submit([asked("a")], listener)
    assert gate.reached.wait(PATIENCE_SECONDS)
    loop.submit([asked("b")], listener)
    with pytest.raises(QueueFull):
        loop.submit([asked("c")], listener)
    loop.resume([resumed(asked("d"), (), STAMP)], listener)
    gate.open.set()
    listener.wait_for("a", "b", "d")
    assert listener.tokens["d"] == toy_alone(asked("d"))


def test_what_is_too_long_for_an_engine_or_comes_too_late_is_refused(open_loop: Opens) -> None:
    loop = open_loop()
    with pytest.raises(ContextLengthExceeded, match="may have 1006 tokens"):
        loop.resume([resumed(asked("a", 1000), (), STAMP)], Asker())
    loop.drain(0)
    with pytest.raises(ShuttingDown):
        loop.resume([resumed(asked("a"), (), STAMP)], Asker())
    loop.close()
    with pytest.raises((ShuttingDown, EngineUnhealthy)):
        loop.give()


def test_an_engine_that_drains_gives_what_is_left(open_loop: Opens) -> None:
    gate, listener = Gate(), Asker()
    loop = open_loop(say=gate)
    loop.submit([asked("a")], listener)
    assert gate.reached.wait(PATIENCE_SECONDS)
    draining = threading.Thread(target=loop.drain, args=(PATIENCE_SECONDS,))
    draining.start()
    giving = loop.give()
    gate.open.set()
    assert len(giving.result(PATIENCE_SECONDS)) == 1
    draining.join(PATIENCE_SECONDS)
    assert not draining.is_alive()
