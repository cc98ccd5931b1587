"""An engine that hangs or whose thread dies: it is logged once, and no client waits for ever."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

import baton.engine.loop as loop_module
import baton.engine.watchdog as watchdog_module
from baton.core.clock import monotonic
from baton.core.errors import EngineUnhealthy, QueueFull
from baton.core.events import Event, QueryRejected
from baton.engine.loop import EngineLoop
from baton.engine.watchdog import GIVEN_UP, Watchdog
from baton.policy.baton import Baton
from baton.policy.port import Plan, View
from engine.test_loop import PATIENCE_SECONDS, Asker, Gate, asked, until
from toy import toy_alone, toy_batch


@pytest.fixture
def open_loop() -> Iterator[Callable[..., EngineLoop]]:
    opened: list[EngineLoop] = []

    def opens(policy: Any = None, *, sinks: Any = (), **kw: Any) -> EngineLoop:
        engine = toy_batch(policy or Baton(), clock=monotonic, sinks=sinks, **kw).engine
        opened.append(EngineLoop(engine, monotonic, sinks))
        return opened[-1]

    yield opens
    for loop in opened:
        loop.close()


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_each_hang_is_told_once_with_all_stacks_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    stuck = [0.0]
    watchdog = Watchdog(lambda: stuck[0], 2.0)
    for stuck[0] in (0.0, 2.0):
        watchdog.check()
    assert messages(caplog) == [], "not before its time"
    for stuck[0] in (2.5, 3.5, 9.0):
        watchdog.check()
    (told,) = messages(caplog)
    assert "no iteration for 2.5 s (--hang-timeout 2)" in told
    assert "test_watchdog.py" in told, "where this thread is"
    stuck[0] = 0.1
    watchdog.check()
    watchdog.check()
    assert messages(caplog)[1:] == ["it goes on after more than 9.0 s with no iteration"]
    stuck[0] = 3.0
    watchdog.check()
    assert "no iteration for 3.0 s" in messages(caplog)[-1], "another one"


def test_a_process_that_cannot_be_saved_ends_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    stuck, ended = [0.0], list[int]()
    watchdog = Watchdog(lambda: stuck[0], 2.0, what="no sign of life", ends_after=10.0, end=ended.append)
    for seconds in (9.0, 500.0, 0.0, 11.0, 12.0, 13.0):
        stuck[0] = seconds
        watchdog.check()
    assert not ended, "who was stopped and goes on is not ended"
    stuck[0] = 14.0
    watchdog.check()
    assert ended == [GIVEN_UP]
    assert "no sign of life for 14 s: this process ends with status 70" in caplog.text and "--hang-exit" in caplog.text


def test_a_process_ends_even_where_there_is_no_memory_for_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    watchdog = Watchdog(lambda: 99.0, 2.0, ends_after=10.0, end=ended.append)
    watchdog._longest = 1.0
    monkeypatch.setattr(watchdog_module.log, "critical", Mock(side_effect=MemoryError))
    for _ in range(3):
        watchdog.check()
    with pytest.raises(MemoryError):
        watchdog.check()
    assert ended == [GIVEN_UP]


def test_no_thread_is_left_out_however_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    """faulthandler's own dump ends after a hundred."""
    go = threading.Event()
    threads = [threading.Thread(target=go.wait, args=(20,), name=f"waits-{number}") for number in range(130)]
    for thread in threads:
        thread.start()
    Watchdog(lambda: 5.0, 2.0).check()
    go.set()
    for thread in threads:
        thread.join()
    (told,) = messages(caplog)
    assert all(f"{thread.name}:\n" in told for thread in threads) and "test_watchdog.py" in told


def test_a_loop_that_hangs_is_noticed_and_goes_on(
    open_loop: Callable[..., EngineLoop], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    loop, asker = open_loop(say=gate, hang_seconds=0.1), Asker()
    with caplog.at_level(logging.WARNING, "baton.engine"):
        loop.submit([asked("a")], asker)
        assert gate.reached.wait(PATIENCE_SECONDS)
        until(lambda: messages(caplog))
        assert "no iteration for" in (loop.not_ready() or "")
        gate.open.set()
        asker.wait_for("a")
        until(lambda: len(messages(caplog)) > 1)
    assert asker.tokens["a"] == toy_alone(asked("a"))
    assert "in __call__" in messages(caplog)[0], "the engine's thread waits at its gate"
    assert loop.not_ready() is None


def test_an_idle_engine_never_hangs(open_loop: Callable[..., EngineLoop], caplog: pytest.LogCaptureFixture) -> None:
    loop = open_loop(hang_seconds=0.02)
    time.sleep(0.2)
    assert messages(caplog) == []
    assert loop.not_ready() is None


class Dies:
    """A policy that raises what no policy may, when somebody has a few tokens."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException = error

    def plan(self, view: View) -> Plan:
        if any(query.generated >= 3 for query in view.running):
            raise self.error
        return Baton().plan(view)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_thread_that_dies_is_noticed_and_everybody_hears_of_it(
    error: BaseException, open_loop: Callable[..., EngineLoop]
) -> None:
    policy, told = Dies(error), list[Event]()
    loop, asker = open_loop(policy, max_rows=1, sinks=[told.append]), Asker()
    loop.submit([asked("a", limit=30), asked("b")], asker)
    asker.wait_for("a", "b")
    assert set(asker.reasons.values()) == {"error"}
    loop._thread.join(PATIENCE_SECONDS)
    assert loop.not_ready() == f"the engine has stopped: {type(error).__name__}"
    for refused in (loop.check_room, lambda: loop.submit([asked("c")], asker)):
        with pytest.raises(EngineUnhealthy, match=type(error).__name__):
            refused()
    assert [event.reason for event in told if isinstance(event, QueryRejected)] == ["engine_unhealthy"] * 2
    stats = loop.stats()
    assert stats.submitted == sum(stats.outcomes.values()) == stats.outcomes["failed"] == 2
    assert stats.kv_bytes_used == stats.running == stats.waiting == 0
    assert loop.drain(0.0), "nobody is live"


def test_a_thread_that_is_not_there_is_noticed(open_loop: Callable[..., EngineLoop]) -> None:
    """As in a child after a fork."""
    loop = open_loop()
    loop._thread, there = threading.Thread(), loop._thread
    assert loop.not_ready() == "the engine has stopped: its thread is gone"
    with pytest.raises(EngineUnhealthy):
        loop.submit([asked("a")], Asker())
    loop._thread = there


def test_the_watchdogs_thread_ends_with_its_engine(open_loop: Callable[..., EngineLoop]) -> None:
    def dogs() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "baton-watchdog"}

    before = dogs()
    loop = open_loop()
    (mine,) = dogs() - before
    loop.close()
    mine.join(PATIENCE_SECONDS)
    assert not mine.is_alive()


def test_a_drain_of_an_engine_that_hangs_comes_to_an_end(
    open_loop: Callable[..., EngineLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_CUT_SECONDS", 0.05)
    gate = Gate()
    loop, asker = open_loop(say=gate), Asker()
    loop.submit([asked("a")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    assert not loop.drain(0.0)
    loop.close()
    assert loop._thread.is_alive(), "it was not waited for"
    gate.open.set()
    asker.wait_for("a")


def test_whoever_asks_for_room_is_told_and_counted_as_one_who_submits(open_loop: Callable[..., EngineLoop]) -> None:
    gate, told = Gate(), list[Event]()
    loop, asker = open_loop(say=gate, sinks=[told.append], max_rows=1, max_waiting=1), Asker()
    loop.check_room()
    loop.submit([asked("a"), asked("b")], asker)
    assert gate.reached.wait(PATIENCE_SECONDS)
    with pytest.raises(QueueFull, match="--max-waiting"):
        loop.check_room()
    assert [event.reason for event in told if isinstance(event, QueryRejected)] == ["queue_full"]
    gate.open.set()
    asker.wait_for("a", "b")
    loop.check_room()
