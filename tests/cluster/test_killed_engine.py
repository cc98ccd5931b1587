"""One of two engines is killed, leaves or hangs under live streams: each stream is whole, and what it would have been.

`KILLS=20 pytest tests/cluster/test_killed_engine.py` kills so many, and as many leave.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from baton.cluster.far import FarLoop
from baton.compose import open_front
from baton.core.config import make_config
from baton.server.app import create_app
from cluster.piped import Child, Piped
from heard_answers import asked_of, requests, told
from server.listening import listening

KILLS = int(os.environ.get("KILLS", "1"))
STREAMS = 16
TEMPLATE = {"chat_template": str(Path(__file__).parents[1] / "tools.jinja"), "max_batch_size": "8"}
SETTINGS = {**TEMPLATE, "prefix_cache": False, "threads": "1", "hang_timeout": "2", "hang_exit": "0"}


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

    def add(self, child: Child | None = None) -> None:
        if child is None:
            child = Child(SETTINGS, self.depot)
            child.introduced()
        self.engines.add(f"engine {self.count}", child)
        self.count += 1

    def is_idle(self) -> bool:
        stats = self.client.stats()
        return not (stats.running or stats.waiting or stats.ready or stats.prefilling or stats.rows_occupied)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    front = Front(tmp_path_factory.mktemp("depot"))
    yield front
    front.client.close()


async def cut(url: str, after: int, what: Callable[[], None]) -> list[Any]:
    """Answers to the requests, while `what` happens after so many events of all of them."""
    answers = requests(STREAMS)

    async def happen() -> None:
        while sum(len(answer.events) for answer in answers) < after:
            await asyncio.sleep(0.005)
        what()

    await asked_of(url, answers, "ask", happen)
    return answers


async def test_streams_outlive_an_engine_that_is_killed_or_leaves(front: Front) -> None:
    dice = random.Random(KILLS)
    with listening(create_app(front.client, render_metrics=lambda: (b"", "text/plain"), version="0")) as url:
        uncut = requests(STREAMS)
        await asked_of(url, uncut, "ask")
        assert all(answer.whole for answer in uncut), [answer.trouble for answer in uncut]
        assert front.client.stats().prompt_tokens > 0
        for round in range(2 * KILLS):
            name, leaves = dice.choice(sorted(front.engines.children)), round % 2 == 1
            process = front.engines.children[name].process
            before = front.client.stats().slots.recomputed
            loop = cast(FarLoop, front.client.loop)
            happens = partial(loop.leaves, name) if leaves else process.kill
            answers = await cut(url, dice.randint(STREAMS, 30 * STREAMS), happens)
            for one, right in zip(answers, uncut, strict=True):
                assert one.whole, (one.path, one.trouble, one.events[-2:])
                assert told(one) == told(right)
            if leaves:
                # Keys and values went along.
                assert front.client.stats().slots.recomputed == before
                process.kill()
            process.wait()
            front.add()
        await asyncio.to_thread(wait_until, front.is_idle)
        assert front.client.not_ready() is None
        stats = front.client.stats()
        assert stats.submitted == sum(stats.outcomes.values())


async def test_an_engine_that_hangs_is_ended_and_its_streams_go_on(front: Front) -> None:
    with listening(create_app(front.client, render_metrics=lambda: (b"", "text/plain"), version="0")) as url:
        process = next(iter(front.engines.children.values())).process
        answers = await cut(url, 2 * STREAMS, partial(process.send_signal, signal.SIGSTOP))
        assert all(answer.whole for answer in answers), [answer.trouble for answer in answers]
        assert process.wait() == -signal.SIGKILL


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)
