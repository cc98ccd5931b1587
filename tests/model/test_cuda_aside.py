"""On a GPU: rows leave on a stream of copies and come back while steps run, and everyone gives what it gives alone."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from baton.cuda.copy_stream import CudaCopyStream
from baton.cuda.offload import HostOffload
from baton.cuda.packed_rows import Packed
from baton.cuda.pinned_memory import HostMemory
from baton.kv.prefix import prefix_store
from baton.kv.rectangle import LayerShape, Rectangle, StateShape
from baton.policy.baton import Baton
from families import VOCABULARY, model_of
from random_batch import Shaken, alone, query_of, random_batch, some_queries

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
CUDA = torch.device("cuda")


def real_offload(staged: int = 2**28) -> HostOffload:
    return HostOffload(CudaCopyStream(CUDA), HostMemory(2**28), staged)


def rectangle_of(layers: int = 4, columns: int = 2000) -> Rectangle:
    states = (StateShape((3, 5), torch.float32),)
    shapes = [LayerShape(heads=4, key_dim=64, value_dim=64)] * layers + [LayerShape(states=states)]
    rectangle = Rectangle(shapes, capacity=8, columns=columns, dtype=torch.bfloat16, device=CUDA)
    for buffer in rectangle._buffers:
        buffer.tensor.normal_()
    return rectangle


def busy() -> Tensor:
    """Keeps the device's own stream busy for a while."""
    numbers = torch.randn(4096, 4096, device=CUDA)
    for _ in range(20):
        numbers = (numbers @ numbers).clamp(-1, 1)
    return numbers


@pytest.mark.parametrize("staged", [2**28, 1])
def test_rows_come_back_to_the_bit_while_the_device_is_busy_and_their_places_are_others(staged: int) -> None:
    rectangle, offload = rectangle_of(), real_offload(staged)
    rectangle.lens[:] = [1999, 1, 700, 1500, 0, 0, 0, 0]
    expected = [[part.clone() for part in rectangle.view(row)] for row in range(4)]
    for _ in range(5):
        busy()
        packed = []
        for row in range(4):
            packed.append(Packed(offload.out(rectangle.view(row)).pieces))
            for part in rectangle.view(row):
                part.fill_(torch.inf)
        rectangle.lens[4:] = rectangle.lens[:4]
        arrivals = [offload.into(one, rectangle.view(4 + row)) for row, one in enumerate(packed)]
        for one in packed:
            offload.release(one)
        for arrival in arrivals:
            arrival.land()
        for row in range(4):
            for target, source in zip(rectangle.view(row), rectangle.view(4 + row), strict=True):
                target.copy_(source)
                source.fill_(torch.nan)
    torch.cuda.synchronize()
    for row in range(4):
        assert all(map(torch.equal, rectangle.view(row), expected[row]))
    assert offload.host.pinned_bytes == 2**28 and not offload.host.unpinned_pieces


def test_memory_that_is_not_pinned_gives_the_same() -> None:
    rectangle = rectangle_of()
    offload = HostOffload(CudaCopyStream(CUDA), HostMemory(0), 2**28)
    rectangle.lens[:2] = [1999, 1999]
    packed = Packed(offload.out(rectangle.view(0)).pieces)
    offload.into(packed, rectangle.view(1)).land()
    assert all(map(torch.equal, rectangle.view(0), rectangle.view(1)))
    assert all(torch.equal(part, kept.cpu()) for part, kept in zip(packed, rectangle.view(0), strict=True))


def test_stored_blocks_are_those_of_the_row_and_what_is_not_finite_is_not_found() -> None:
    shapes = [LayerShape(heads=4, key_dim=64, value_dim=64)] * 6
    rectangle = Rectangle(shapes, capacity=2, columns=1024, dtype=torch.bfloat16, device=CUDA)
    for buffer in rectangle._buffers:
        buffer.tensor.normal_()
    offload, text = real_offload(), list(range(1000))
    store = prefix_store(rectangle, offload=offload)
    store.limit(2**27)
    rectangle.lens[0] = 999
    rectangle.values[5][0, 700, 3, 63] = torch.nan
    busy()
    assert store.store(text, rectangle.view(0), 999) == 992
    assert store.hold("a", text) == 672
    prefix = store.find(text)
    assert prefix is not None and isinstance(prefix[1], Packed)
    rectangle.lens[:] = [672, 672]
    offload.into(prefix[1], rectangle.view(1)).land()
    assert all(map(torch.equal, rectangle.view(0), rectangle.view(1)))


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma3", "jamba", "deepseek_v3"])
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str) -> None:
    dice = random.Random(4)
    stem = [dice.randrange(3, VOCABULARY) for _ in range(30)]
    queries = [
        *some_queries(10, random.Random(3)),
        *(query_of(f"k{i}", [*stem, 5 + i, 9], 12, seed=50 + i) for i in range(6)),
    ]
    model = model_of(family).to("cuda")  # type: ignore[arg-type]
    expected = {query.id: alone(model, query)[0] for query in queries}
    shaken, offload = Shaken(Baton(), dice), real_offload()
    batch = random_batch(model, shaken, ahead=True, offload=offload, prefix_cache=True, prefix_block=4)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert min(shaken.moves.values()) > 0
    assert batch.engine.queries.prefixes.bytes_used == offload.host.used_bytes > 0
