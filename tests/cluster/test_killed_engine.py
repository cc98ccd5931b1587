"""One of two engines is killed under live streams: each stream is whole, and what it would have been.

`KILLS=20 pytest tests/cluster/test_killed_engine.py` kills so many.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from baton.compose import open_front
from baton.core.config import make_config
from baton.server.app import create_app
from cluster.piped import Child, Piped
from heard_answers import asked_of, requests, told
from server.listening import listening

KILLS = int(os.environ.get("KILLS", "1"))
STREAMS = 16
TEMPLATE = {"chat_template": str(Path(__file__).parents[1] / "tools.jinja"), "max_batch_size": "8"}
SETTINGS = {**TEMPLATE, "prefix_cache": False, "threads": "1"}


@pytest.fixture
def piped() -> Iterator[Piped]:
    piped = Piped(SETTINGS)
    yield piped
    piped.close()


async def test_streams_outlive_an_engine_that_is_killed(piped: Piped) -> None:
    dice = random.Random(KILLS)
    children = [Child(SETTINGS) for _ in range(2)]
    abouts = [child.introduced() for child in children]
    assert abouts[0] == abouts[1] and abouts[0].stamp
    client = open_front(make_config(TEMPLATE), piped, abouts[0])
    for at, child in enumerate(children):
        piped.add(f"engine {at}", child)
    with listening(create_app(client, render_metrics=lambda: (b"", "text/plain"), version="0")) as url:
        uncut = requests(STREAMS)
        await asked_of(url, uncut, "ask")
        assert all(answer.whole for answer in uncut), [answer.trouble for answer in uncut]
        for round in range(KILLS):
            cut, at = requests(STREAMS), dice.randint(STREAMS, 30 * STREAMS)
            victim = piped.children[dice.choice(sorted(piped.children))]

            async def kill(cut: Any = cut, at: int = at, victim: Child = victim) -> None:
                while sum(len(answer.events) for answer in cut) < at:
                    await asyncio.sleep(0.005)
                victim.process.kill()

            await asked_of(url, cut, "ask", kill)
            victim.process.wait()
            for one, right in zip(cut, uncut, strict=True):
                assert one.whole, (one.path, one.trouble, one.events[-2:])
                assert told(one) == told(right)
            if round + 1 < KILLS:
                child = Child(SETTINGS)
                child.introduced()
                piped.add(f"engine {2 + round}", child)
        for _ in range(100):
            stats = client.stats()
            if not (stats.running or stats.waiting or stats.ready or stats.prefilling):
                break
            time.sleep(0.05)
        assert client.stats().rows_occupied == 0 and client.not_ready() is None
    client.close()
