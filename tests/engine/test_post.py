"""Updates on their way to event loops: one wake-up for all listeners, in order, and no harm where nobody is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from baton.engine.post import Listener, Post
from baton.events import Update


@pytest.fixture
def post() -> Iterator[Post]:
    found = Post()
    yield found
    found.close()


def carriers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "baton-post"]


async def test_each_listener_gets_its_own_in_order(post: Post) -> None:
    listeners: list[Listener] = [asyncio.Queue() for _ in range(5)]
    delivers = [post.to(listener) for listener in listeners]

    def engine() -> None:
        for turn in range(200):
            for at, deliver in enumerate(delivers):
                deliver([Update(f"q{at}", (turn,))])

    thread = threading.Thread(target=engine)
    thread.start()
    for at, listener in enumerate(listeners):
        heard = [update for _ in range(200) for update in await asyncio.wait_for(listener.get(), 20)]
        assert heard == [Update(f"q{at}", (turn,)) for turn in range(200)]
    thread.join()


async def test_what_is_there_at_once_wakes_the_loop_once(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    right = loop.call_soon_threadsafe
    held = threading.Event()

    def waking(*args: Any) -> Any:
        woken.append(args)
        assert held.wait(20)
        return right(*args)

    monkeypatch.setattr(loop, "call_soon_threadsafe", waking)
    listeners: list[Listener] = [asyncio.Queue() for _ in range(8)]
    delivers = [post.to(listener) for listener in listeners]
    delivers[0]([Update("first")])
    while not woken:
        await asyncio.sleep(0.001)
    for deliver in delivers:
        deliver([Update("later")])
    held.set()
    for listener in listeners[1:]:
        assert await asyncio.wait_for(listener.get(), 20) == [Update("later")]
    assert len(woken) == 2


def test_a_loop_that_is_closed_takes_nothing_from_others(post: Post) -> None:
    async def ask() -> Any:
        return post.to(asyncio.Queue())

    gone = asyncio.run(ask())

    async def listen() -> list[Update]:
        listener: Listener = asyncio.Queue()
        deliver = post.to(listener)
        gone([Update("gone")])
        deliver([Update("here")])
        gone([Update("gone")])
        return await asyncio.wait_for(listener.get(), 20)

    assert asyncio.run(listen()) == [Update("here")]


async def test_closing_delivers_what_was_said_and_ends_the_thread() -> None:
    before = set(carriers())
    post, listener = Post(), asyncio.Queue()
    assert set(carriers()) == before, "a thread for nobody"
    deliver = post.to(listener)
    (mine,) = set(carriers()) - before
    deliver([Update("last")])
    post.close()
    post.close()
    assert await asyncio.wait_for(listener.get(), 20) == [Update("last")]
    await asyncio.to_thread(mine.join, 20)
    assert not mine.is_alive()
