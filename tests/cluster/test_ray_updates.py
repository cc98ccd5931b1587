"""Engines on a real Ray Serve, which are updated, and end with their front: answers are whole, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from baton.cluster.prices import Line, PriceBook, Prices
from cluster.ray_front import Front, assert_same, front_on_ray, needs_ray, placing, wait_until
from warm import WarmProcess

pytestmark = needs_ray


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with front_on_ray() as front:
        yield front


@pytest.fixture(scope="module")
async def uncut(front: Front) -> list[Any]:
    """What all requests are answered while nothing happens."""
    answers = await front.answers()
    assert all(answer.whole for answer in answers), [answer.trouble for answer in answers]
    return answers


@contextlib.contextmanager
def prices(front: Front, *, fill: Line, move: Line) -> Iterator[None]:
    """Computing and moving keys and values are said to cost so much, whatever is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriceBook, "heard", lambda *_: None)
        patch.setattr(front.loop._prices, "_last", Prices(fill, 0.0, move, move))
        front.loop._prices._prices.clear()
        yield


async def test_a_rolling_update_replaces_all_engines(front: Front, uncut: list[Any]) -> None:
    """Each leaves in peace, and hands over tokens alone if that is sooner."""
    before, recomputed = front.engines.names(), front.recomputed
    with prices(front, fill=Line(0.0, 0.0), move=Line(1.0, 0.0)):
        assert_same(await front.answers(lambda: front.deploy(placing(2), "2")), uncut)
    await asyncio.to_thread(front.has, 2)
    assert not {*before} & {*front.engines.names()}
    assert front.recomputed > recomputed


async def test_fewer_engines_compute_nothing_again_where_keys_and_values_go_along(
    front: Front, uncut: list[Any]
) -> None:
    before, recomputed, moved = front.engines.names(), front.recomputed, front.client.stats().outcomes.get("moved", 0)
    with prices(front, fill=Line(1.0, 0.0), move=Line(0.0, 0.0)):
        assert_same(await front.answers(lambda: front.deploy(placing(1), "2")), uncut)
    await asyncio.to_thread(front.has, 1)
    assert {*front.engines.names()} < {*before}
    assert front.recomputed == recomputed and front.client.stats().outcomes["moved"] > moved


async def test_another_model_beside_ours_gets_nothing(front: Front, uncut: list[Any]) -> None:
    """An update to other weights: what is live stays where it is until it ends."""
    before = front.engines.names()
    assert_same(await front.answers(lambda: front.deploy(placing(1), "3", dtype="bfloat16")), uncut)
    await asyncio.to_thread(wait_until, lambda: not front.engines.names())
    assert front.client.not_ready() == "no engine is there"
    await asyncio.to_thread(front.deploy, placing(1), "4")
    await asyncio.to_thread(front.has, 1)
    assert not {*before} & {*front.engines.names()}


def test_engines_end_with_a_front_that_is_killed(front: Front) -> None:
    """On a Ray that goes on without it."""
    import ray
    from ray import serve

    address = ray.get_runtime_context().gcs_address
    words = ["-m", "baton", "serve", "--port", "0", "--replicas", "1", "--replica-cpus", "1", "--ray-address", address]
    here = front.engines.names()
    command = WarmProcess(words)
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
        assert front.engines.names() == here
    finally:
        command.kill()
        command.wait()
