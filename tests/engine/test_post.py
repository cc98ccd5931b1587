"""Updates on their way to event loops: one wake-up for all subscribers, in order, and no harm if none is left.

And what a subscriber keeps of them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from baton.core.errors import ShuttingDown, SlowReader
from baton.core.events import TokenLogprobs, Update
from baton.engine.delivery import OutputDelivery, Subscriber


@pytest.fixture
def post() -> Iterator[OutputDelivery]:
    delivery = OutputDelivery()
    yield delivery
    delivery.close()


def carriers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "baton-post"]


async def test_each_listener_gets_its_own_in_order(post: OutputDelivery) -> None:
    listeners = [Subscriber() for _ in range(5)]
    delivers = [post.to(listener) for listener in listeners]

    def engine() -> None:
        for turn in range(200):
            for at, deliver in enumerate(delivers):
                deliver([Update(f"q{at}", (turn,))])

    thread = threading.Thread(target=engine)
    thread.start()
    for at, listener in enumerate(listeners):
        heard: list[Update] = []
        while len(heard) < 200:
            heard += await asyncio.wait_for(listener.take(), 20)
        assert heard == [Update(f"q{at}", (turn,)) for turn in range(200)]
    thread.join()


async def test_what_is_there_at_once_wakes_the_loop_once(post: OutputDelivery, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    right = loop.call_soon_threadsafe
    held = threading.Event()

    def waking(*args: Any) -> Any:
        woken.append(args)
        assert held.wait(20)
        return right(*args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", waking)
    listeners = [Subscriber() for _ in range(8)]
    delivers = [post.to(listener) for listener in listeners]
    delivers[0]([Update("first")])
    while not woken:
        await asyncio.sleep(0.001)
    for deliver in delivers:
        deliver([Update("later")])
    held.set()
    for listener in listeners[1:]:
        assert await asyncio.wait_for(listener.take(), 20) == [Update("later")]
    assert len(woken) == 2


def test_a_loop_that_is_closed_takes_nothing_from_others(post: OutputDelivery) -> None:
    async def ask() -> Any:
        return post.to(Subscriber())

    gone = asyncio.run(ask())

    async def listen() -> list[Update]:
        listener = Subscriber()
        deliver = post.to(listener)
        gone([Update("gone")])
        deliver([Update("here")])
        gone([Update("gone")])
        return await asyncio.wait_for(listener.take(), 20)

    assert asyncio.run(listen()) == [Update("here")]


async def test_closing_delivers_what_was_said_and_ends_the_thread() -> None:
    before = set(carriers())
    post, listener = OutputDelivery(), Subscriber()
    assert set(carriers()) == before, "a thread for nobody"
    deliver = post.to(listener)
    (mine,) = set(carriers()) - before
    deliver([Update("last")])
    post.close()
    post.close()
    assert await asyncio.wait_for(listener.take(), 20) == [Update("last")]
    await asyncio.to_thread(mine.join, 20)
    assert not mine.is_alive()


# Listeners


async def test_all_that_is_there_is_taken_at_once() -> None:
    listener = Subscriber(10**6)
    listener.put([Update("a", (1,))])
    listener.put([Update("a", (2,)), Update("b", (3,))])
    assert await listener.take() == [Update("a", (1,)), Update("a", (2,)), Update("b", (3,))]
    listener.put([Update("a", (4,))])
    assert await listener.take() == [Update("a", (4,))]


async def test_silence_is_told_as_often_as_it_lasts_and_loses_nothing() -> None:
    listener = Subscriber()
    assert await asyncio.wait_for(listener.take(0.01), 20) == []
    assert await asyncio.wait_for(listener.take(0.01), 20) == []
    listener.put([Update("a", (1,))])
    assert await asyncio.wait_for(listener.take(60.0), 20) == [Update("a", (1,))]


async def test_who_stops_waiting_misses_nothing() -> None:
    listener = Subscriber()
    waiting = asyncio.create_task(listener.take(60.0))
    await asyncio.sleep(0)
    listener.put([Update("a", (1,))])
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.wait_for(listener.take(), 20) == [Update("a", (1,))]


async def test_what_is_left_is_bounded_and_then_all_of_it_is_dropped() -> None:
    overflows: list[str] = []
    listener = Subscriber(20_000, lambda: overflows.append("now"))
    for turn in range(40):
        listener.put([Update("a", (turn,), "text")])
    assert not overflows and len(await listener.take()) == 40
    for turn in range(1000):
        listener.put([Update("a", (turn,), "text")])
    assert overflows == ["now"]
    assert not listener._updates
    for _ in range(2):
        with pytest.raises(SlowReader, match="--max-unread-bytes"):
            await asyncio.wait_for(listener.take(60.0), 20)


async def test_a_reader_that_keeps_up_is_never_too_slow() -> None:
    listener = Subscriber(2000, lambda: pytest.fail("it has read all"))
    for turn in range(1000):
        listener.put([Update("a", (turn,), "text")])
        assert await listener.take() == [Update("a", (turn,), "text")]


@pytest.mark.parametrize(
    "large",
    [
        Update("a", tuple(range(500))),
        Update("a", (1,), "x" * 20_000),
        Update("a", (1,), logprobs=(TokenLogprobs(1, -1.0, 1, ((1, -1.0),) * 200),)),
        Update("a", (1,), prompt_logprobs=(TokenLogprobs(1, -1.0, 1),) * 200),
    ],
)
async def test_large_updates_count_as_much_as_they_take(large: Update) -> None:
    listener = Subscriber(20_000)
    listener.put([Update("a")])
    listener.put([large])
    with pytest.raises(SlowReader):
        await listener.take()


async def test_a_failed_listener_still_hears_what_came_before() -> None:
    listener = Subscriber()
    listener.put([Update("a", (1,))])
    listener.fail(ShuttingDown("over"))
    assert await listener.take() == [Update("a", (1,))]
    for _ in range(2):
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(listener.take(60.0), 20)
