"""On a GPU: first light's families in float32, in a crowd that is shaken, give what each query gives alone."""

from __future__ import annotations

import random

import pytest
import torch

from baton.kv.rectangle import Rectangle
from baton.model.ahead import RowsAhead
from baton.model.choose import hook
from baton.model.device import Device
from baton.model.graphs import Graphs
from baton.model.slots import Chance, Slot, follows
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from crowd import Crowd, Shaken, alone, crowd_of, query_of, some_queries
from families import CONTEXT, model_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("policy", [Baton, Orca])
def test_a_shaken_crowd_gives_what_each_query_gives_alone(family: str, policy: type[Policy]) -> None:
    queries = some_queries(14, random.Random(3))
    model = model_of(family).to("cuda")
    expected = {query.id: alone(model, query)[0] for query in queries}
    dice = random.Random(1)
    crowd = crowd_of(model, Shaken(policy(), dice), ahead=True)
    assert isinstance(crowd.rows, RowsAhead), crowd.rows._forward.description
    crowd.run(queries, dice)
    assert {name: crowd.tokens(name) for name in expected} == expected


def drawing(captured: bool, monkeypatch: pytest.MonkeyPatch) -> Crowd:
    """Queries that draw at random in every way that the device has, in a crowd."""
    ways: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 3.0, "top_p": 0.999},
    ]
    monkeypatch.setattr(Device, "captures", captured)
    crowd = crowd_of(model_of("llama").to("cuda"), Baton(), ahead=True)
    crowd.run([query_of(f"q{i}", [3 + i] * (1 + i), 20, seed=i, **ways[i % 4]) for i in range(12)])
    return crowd


def test_captured_draws_are_those_that_are_launched_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"q{i}" for i in range(12)]
    expected, crowd = drawing(False, monkeypatch), drawing(True, monkeypatch)
    assert [crowd.tokens(name) for name in names] == [expected.tokens(name) for name in names]
    assert isinstance(crowd.rows, RowsAhead)
    made = crowd.rows._steps._made.values()
    assert any(step.draws for step in made) and not caplog.records


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_warmed_step_waits_for_nothing(family: str, dtype: torch.dtype) -> None:
    """Torch raises at whatever makes the host wait for the device."""
    forward = hook(model_of(family).to("cuda", dtype))
    shapes, device = forward.geometry.shapes, torch.device("cuda")
    steps = forward.steps(Rectangle(shapes, capacity=3, columns=CONTEXT, dtype=dtype, device=device))
    assert steps is not None, forward.description
    steps.warm(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for turn, chance in enumerate((Chance(), Chance(1.0, seed=7), Chance(1.0, 5, 0.9, 0.1, seed=7))):
            tokens = [follows(at) if turn else 7 for at in range(3)]
            last = steps.launch([Slot(at, token, turn + 1, chance) for at, token in enumerate(tokens)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(0 <= token < 160 for token in last.tokens())


def test_work_that_cannot_be_captured_leaves_what_can_be_as_it_was() -> None:
    made, numbers, stream = Graphs(), torch.arange(4.0, device="cuda"), torch.cuda.current_stream()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            made.captured(lambda: numbers + numbers.sum().item())
        assert torch.cuda.current_stream() == stream
    replay, left = made.captured(lambda: numbers * 2)
    torch.cuda.empty_cache()
    replay()
    assert left.tolist() == [0.0, 2.0, 4.0, 6.0]
