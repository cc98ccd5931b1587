"""What rows keep, packed and copied out and in: to the bit, in as many launches for any model, whole or not at all."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from baton.cuda.offload import HostOffload, trial
from baton.cuda.packed_rows import Packed
from baton.cuda.pinned_memory import HostMemory
from baton.kv.prefix import PrefixStore, prefix_store
from baton.kv.rectangle import LayerShape, Rectangle, StateShape
from baton.testing.late_lane import LateLane
from random_batch import Spoiled, late_offload

CPU = torch.device("cpu")
MIXED = (
    LayerShape(heads=1, key_dim=3, value_dim=5, window=6),
    LayerShape(heads=2, key_dim=4, value_dim=4, states=(StateShape((3, 5), torch.float32),)),
    LayerShape(states=(StateShape((1,), torch.float64), StateShape((7,), torch.bfloat16))),
)


def rectangle_of(*shapes: LayerShape, dtype: torch.dtype = torch.bfloat16, capacity: int = 3) -> Rectangle:
    """Full of numbers, each buffer of others."""
    made = Rectangle(shapes, capacity=capacity, columns=200, dtype=dtype, device=torch.device("cpu"))
    for buffer in made._buffers:
        buffer.tensor.normal_()
    return made


def uniform(layers: int) -> list[LayerShape]:
    return [LayerShape(heads=2, key_dim=4, value_dim=4)] * layers


def same(some: Any, others: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def copied(parts: Any) -> list[Tensor]:
    return [part.clone() for part in parts]


class Launches(TorchDispatchMode):
    """Counts what a device would be asked to do."""

    VIEWS = frozenset(
        {"view", "slice", "select", "_unsafe_view", "alias", "as_strided", "expand", "empty", "detach", "split"}
    )

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in self.VIEWS:
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("count", [1, 5, 6, 77])
def test_a_row_comes_back_as_it_left_while_its_place_is_another_s(count: int) -> None:
    rectangle, offload = rectangle_of(*MIXED), late_offload()
    rectangle.lens[1] = count
    expected = copied(rectangle.view(1))
    packed = Packed(offload.out(rectangle.view(1)).pieces)
    for part in rectangle.view(1):
        part.fill_(torch.inf)
    assert packed.bytes == sum(part.nbytes for part in expected)
    rectangle.lens[2] = count
    arrival = offload.into(packed, rectangle.view(2))
    offload.release(packed)
    # The next query gets the host's memory.
    offload.out(rectangle.view(1))
    assert [arrival.done() for _ in range(3)] == [False, False, True]
    arrival.land()
    arrival.land()
    assert same(rectangle.view(2), expected)


@pytest.mark.parametrize("count", [1, 6, 77])
def test_rows_that_lie_token_by_token_come_back_as_they_left(count: int) -> None:
    """As if memory is mapped by pages: a row's part is not one run of bytes."""
    kept = torch.randn(3, 200, 5, 3).bfloat16()
    states = torch.randn(3, 9)
    offload = late_offload()

    def row(at: int) -> list[Tensor]:
        return [kept[at, :count, :2], kept[at, :count, 2:4], kept[at, : min(count, 6), 4:], states[at, 1:8]]

    packed = Packed(offload.out(row(0)).pieces)
    assert same(packed, row(0))
    offload.into(packed, row(1)).land()
    assert same(row(0), row(1))
    blocks = offload.out([part for part in row(0)[:2]], blocks=count, checked=True)
    offload.into(Packed(blocks.pieces), row(2)[:2]).land()
    assert same(row(0)[:2], row(2)[:2])
    assert blocks.fine is not None and blocks.fine.tolist() == [True] * count


def test_as_a_sequence_it_is_the_row_s_parts() -> None:
    rectangle, offload = rectangle_of(*MIXED), late_offload(100)
    rectangle.lens[0] = 20
    packed = Packed(offload.out(rectangle.view(0)).pieces)
    assert len(packed) == len(rectangle.view(0)) and same(packed, rectangle.view(0))
    # They are views of what was copied.
    assert {part.untyped_storage().data_ptr() for part in packed} == {offload.host._slabs[0].data_ptr()}


def test_what_lands_before_it_is_asked_for_is_waited_for() -> None:
    rectangle, offload = rectangle_of(*uniform(2)), late_offload(100)
    rectangle.lens[:2] = [9, 9]
    packed = Packed(offload.out(rectangle.view(0)).pieces)
    arrival = offload.into(packed, rectangle.view(1))
    assert not arrival.done()
    arrival.land()
    assert arrival.done() and same(rectangle.view(0), rectangle.view(1))


def test_who_reads_before_it_is_there_reads_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: without waiting, the tests would notice."""
    rectangle, offload = rectangle_of(*uniform(1)), late_offload()
    rectangle.lens[:2] = [9, 9]
    packed = Packed(offload.out(rectangle.view(0)).pieces)
    monkeypatch.setattr("baton.testing.late_lane._LateMark.join", lambda self: None)
    offload.into(packed, rectangle.view(1)).land()
    assert all(part.isnan().all() for part in rectangle.view(1))


def test_a_row_leaves_and_comes_in_as_many_launches_for_any_number_of_layers() -> None:
    counts = []
    for layers in (2, 24):
        rectangle, offload = rectangle_of(*uniform(layers)), late_offload(0)
        rectangle.lens[:2] = [100, 100]
        with Launches() as launches:
            arrival = offload.into(Packed(offload.out(rectangle.view(0)).pieces), rectangle.view(1))
            assert arrival.done()
            arrival.land()
        counts.append(launches.launches)
    # To the host and back, and the bytes that the stand-in spoils.
    assert counts[0] == counts[1] == {"cat": 1, "split_with_sizes_copy": 1, "copy_": 2, "fill_": 1, "full": 1}


def test_much_is_copied_bit_by_bit_so_that_others_get_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.cuda.offload.AT_ONCE_BYTES", 1000)
    rectangle, offload = rectangle_of(*uniform(3)), late_offload(0)
    rectangle.lens[:2] = [100, 100]
    with Launches() as launches:
        offload.into(Packed(offload.out(rectangle.view(0)).pieces), rectangle.view(1)).land()
    assert same(rectangle.view(0), rectangle.view(1))
    assert launches.launches["copy_"] == 2 * -(-sum(part.nbytes for part in rectangle.view(0)) // 1000)


def test_blocks_are_stored_and_found_in_as_many_launches_for_any_number_and_nobody_waits() -> None:
    counts = []
    for layers, tokens in ((2, 64), (12, 192)):
        lane = LateLane(1)
        offload = HostOffload(lane, Spoiled(lane, 2**24), 2**20)
        rectangle = rectangle_of(*uniform(layers))
        store, text = prefix_store(rectangle, block=8, offload=offload), list(range(tokens + 1))
        store.limit(2**22)
        rectangle.lens[:2] = [tokens, tokens]
        with Launches() as launches:
            assert store.store(text, rectangle.view(0), tokens) == tokens
            assert store.find(text) is None
            kept = store.find(text)
            assert kept is not None and kept[0] == tokens and isinstance(kept[1], Packed)
            arrival = offload.into(kept[1], rectangle.view(1))
        assert lane.waits == 0
        arrival.land()
        assert same(rectangle.view(0), rectangle.view(1))
        counts.append(launches.launches)
    assert counts[0] == counts[1]
    assert counts[0]["copy_"] == 2 and sum(counts[0].values()) < 14


def stored(rectangle: Rectangle, polls: int = 100) -> tuple[PrefixStore, HostOffload]:
    offload = late_offload(polls)
    store = prefix_store(rectangle, block=8, offload=offload)
    store.limit(2**22)
    rectangle.lens[0] = 24
    return store, offload


def test_what_is_on_its_way_is_not_found_and_not_stored_again_and_who_holds_it_waits() -> None:
    rectangle = rectangle_of(*uniform(2))
    (store, offload), text = stored(rectangle), list(range(30))
    assert store.store(text, rectangle.view(0), 16) == 16
    used = offload.host.used_bytes
    assert store.find(text) is None
    assert store.store(text, rectangle.view(0), 16) == 16 and offload.host.used_bytes == used == store.bytes_used
    assert store.store(text, rectangle.view(0), 20, whole=True) == 20
    assert store.hold("a", text[:20]) == 16
    assert store.hold("a", text) == 20 and store.bytes_held == store.bytes_used
    kept = store.find(text)
    rectangle.lens[0] = 20
    assert kept is not None and same(kept[1], rectangle.view(0))


def test_what_follows_what_is_not_finite_is_not_found_either() -> None:
    rectangle = rectangle_of(*uniform(3))
    (store, offload), text = stored(rectangle), list(range(30))
    rectangle.values[2][0, 9, 1, 2] = torch.inf
    store.store(text, rectangle.view(0), 16)
    rectangle.values[2][0, 9, 1, 2] = 1.0
    # Of a row that was mended meanwhile: what it follows will never be there.
    assert store.store(text, rectangle.view(0), 24) == 24
    assert store.hold("a", text) == 8
    store.release("a")
    assert offload.host.used_bytes == store.bytes_used > 0
    assert store.store(text, rectangle.view(0), 24) == 24
    assert store.hold("a", text) == 24


def test_what_leaves_while_it_is_on_its_way_gives_its_memory_back() -> None:
    rectangle = rectangle_of(*uniform(2))
    (store, offload), text = stored(rectangle), list(range(30))
    store.store(text, rectangle.view(0), 24)
    assert store.limit(0)
    assert offload.host.used_bytes == store.bytes_used == 0
    store.limit(2**22)
    assert store.store(text, rectangle.view(0), 24) == 24
    assert store.hold("a", text) == 24


def test_where_there_is_no_memory_to_gather_nothing_is_kept_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rectangle = rectangle_of(*uniform(2))
    (store, offload), text = stored(rectangle), list(range(30))

    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("baton.cuda.offload.gather", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        offload.out(rectangle.view(0))
    with pytest.raises(torch.OutOfMemoryError):
        store.store(text, rectangle.view(0), 20, whole=True)
    assert offload.host.used_bytes == store.bytes_used == 0
    assert store.find(text) is None


def test_copies_take_no_more_of_the_device_than_they_may_or_one_row() -> None:
    rectangle = rectangle_of(*uniform(2), capacity=8)
    lane = LateLane(100)
    row = sum(part.nbytes for part in rectangle.view(0)) or 2 * 2 * 8 * 2 * 50
    offload = HostOffload(lane, Spoiled(lane, 2**20), 2 * row)
    rectangle.lens[:] = [50] * 8
    packed = [Packed(offload.out(rectangle.view(at)).pieces) for at in range(4)]
    assert (len(offload._underway), lane.waits) == (2, 2)
    arrivals = [offload.into(one, rectangle.view(4 + at)) for at, one in enumerate(packed)]
    # The first two had to be in their rows before there was room for the others.
    assert [arrival.over() for arrival in arrivals] == [True, True, False, False]
    assert same(rectangle.view(0), rectangle.view(4)) and same(rectangle.view(1), rectangle.view(5))
    arrivals[2].cancel()
    arrivals[3].land()
    assert same(rectangle.view(3), rectangle.view(7)) and not same(rectangle.view(2), rectangle.view(6))


def test_without_pinned_memory_it_is_as_right() -> None:
    def refused(size: int) -> Tensor:
        raise RuntimeError("cannot lock\nmemory")

    rectangle = rectangle_of(*MIXED)
    host = HostMemory(2**20, pin=refused)
    offload = HostOffload(LateLane(0), host, 2**20)
    rectangle.lens[:2] = [20, 20]
    offload.into(Packed(offload.out(rectangle.view(0)).pieces), rectangle.view(1)).land()
    assert same(rectangle.view(0), rectangle.view(1))
    assert (host.trouble, host.pinned_bytes, host.unpinned_pieces) == ("cannot lock", 0, 1)


def test_the_trial_says_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    offload = late_offload()
    assert trial(offload, CPU) == "" and offload.host.used_bytes == 0
    with monkeypatch.context() as patched:
        patched.setattr("baton.testing.late_lane._LateMark.join", lambda self: None)
        assert trial(late_offload(), CPU) == "what came back is not what left"
    with monkeypatch.context() as patched:
        patched.setattr("baton.cuda.offload.finite", lambda form, staging: torch.ones(len(staging), dtype=torch.bool))
        assert trial(late_offload(), CPU) == "what came back is not what left"
    monkeypatch.setattr("baton.cuda.offload.scatter", Mock(side_effect=RuntimeError("no such kernel\nat all")))
    assert trial(late_offload(), CPU) == "RuntimeError: no such kernel"
