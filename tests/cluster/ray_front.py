"""A front over engines on a Ray Serve that is started for it, and requests that are under way while things happen."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from baton.cluster.environment import prepare
from baton.cluster.far import FarLoop
from baton.core.config import make_config
from baton.core.replicas import Range
from baton.fronts import open_front
from baton.observe.metrics import Metrics
from baton.server.app import create_app
from heard_answers import asked_of, requests, told
from server.listening import listening

# Ray reads the environment when it is imported, so that nothing here may import it before `prepare`.
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no Ray")

STREAMS = 16
TEMPLATE = {"chat_template": str(Path(__file__).parents[1] / "tools.jinja"), "max_batch_size": "8"}
SETTINGS = {**TEMPLATE, "prefix_cache": False, "threads": "1", "hang_exit": "0"}
PATIENCE_SECONDS = 400  # a machine may be busy


class Front:
    """A front over engines on Ray, which were started for it with such settings."""

    def __init__(self, ray: Any, replicas: int = 2, prefill: int = 0, **settings: Any) -> None:
        from baton.cli.serve_replicas import live_of, metrics_of
        from baton.cluster.ray_cluster import prefill_of
        from baton.cluster.ray_engines import RayEngines

        self.ray = ray
        self.settings = settings
        placed = placing(replicas, prefill)
        handle = self.deploy(placed)
        self.engines = RayEngines(handle, prefill_of(handle, placed))
        self.live = live_of(self.engines)
        self.client = open_front(make_config(TEMPLATE), self.engines, self.engines.open())
        self.metrics = metrics_of(self.client, self.engines, Metrics("m", time.monotonic), compat=False)
        wait_until(lambda: len(self.engines.names()) == replicas + prefill)

    def deploy(self, placing: Any, version: str = "1", **settings: Any) -> Any:
        """Has so many engines of a version and with settings. Those of the same version and settings stay."""
        from ray import serve

        from baton.cli.serve_replica import EngineReplica
        from baton.cluster import ray_cluster

        def of_version() -> Any:
            # Else each call is a new version to Serve, and replaces all engines.
            return cast(Any, serve.deployment(ray_cluster.RayEngine)).options(version=version, _internal=True)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray_cluster, "deployment", of_version)
            return self.ray.deploy(EngineReplica, {**SETTINGS, **self.settings, **settings}, placing)

    @property
    def loop(self) -> FarLoop:
        return cast(FarLoop, self.client.loop)

    @property
    def recomputed(self) -> int:
        return self.client.stats().slots.recomputed

    def app(self) -> Any:
        return create_app(self.client, render_metrics=self.metrics, version="0")

    def is_idle(self) -> bool:
        stats = self.client.stats()
        return not (stats.running or stats.waiting or stats.ready or stats.prefilling or stats.rows_occupied)

    def has(self, count: int) -> None:
        """Waits until so many engines are there."""
        wait_until(lambda: len(self.engines.names()) == count and self.client.not_ready() is None)

    async def answers(self, what: Callable[[], Any] | None = None) -> list[Any]:
        """Answers to the requests, while something happens when each has begun."""
        answers = requests(STREAMS)

        async def happen() -> None:
            while sum(len(answer.events) for answer in answers) < 4 * STREAMS:
                await asyncio.sleep(0.005)
            if what is not None:
                await asyncio.to_thread(what)

        with listening(self.app()) as url:
            await asked_of(url, answers, "ask", happen)
        return answers


def placing(replicas: int, prefill: int = 0) -> Any:
    from baton.cluster.ray_cluster import Placing

    return Placing(Range(replicas, replicas), cpus=1, gpus=0, drain_seconds=20, prefill=prefill)


@contextlib.contextmanager
def front_on_ray(**settings: Any) -> Iterator[Front]:
    before = dict(os.environ)
    prepare(os.environ, alone=True)
    from baton.cluster.ray_cluster import cluster

    try:
        with cluster(None, placing(4), 2) as ray:
            front = Front(ray, **settings)
            yield front
            front.client.close()
        assert not processes(""), "something is left of Ray"
    finally:
        os.environ.clear()
        os.environ.update(before)


def processes(name: str) -> list[psutil.Process]:
    """Ray's processes below this one that have such a name in their command."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        # Not those that only name Ray's folders in code that they run, as a forkserver does.
        of_ray = any(word.startswith("ray::") or (word.startswith("/") and "/ray/" in word) for word in words)
        if of_ray and any(name in word for word in words) and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


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
