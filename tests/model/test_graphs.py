"""Steps and draws as captured work: with a stand-in for CUDA's graphs that spoils whatever their shared memory may.

The stand-in does nothing while it captures and leaves its results in one place. With each replay it spoils what all
graphs that were captured later have left, because their memory may be what this one computes in.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from baton.core.query import Query, SamplingParams
from baton.cuda import async_stepper as ahead
from baton.cuda import decode_steps as steps
from baton.cuda import graphs
from baton.cuda.decode_steps import Steps
from baton.cuda.ragged_attention import InTorch
from baton.cuda.slots import Chance, Slot
from baton.kv.rectangle import Rectangle
from baton.model.device import Device
from baton.policy.baton import Baton
from baton.sampling.draw import filters_of
from baton.sampling.on_device import Kind
from families import CONTEXT, model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch, some_queries, torch_forward_of


class OnHost:
    """See above. `touched`: what captured work writes, which is as before when it was captured."""

    touched: list[Tensor] = []

    def __init__(self) -> None:
        self.left: list[Tensor | None] = []
        self.replays = 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def captured(self, work: Callable[[], Tensor | None]) -> tuple[Callable[[], None], Tensor | None]:
        before = [tensor.clone() for tensor in self.touched]
        answered = work()
        for tensor, was in zip(self.touched, before, strict=True):
            tensor.copy_(was)
        left = None if answered is None else torch.full_like(answered, torch.nan)
        at = len(self.left)
        self.left.append(left)

        def replay() -> None:
            self.replays += 1
            out = work()
            for later in self.left[at:]:
                if later is not None:
                    later.fill_(torch.nan)
            if left is not None and out is not None:
                left.copy_(out)

        return replay, left


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[OnHost]]:
    """Devices capture, and that is how."""
    begin = Steps.__init__

    def beginning(self: Steps, hooked: Any, rectangle: Any, *others: Any, **options: Any) -> None:
        begin(self, hooked, rectangle, *others, **options)
        OnHost.touched = [self._drawn, *rectangle.keys, *rectangle.values]

    monkeypatch.setattr(steps, "Graphs", OnHost)
    monkeypatch.setattr(Device, "captures", True)
    monkeypatch.setattr(Steps, "__init__", beginning)
    yield OnHost
    OnHost.touched = []


def sampled(count: int) -> list[Query]:
    """Queries that draw in every way that the device has; some of them must be looked at again."""
    ways: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 0},
        {"temperature": 3.0, "top_p": 0.999},
    ]
    dice = random.Random(5)
    prompts = [[dice.randrange(3, 160) for _ in range(dice.randint(1, 30))] for _ in range(count)]
    return [query_of(f"q{i}", prompts[i], 20, seed=i, **ways[i % len(ways)]) for i in range(count)]


def run(queries: list[Query]) -> RandomBatch:
    dice = random.Random(1)
    batch = random_batch(model_of("llama"), Shaken(Baton(), dice), ahead=True)
    batch.run(queries, dice)
    return batch


@pytest.mark.parametrize("family", ["llama", "mistral_window", "qwen3_moe"])
def test_a_shaken_batch_of_captured_steps_gives_what_each_query_gives_alone(family: str, on_host: type[OnHost]) -> None:
    queries = some_queries(10, random.Random(3))
    expected = {query.id: alone(family, query)[0] for query in queries}
    dice = random.Random(1)
    batch = random_batch(model_of(family), Shaken(Baton(), dice), ahead=True)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected


def test_captured_draws_are_those_of_steps_one_by_one(on_host: type[OnHost], monkeypatch: pytest.MonkeyPatch) -> None:
    queries = sampled(20)
    plain = random_batch(model_of("llama"), Baton(), native=False)
    plain.run(queries)
    expected = {query.id: plain.tokens(query.id) for query in queries}
    batch = run(queries)
    assert {name: batch.tokens(name) for name in expected} == expected
    # Without a copy, a second look is at what the next step has left there.
    monkeypatch.setattr(ahead, "Kind", SimpleNamespace(FILTERED=None))
    batch = run(queries)
    assert {name: batch.tokens(name) for name in expected} != expected


def made() -> Steps:
    """Steps of three rows, captured."""
    forward = torch_forward_of(model_of("llama"))
    shapes, device = forward.geometry.shapes, torch.device("cpu")
    rectangle = Rectangle(shapes, capacity=3, columns=CONTEXT, dtype=torch.float32, device=device)
    return Steps(forward.hooked, rectangle, InTorch(), capture=True)


def test_a_draw_is_captured_when_it_is_first_needed(on_host: type[OnHost]) -> None:
    steps = made()
    tokens = [steps.launch([Slot(0, 7, 1, Chance(1.0, seed=3)), Slot(1, 9, 1)]).tokens() for _ in range(3)]
    assert tokens[0] == tokens[1] == tokens[2]
    (step,) = steps._made.values()
    assert set(step.draws) == {Kind.FREE}
    # Three steps; of the draws, one to see that it is right, and two instead of the work itself.
    assert isinstance(steps._graphs, OnHost) and steps._graphs.replays == 6


def test_what_is_warmed_needs_no_capture_later(on_host: type[OnHost]) -> None:
    steps = made()
    steps.warm(3)
    assert [size for size, _ in steps._made] == [1, 2, 4]
    assert all(set(step.draws) == {Kind.FREE, Kind.FILTERED} for step in steps._made.values())


@pytest.mark.parametrize("fault", ["not permitted when stream is capturing", "its graph draws other tokens"])
def test_a_draw_that_cannot_be_captured_is_launched_as_it_is(
    fault: str, on_host: type[OnHost], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = OnHost.captured

    def captured(self: OnHost, work: Callable[[], Tensor | None]) -> tuple[Callable[[], None], Tensor | None]:
        if not self.left:
            return right(self, work)
        if "graph" in fault:
            return lambda: None, None
        raise RuntimeError(f"{fault}\nand more")

    slots = [Slot(0, 7, 1, Chance(1.0, filters_of(SamplingParams(top_k=5)), seed=3)), Slot(1, 9, 1)]
    expected = made().launch(slots).tokens()
    monkeypatch.setattr(OnHost, "captured", captured)
    steps = made()
    with caplog.at_level(logging.WARNING):
        assert [steps.launch(slots).tokens() for _ in range(3)] == [expected] * 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == f"draws at random are launched behind each step, not as a graph: {fault}"


@pytest.mark.parametrize("closed", [False, True])
def test_a_capture_that_failed_is_closed(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch before 2.12 leaves it: on the capture's stream, and open. Newer torch has closed it."""
    log: list[object] = []

    @contextlib.contextmanager
    def capture(graph: object, **options: object) -> Iterator[None]:
        yield
        raise AssertionError("work has failed")

    def close(device: int, pool: object) -> None:
        log.append(("closed", device, pool))
        if closed:
            raise RuntimeError("not currently recording to mempool_id")

    for name, fake in {
        "graph_pool_handle": lambda: (0, 1),
        "current_stream": lambda: "before",
        "set_stream": log.append,
        "current_device": lambda: 3,
        "CUDAGraph": lambda: SimpleNamespace(replay=None),
        "graph": capture,
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", close, raising=False)

    def work() -> None:
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.Graphs().captured(work)
    assert log == ["before", ("closed", 3, (0, 1))]
