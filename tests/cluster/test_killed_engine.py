"""One of two engines is killed, leaves or hangs under live streams: each stream is whole, and what it would have been.

`KILLS=20 pytest tests/cluster/test_killed_engine.py` kills so many, and as many leave.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from baton.cluster.far import FarLoop
from baton.cluster.leaving import Leaving
from baton.cluster.prices import PriceBook
from baton.cluster.wire import Message
from baton.core.config import make_config
from baton.core.errors import EngineUnhealthy
from baton.core.query import SamplingParams
from baton.core.replicas import REPLICA_HANDOVER
from baton.fronts import open_front
from baton.server.app import create_app
from cluster.piped import Child, Piped
from heard_answers import asked_of, requests, told
from server.listening import listening

KILLS = int(os.environ.get("KILLS", "1"))
STREAMS = 16
TEMPLATE = {"chat_template": str(Path(__file__).parents[1] / "tools.jinja"), "max_batch_size": "8"}
SETTINGS = {**TEMPLATE, "prefix_cache": False, "threads": "1", "hang_timeout": "5", "hang_exit": "0"}


class Front:
    """A real server over two engines in child processes."""

    def __init__(self, depot: Path) -> None:
        self.depot = depot
        self.engines = Piped()
        children = [Child(SETTINGS, depot) for _ in range(2)]
        abouts = [child.introduced() for child in children]
        assert abouts[0] == abouts[1] and abouts[0].stamp
        self.client = open_front(make_config(TEMPLATE), self.engines, abouts[0])
        self.count = 0
        for child in children:
            self.add(child)

    def add(self, child: Child | None = None, *, prefill: bool = False) -> str:
        if child is None:
            child = Child(SETTINGS, self.depot)
            child.introduced()
        name = f"engine {self.count}"
        self.engines.add(name, child, prefill=prefill)
        self.count += 1
        return name

    @property
    def loop(self) -> FarLoop:
        return cast(FarLoop, self.client.loop)

    @property
    def recomputed(self) -> int:
        return self.client.stats().slots.recomputed

    def app(self) -> Any:
        return create_app(self.client, render_metrics=lambda: (b"", "text/plain"), version="0")

    def end(self, name: str) -> None:
        child = self.engines.children[name]
        child.process.kill()
        child.process.wait()
        wait_until(lambda: name not in self.engines.children)

    def is_idle(self) -> bool:
        stats = self.client.stats()
        return not (stats.running or stats.waiting or stats.ready or stats.prefilling or stats.rows_occupied)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("depot"))
    yield front
    front.client.close()


@pytest.fixture(scope="module")
async def uncut(front: Front) -> list[Any]:
    """What all requests are answered while nothing happens."""
    answers = requests(STREAMS)
    with listening(front.app()) as url:
        await asked_of(url, answers, "ask")
    assert all(answer.whole for answer in answers), [answer.trouble for answer in answers]
    return answers


def assert_same(answers: list[Any], uncut: list[Any]) -> None:
    for one, right in zip(answers, uncut, strict=True):
        assert one.whole, (one.path, one.trouble, one.events[-2:])
        assert told(one) == told(right)


async def cut(url: str, after: int, what: Callable[[], None]) -> list[Any]:
    """Answers to the requests, while `what` happens after so many events of all of them."""
    answers = requests(STREAMS)

    async def happen() -> None:
        while sum(len(answer.events) for answer in answers) < after:
            await asyncio.sleep(0.005)
        what()

    await asked_of(url, answers, "ask", happen)
    return answers


async def test_streams_outlive_an_engine_that_is_killed_or_leaves(front: Front, uncut: list[Any]) -> None:
    dice = random.Random(KILLS)
    with listening(front.app()) as url:
        assert front.client.stats().prompt_tokens > 0
        for round in range(2 * KILLS):
            name, leaves = dice.choice(sorted(front.engines.children)), round % 2 == 1
            process = front.engines.children[name].process
            before = front.recomputed
            happens = partial(front.loop.leaves, name) if leaves else process.kill
            answers = await cut(url, dice.randint(STREAMS, 30 * STREAMS), happens)
            assert_same(answers, uncut)
            if leaves:
                # Keys and values went along.
                assert front.recomputed == before
                process.kill()
            process.wait()
            front.add()
        await asyncio.to_thread(wait_until, front.is_idle)
        assert front.client.not_ready() is None
        stats = front.client.stats()
        assert stats.submitted == sum(stats.outcomes.values())


async def test_an_engine_that_hangs_is_ended_and_its_streams_go_on(front: Front) -> None:
    with listening(front.app()) as url:
        process = next(iter(front.engines.children.values())).process
        answers = await cut(url, 2 * STREAMS, partial(process.send_signal, signal.SIGSTOP))
        assert all(answer.whole for answer in answers), [answer.trouble for answer in answers]
        assert process.wait() == -signal.SIGKILL
    await asyncio.to_thread(wait_until, lambda: len(front.engines.children) == 1)
    front.add()


@pytest.mark.parametrize("how", ["tokens", "off", "parcels are lost"])
async def test_an_engine_ends_in_other_ways(
    front: Front, uncut: list[Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are the same however queries leave, and if what was laid down cannot be fetched."""
    name, before, lost = next(iter(front.engines.children)), front.recomputed, []
    monkeypatch.setattr(front.loop, "_leaving", Leaving(how if how in REPLICA_HANDOVER else "keys", PriceBook()))
    start = front.engines.start

    def lose(engine: str, asks: Sequence[Message]) -> None:
        places = [ask["laid_down"] for ask in asks if ask["laid_down"] is not None]
        lost.extend(places)
        for place in places if how == "parcels are lost" else []:
            Path(place).unlink()
        start(engine, asks)

    monkeypatch.setattr(front.engines, "start", lose)

    def leave() -> None:
        front.loop.leaves(name)
        if how == "off":
            # It goes on with what it has. What ends it then is nobody's fault.
            assert any(follow.engine == name for follow in front.loop._follows.values())
            front.engines.children[name].process.kill()

    with listening(front.app()) as url:
        assert_same(await cut(url, 6 * STREAMS, leave), uncut)
    assert front.recomputed > before and bool(lost) == (how == "parcels are lost")
    if how != "off":
        front.end(name)
    await asyncio.to_thread(wait_until, lambda: name not in front.engines.children)
    front.add()


async def test_asks_that_cross_with_the_word_of_an_end_move_on(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front has chosen an engine that is told to end before it reads what it is asked."""
    start = front.engines.start
    crossed: list[str] = []

    def cross(engine: str, asks: Sequence[Message]) -> None:
        if not crossed:
            crossed.append(engine)
            front.loop.leaves(engine)
        start(engine, asks)

    monkeypatch.setattr(front.engines, "start", cross)
    queries = front.client.queries([1, 2, 3], SamplingParams(max_tokens=40, ignore_eos=True))
    tokens = [token async for updates in front.client.batches(queries) for one in updates for token in one.token_ids]
    assert len(tokens) == 40
    name = crossed[0]
    assert front.loop.stats_by_engine()[name].running == 0
    front.end(name)
    front.add()


async def test_prompts_are_computed_by_an_engine_of_their_own(front: Front, uncut: list[Any]) -> None:
    """Equal for all kinds of streams, also if that engine is killed."""
    name, before = front.add(prefill=True), front.recomputed
    with listening(front.app()) as url:
        answers = requests(STREAMS)
        await asked_of(url, answers, "ask")
        assert_same(answers, uncut)
        stats = front.loop.stats_by_engine()[name]
        # One query for each of the choices; none is computed twice, and nothing but prompts is computed there.
        assert stats.outcomes["moved"] == stats.submitted - stats.outcomes["finished"] >= STREAMS
        assert front.recomputed == before
        assert_same(await cut(url, STREAMS, front.engines.children[name].process.kill), uncut)
    await asyncio.to_thread(wait_until, lambda: name not in front.engines.children)


async def test_while_no_engine_is_there_queries_wait(front: Front, uncut: list[Any]) -> None:
    """All engines are killed. What is live goes on, and what is new begins, when there is one again."""
    processes = [child.process for child in front.engines.children.values()]
    asked, settings = front.client.queries, front.client.settings

    async def one_more(seconds: float | None) -> list[Any]:
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        queries = asked([1, 2, 3], params)
        if seconds is not None:
            queries = [replace(query, start_by=query.arrived + seconds) for query in queries]
        return [one async for updates in front.client.batches(queries) for one in updates]

    async def begin() -> None:
        for process in processes:
            process.kill()
        await asyncio.to_thread(wait_until, lambda: not front.engines.children)
        assert front.client.not_ready() == "no engine is there"
        waiting = [asyncio.ensure_future(one_more(None)), asyncio.ensure_future(one_more(0.2))]
        assert (await waiting[1])[-1].finish_reason == "expired"
        with pytest.raises(EngineUnhealthy):
            front.client.check_room(settings.max_waiting + 1)
        await asyncio.to_thread(front.add)
        assert len([token for one in await waiting[0] for token in one.token_ids]) == 3

    answers = requests(STREAMS)

    async def happen() -> None:
        while sum(len(answer.events) for answer in answers) < 4 * STREAMS:
            await asyncio.sleep(0.005)
        await begin()

    with listening(front.app()) as url:
        await asked_of(url, answers, "ask", happen)
    assert_same(answers, uncut)
    front.add()


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
