"""On a GPU: first light's families in float32, in a batch that is shaken, give what each query gives alone.

And so they do in memory that is mapped as rows grow.
"""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from baton.core.sampling import SamplingParams
from baton.cuda.async_stepper import AsyncStepper
from baton.cuda.decode_steps import Steps
from baton.cuda.forward import CudaForward
from baton.cuda.graphs import Graphs
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.placement import gains
from baton.cuda.prefill_stream import PrefillStreamStepper
from baton.cuda.slots import Chance, Slot, follows
from baton.cuda.streams import Streams
from baton.cuda.virtual_memory import CudaDriver, trial
from baton.kv.rectangle import LayerShape, Rectangle
from baton.loader.choose import choose
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from baton.sampling.draw import filters_of
from families import CONTEXT, model_of
from random_batch import RandomBatch, Shaken, alone, query_of, random_batch, some_queries

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("policy", [Baton, Orca])
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str, policy: type[Policy]) -> None:
    queries = some_queries(14, random.Random(3))
    model = model_of(family).to("cuda")  # type: ignore[arg-type]
    expected = {query.id: alone(model, query)[0] for query in queries}
    dice = random.Random(1)
    batch = random_batch(model, Shaken(policy(), dice), ahead=True)
    assert isinstance(batch.rows.stepper, AsyncStepper), batch.rows.feeder.forward
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected


def drawing(captured: bool, monkeypatch: pytest.MonkeyPatch) -> RandomBatch:
    """Queries that draw at random in every way that the device has, in a batch."""
    begin = Steps.__init__
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "__init__", lambda self, *of, **how: begin(self, *of, **{**how, "capture": captured}))
        return _drawing()


def _drawing() -> RandomBatch:
    ways: list[dict[str, object]] = [
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
        {"temperature": 3.0, "top_p": 0.999},
    ]
    batch = random_batch(model_of("llama").to("cuda"), Baton(), ahead=True)  # type: ignore[arg-type]
    batch.run([query_of(f"q{i}", [3 + i] * (1 + i), 20, seed=i, **ways[i % 4]) for i in range(12)])
    return batch


def test_captured_draws_are_those_that_are_launched_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"q{i}" for i in range(12)]
    expected, batch = drawing(False, monkeypatch), drawing(True, monkeypatch)
    assert [batch.tokens(name) for name in names] == [expected.tokens(name) for name in names]
    assert isinstance(batch.rows.stepper, AsyncStepper)
    made = batch.rows.stepper._steps._made.values()
    assert any(step.draws for step in made)
    assert not [record for record in caplog.records if record.name == "baton.model"]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_warmed_step_waits_for_nothing(family: str, dtype: torch.dtype) -> None:
    """Torch raises at whatever makes the host wait for the device."""
    forward = choose(model_of(family).to("cuda", dtype)).forward  # type: ignore[arg-type]
    assert isinstance(forward, CudaForward)
    shapes, device = forward.geometry.shapes, torch.device("cuda")
    steps = forward.steps(Rectangle(shapes, capacity=3, columns=CONTEXT, dtype=dtype, device=device))
    assert steps is not None
    steps.warm(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for turn, chance in enumerate(
            (
                Chance(),
                Chance(1.0, seed=7),
                Chance(1.0, filters_of(SamplingParams(top_k=5, top_p=0.9, min_p=0.1)), seed=7),
            )
        ):
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


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("interleaved", [True, False])
def test_a_batch_on_mapped_memory_gives_what_each_query_gives_alone(family: str, interleaved: bool) -> None:
    queries = some_queries(14, random.Random(3))
    model = model_of(family).to("cuda")  # type: ignore[arg-type]
    expected = {query.id: alone(model, query)[0] for query in queries}
    driver, dice = CudaDriver(torch.device("cuda")), random.Random(1)
    # A page has room for a whole row: so many rows at once, on pages that they take from each other.
    kv_bytes = (8 if interleaved else 40) * driver.granularity
    batch = random_batch(
        model, Shaken(Baton(), dice), ahead=True, driver=driver, interleaved=interleaved, kv_bytes=kv_bytes
    )
    assert isinstance(batch.rows.stepper, AsyncStepper) and batch.rows.rectangle.mapped, batch.rows
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected


def test_rows_grow_by_pages_and_take_those_that_others_have_left() -> None:
    """At the shape of an 8B model, 64 tokens to a page; also from a thread that did not make the rectangle."""
    device = torch.device("cuda")
    driver = CudaDriver(device)
    trial(driver)
    shapes = [LayerShape(8, 128, 128)] * 32
    of: dict[str, Any] = {"columns": 1024, "dtype": torch.bfloat16, "device": device}
    mapped = MappedRectangle(shapes, capacity=2000, driver=driver, most_bytes=2**29, **of)
    plain = Rectangle(shapes, capacity=1, **of)
    with ThreadPoolExecutor(1) as thread:
        for row, count in ((1999, 1000), (3, 1024), (1999, 64), (700, 1), (4, 1024), (5, 900)):
            parts = [torch.randn(count, 8, 128, dtype=torch.bfloat16, device=device) for _ in range(64)]
            plain.write(0, parts, count)
            thread.submit(mapped.write, row, parts, count).result()
            mapped_parts = thread.submit(mapped.view, row).result()
            assert all(torch.equal(a, b) for a, b in zip(mapped_parts, plain.view(0), strict=True))
            mapped.clear(row)
    # Four rows of 128 MiB each fit the budget; five were written.
    assert 2**28 < mapped.spare_bytes <= 2**29
    assert mapped.release_unused() and mapped.spare_bytes == 0


def test_memory_that_the_device_has_not_is_refused_as_such() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        CudaDriver(torch.device("cuda")).create(2**42)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe"])
def test_prompts_on_a_stream_of_their_own_give_the_same(family: str, seed: int) -> None:
    dice = random.Random(seed)
    queries = some_queries(14, dice)
    model = model_of(family).to("cuda")  # type: ignore[arg-type]
    expected = {query.id: alone(model, query)[0] for query in queries}
    batch = random_batch(model, Shaken(Baton(), dice), ahead=True, side=Streams, prefix_cache=True, prefix_block=8)
    rows = batch.rows
    stepper = rows.stepper
    assert rows is not None and isinstance(stepper, PrefillStreamStepper)
    # It leaves nothing over.
    assert min(gains(rows, stepper, range(4), range(4, 9)).values()) > 0
    begun = []
    begin = stepper._side.begin
    stepper._side.begin = lambda work, *, behind: begun.append(behind) or begin(work, behind=behind)  # type: ignore[method-assign]
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert len(begun) > 5
