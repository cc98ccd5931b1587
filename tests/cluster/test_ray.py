"""Engines on a real Ray Serve, started once for all tests here: whatever happens to engines, answers are whole."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from baton.cluster.environment import prepare
from baton.cluster.far import FarLoop
from baton.cluster.port import EngineLost
from baton.cluster.prices import Line, PriceBook, Prices
from baton.core.config import make_config
from baton.core.replicas import Range
from baton.fronts import open_front
from baton.observe.metrics import Metrics
from baton.server.app import create_app
from heard_answers import asked_of, requests, told
from server.listening import listening

# Ray reads the environment when it is imported, so that nothing here may import it before `prepare`.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no Ray")

STREAMS = 16
TEMPLATE = {"chat_template": str(Path(__file__).parents[1] / "tools.jinja"), "max_batch_size": "8"}
SETTINGS = {**TEMPLATE, "prefix_cache": False, "threads": "1", "hang_timeout": "4", "hang_exit": "0"}
PATIENCE_SECONDS = 400  # a machine may be busy


class Front:
    """A front over two engines on Ray, which was started for it."""

    def __init__(self, ray: Any, replicas: int = 2, prefill: int = 0) -> None:
        from baton.cli.serve_replica import EngineReplica
        from baton.cli.serve_replicas import live_of, metrics_of
        from baton.cluster.ray_cluster import prefill_of
        from baton.cluster.ray_engines import RayEngines

        self.ray = ray
        self.deploy_with = partial(ray.deploy, EngineReplica)
        self.deploy = partial(self.deploy_with, SETTINGS)
        placed = placing(replicas, prefill)
        handle = self.deploy(placed)
        self.engines = RayEngines(handle, prefill_of(handle, placed))
        self.live = live_of(self.engines)
        self.client = open_front(make_config(TEMPLATE), self.engines, self.engines.open())
        self.metrics = metrics_of(self.client, self.engines, Metrics("m", time.monotonic), compat=False)
        wait_until(lambda: len(self.engines.names()) == replicas + prefill)

    @property
    def loop(self) -> FarLoop:
        return cast(FarLoop, self.client.loop)

    def app(self) -> Any:
        return create_app(self.client, render_metrics=self.metrics, version="0")

    def is_idle(self) -> bool:
        stats = self.client.stats()
        return not (stats.running or stats.waiting or stats.ready or stats.prefilling or stats.rows_occupied)


def placing(replicas: int, prefill: int = 0) -> Any:
    from baton.cluster.ray_cluster import Placing

    return Placing(Range(replicas, replicas), cpus=1, gpus=0, drain_seconds=20, prefill=prefill)


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    before = dict(os.environ)
    prepare(os.environ, alone=True)
    from baton.cluster.ray_cluster import cluster

    try:
        with cluster(None, placing(4), 2) as ray:
            front = Front(ray)
            yield front
            front.client.close()
        assert not processes(""), "something is left of Ray"
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
async def uncut(front: Front) -> list[Any]:
    """What all requests are answered while nothing happens."""
    answers = requests(STREAMS)
    with listening(front.app()) as url:
        await asked_of(url, answers, "ask")
    assert all(answer.whole for answer in answers), [answer.trouble for answer in answers]
    await asyncio.to_thread(front.metrics)
    return answers


def processes(name: str) -> list[psutil.Process]:
    """Ray's processes below this one that have such a name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if name in command and ("ray" in command) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


async def asked_while(front: Front, what: Callable[[], None]) -> list[Any]:
    """Answers to the requests, while something happens when each has begun."""
    answers = requests(STREAMS)

    async def happen() -> None:
        while sum(len(answer.events) for answer in answers) < 4 * STREAMS:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(what)

    with listening(front.app()) as url:
        await asked_of(url, answers, "ask", happen)
    return answers


def assert_same(answers: list[Any], uncut: list[Any]) -> None:
    for one, right in zip(answers, uncut, strict=True):
        assert one.whole, (one.path, one.trouble, one.events[-2:])
        assert are_close(told(one), told(right)), (one.path, told(one), told(right))


def are_close(one: Any, other: Any) -> bool:
    """Equal but for log-probabilities, which differ in their last digits in other company."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_close(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(are_close, one, other))
    if isinstance(one, float):
        return abs(one - other) < 0.01
    return bool(one == other)


def both_again(front: Front) -> None:
    wait_until(lambda: len(front.engines.names()) == 2 and front.client.not_ready() is None)


async def test_an_engine_is_killed(front: Front, uncut: list[Any]) -> None:
    before = front.engines.names()
    answers = await asked_while(front, processes("ServeReplica")[0].kill)
    assert_same(answers, uncut)
    await asyncio.to_thread(both_again, front)
    assert front.engines.names() != before


async def test_an_engine_hangs(front: Front, uncut: list[Any]) -> None:
    victim = processes("ServeReplica")[0]
    answers = await asked_while(front, partial(victim.send_signal, signal.SIGSTOP))
    assert_same(answers, uncut)
    await asyncio.to_thread(both_again, front)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE


async def test_the_controller_is_killed(front: Front, uncut: list[Any]) -> None:
    answers = await asked_while(front, processes("ServeController")[0].kill)
    assert_same(answers, uncut)
    await asyncio.to_thread(wait_until, lambda: bool(processes("ServeController")))
    await asyncio.to_thread(both_again, front)


async def test_all_engines_are_killed(front: Front, uncut: list[Any]) -> None:
    """Queries wait for those that Serve starts instead."""

    def kill() -> None:
        for process in processes("ServeReplica"):
            process.kill()

    assert_same(await asked_while(front, kill), uncut)
    await asyncio.to_thread(both_again, front)


async def test_another_model_beside_ours_gets_nothing(front: Front, uncut: list[Any]) -> None:
    """An update to other weights: what is live stays where it is until it ends."""
    before = front.engines.names()
    answers = await asked_while(front, lambda: front.deploy_with({**SETTINGS, "dtype": "bfloat16"}, placing(2)))
    assert_same(answers, uncut)
    await asyncio.to_thread(wait_until, lambda: not front.engines.names())
    assert front.client.not_ready() == "no engine is there"
    await asyncio.to_thread(front.deploy, placing(2))
    await asyncio.to_thread(both_again, front)
    assert not {*before} & {*front.engines.names()}


@contextlib.contextmanager
def prices(front: Front, *, fill: Line, move: Line) -> Iterator[None]:
    """Computing and moving keys and values are said to cost so much, whatever is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriceBook, "heard", lambda *_: None)
        patch.setattr(front.loop._prices, "_last", Prices(fill, 0.0, move, move))
        front.loop._prices._prices.clear()
        yield


async def test_an_update_hands_over_tokens_alone_if_that_is_sooner(front: Front, uncut: list[Any]) -> None:
    recomputed = front.client.stats().slots.recomputed
    with prices(front, fill=Line(0.0, 0.0), move=Line(1.0, 0.0)):
        answers = await asked_while(front, lambda: front.deploy(placing(2)))
    assert_same(answers, uncut)
    await asyncio.to_thread(both_again, front)
    assert front.client.stats().slots.recomputed > recomputed


async def test_a_rolling_update_replaces_all_engines(front: Front, uncut: list[Any]) -> None:
    """Each leaves in peace; nothing is computed again where keys and values go along."""
    before, recomputed = front.engines.names(), front.client.stats().slots.recomputed
    with prices(front, fill=Line(1.0, 0.0), move=Line(0.0, 0.0)):
        answers = await asked_while(front, lambda: front.deploy(placing(2)))
    assert_same(answers, uncut)
    await asyncio.to_thread(both_again, front)
    assert not {*before} & {*front.engines.names()}
    assert front.client.stats().slots.recomputed == recomputed


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
    queries = front.client.queries([1, 2, 3], make_params(max_tokens=2000))
    async for updates in front.client.batches(queries):
        if updates:
            break
    await asyncio.to_thread(wait_until, front.is_idle)


def make_params(**given: Any) -> Any:
    from baton.core.query import SamplingParams

    return SamplingParams(ignore_eos=True, **given)


async def test_metrics_are_summed_and_named_by_engine(front: Front, uncut: list[Any]) -> None:
    model = front.client.model_name
    page = (await asyncio.to_thread(front.metrics))[0].decode()
    samples = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    for name in front.engines.names():
        assert f'baton_replica_queries_running{{model_name="{model}",replica="{name}"}}' in samples
    # Also what engines had counted that are gone, when the page was last asked for.
    assert float(samples[f'baton_queries_total{{model_name="{model}",outcome="finished"}}']) >= STREAMS


def end(front: Front, name: str) -> None:
    with contextlib.suppress(EngineLost):
        front.engines.abandon(name)


async def test_a_query_that_ends_its_engines_is_asked_of_no_third(front: Front) -> None:
    queries = front.client.queries([1, 2, 3], make_params(max_tokens=2000))
    loop = cast(FarLoop, front.client.loop)
    ends = []
    async for updates in front.client.batches(queries):
        ends += [update for update in updates if update.finish_reason is not None]
        for name in [name for name, stats in loop.stats_by_engine().items() if stats.running and not ends]:
            await asyncio.to_thread(end, front, name)
    assert [(end.finish_reason, end.code) for end in ends] == [("error", "engine_lost")]
    await asyncio.to_thread(both_again, front)


async def test_prompts_are_computed_by_engines_of_their_own(front: Front, uncut: list[Any]) -> None:
    """A second application on the same Ray."""
    # Not in an event loop, in which nothing may be waited for.
    other = await asyncio.to_thread(Front, dataclasses.replace(front.ray, name="prompts"), 1, 1)
    (name,) = other.engines.prefill_names()
    answers = requests(STREAMS)
    with listening(other.app()) as url:
        await asked_of(url, answers, "ask")
    assert_same(answers, uncut)
    stats = other.loop.stats_by_engine()[name]
    assert stats.outcomes["moved"] >= STREAMS and other.client.stats().slots.recomputed == 0
    page = (await asyncio.to_thread(other.metrics))[0].decode()
    model = other.client.model_name
    assert f'baton_replica_for_prompts{{model_name="{model}",replica="{name}"}} 1' in page
    assert json.loads(await asyncio.to_thread(other.live, 0, 0.0, name))["prefill"] == [name]
    await asyncio.to_thread(other.client.close)
    await asyncio.to_thread(end_application, "prompts")


def end_application(name: str) -> None:
    from ray import serve

    serve.delete(name)


def test_engines_end_with_a_front_that_is_killed(front: Front) -> None:
    """On a Ray that goes on without it."""
    import ray
    from ray import serve

    address = ray.get_runtime_context().gcs_address
    words = [sys.executable, "-m", "baton", "serve", "--port", "0", "--replicas", "1", "--replica-cpus", "1"]
    command = subprocess.Popen([*words, "--ray-address", address], stderr=subprocess.PIPE, text=True)
    try:
        assert command.stderr is not None
        said = ""
        while "http://" not in said:
            line = command.stderr.readline()
            assert line, said
            said += line

        def theirs() -> list[str]:
            return [name for name in serve.status().applications if name.startswith("baton-")]

        assert len(theirs()) == 1
        command.kill()
        wait_until(lambda: not theirs())
        assert len(front.engines.names()) == 2
    finally:
        command.kill()
        command.wait()
