"""Engines on a real Ray Serve, started once for all tests here: whatever happens to engines, answers are whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import psutil
import pytest

from baton.cluster.port import EngineLost
from baton.core.events import Update
from baton.core.query import SamplingParams
from cluster.ray_front import (
    STREAMS,
    Front,
    assert_same,
    front_on_ray,
    needs_ray,
    processes,
    wait_until,
)

pytestmark = needs_ray


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with front_on_ray(hang_timeout="4") as front:
        yield front


@pytest.fixture(scope="module")
async def uncut(front: Front) -> list[Any]:
    """What all requests are answered while nothing happens."""
    answers = await front.answers()
    assert all(answer.whole for answer in answers), [answer.trouble for answer in answers]
    return answers


async def test_metrics_are_summed_and_named_by_engine(front: Front, uncut: list[Any]) -> None:
    page = await asyncio.to_thread(samples, front)
    for name in front.engines.names():
        assert f'baton_replica_queries_running{{model_name="{front.client.model_name}",replica="{name}"}}' in page
    assert await asyncio.to_thread(finished, front) >= STREAMS


def samples(front: Front) -> dict[str, str]:
    """The metrics page."""
    page = front.metrics()[0].decode()
    return dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))


def finished(front: Front) -> float:
    return float(samples(front)[f'baton_queries_total{{model_name="{front.client.model_name}",outcome="finished"}}'])


def test_nothing_listens_to_other_machines(front: Front) -> None:
    heard = [
        (process.name(), connection.laddr.ip)
        for process in [*processes(""), psutil.Process()]
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(heard) > 4
    assert {address for _, address in heard} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, heard


async def test_a_client_that_goes_frees_its_rows(front: Front) -> None:
    queries = front.client.queries([1, 2, 3], SamplingParams(ignore_eos=True, max_tokens=2000))
    async for updates in front.client.batches(queries):
        if updates:
            break
    await asyncio.to_thread(wait_until, front.is_idle)


async def test_the_controller_is_killed(front: Front, uncut: list[Any]) -> None:
    assert_same(await front.answers(processes("ServeController")[0].kill), uncut)
    await asyncio.to_thread(wait_until, lambda: bool(processes("ServeController")))
    await asyncio.to_thread(front.has, 2)


async def test_an_engine_hangs(front: Front, uncut: list[Any]) -> None:
    victim = processes("ServeReplica")[0]
    assert_same(await front.answers(partial(victim.send_signal, signal.SIGSTOP)), uncut)
    await asyncio.to_thread(front.has, 2)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE


async def test_all_engines_are_killed(front: Front, uncut: list[Any]) -> None:
    """Queries wait for those that Serve starts instead."""
    before = await asyncio.to_thread(finished, front)

    def kill() -> None:
        for process in processes("ServeReplica"):
            process.kill()

    assert_same(await front.answers(kill), uncut)
    # What engines had counted that are gone, when the page was last asked for, stays counted.
    assert await asyncio.to_thread(finished, front) > before >= STREAMS
    await asyncio.to_thread(front.has, 2)


async def test_streams_of_killed_engines_go_on_but_for_one_that_ends_them(front: Front, uncut: list[Any]) -> None:
    before = front.engines.names()
    ends: list[Update] = []

    async def doomed() -> None:
        """It lives until it has ended two engines."""
        queries = front.client.queries([1, 2, 3], SamplingParams(ignore_eos=True, max_tokens=2000))
        async for updates in front.client.batches(queries):
            ends.extend(update for update in updates if update.finish_reason is not None)

    going = asyncio.ensure_future(doomed())
    await asyncio.to_thread(wait_until, lambda: going.done() or bool(running(front)))
    (first,) = running(front)
    assert_same(await front.answers(partial(end, front, first)), uncut)
    assert not going.done()
    await asyncio.to_thread(wait_until, lambda: going.done() or len(running(front)) == 1)
    (second,) = running(front)
    await asyncio.to_thread(end, front, second)
    await going
    assert [(one.finish_reason, one.code) for one in ends] == [("error", "engine_lost")]
    await asyncio.to_thread(front.has, 2)
    assert front.engines.names() != before


def running(front: Front) -> list[str]:
    """The engines in which something runs."""
    return [name for name, stats in front.loop.stats_by_engine().items() if stats.running]


def end(front: Front, name: str) -> None:
    with contextlib.suppress(EngineLost):
        front.engines.abandon(name)


async def test_prompts_are_computed_by_engines_of_their_own(front: Front, uncut: list[Any]) -> None:
    """A second application on the same Ray."""
    # Not in an event loop, in which nothing may be waited for.
    other = await asyncio.to_thread(Front, replace(front.ray, name="prompts"), 1, 1)
    (name,) = other.engines.prefill_names()
    assert_same(await other.answers(), uncut)
    stats = other.loop.stats_by_engine()[name]
    assert stats.outcomes["moved"] >= STREAMS and other.recomputed == 0
    marked = f'baton_replica_for_prompts{{model_name="{other.client.model_name}",replica="{name}"}}'
    assert float((await asyncio.to_thread(samples, other))[marked]) == 1
    assert json.loads(await asyncio.to_thread(other.live, 0, 0.0, name))["prefill"] == [name]
    await asyncio.to_thread(other.client.close)
