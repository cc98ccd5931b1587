"""The host's memory for copies: divided without overlap, joined again, and never more of it pinned than may be."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from baton.cuda import pinned_memory as pinned
from baton.cuda.pinned_memory import Extent, HostMemory

SLAB = 1024


def plain(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "SLAB_BYTES", SLAB)


def grown(host: HostMemory) -> None:
    """The slab that is being pinned is there."""
    if host._coming is not None:
        host._coming.exception()


@pytest.mark.parametrize("seed", range(5))
def test_pieces_never_overlap_and_all_is_one_again_when_they_are_back(seed: int) -> None:
    dice, host = random.Random(seed), HostMemory(4 * SLAB + 5, pin=plain)
    live: list[tuple[Extent, int]] = []
    for turn in range(1, 400):
        if live and dice.random() < 0.5:
            extent, mark = live.pop(dice.randrange(len(live)))
            assert (extent.bytes == mark).all()
            # Piece by piece, as blocks of a prefix leave.
            half = extent.size // 2
            for part in [extent.cut(0, half), extent.cut(half, extent.size - half)] if half else [extent]:
                host.give(part)
            continue
        count, size = dice.choice([(1, dice.randint(1, 700)), (dice.randint(2, 9), 40)])
        extents = host.take(count, size)
        grown(host)
        assert sum(extent.size for extent in extents) == count * size
        assert all(extent.size % size == 0 for extent in extents)
        for extent in extents:
            extent.bytes.fill_(turn % 251)
            live.append((extent, turn % 251))
        assert host.used_bytes == sum(e.size for e, _ in live if e.slab is not None) <= host.pinned_bytes <= 4 * SLAB
    assert host.pinned_bytes == 4 * SLAB and host.unpinned_pieces
    for extent, _ in live:
        host.give(extent)
    assert (host._starts, host._sizes) == ([[0]] * 4, [[SLAB]] * 4)


@pytest.mark.parametrize(("most", "pins"), [(0, 0), (1, 1), (1000, 512), (SLAB, SLAB), (5000, 4096)])
def test_no_more_is_pinned_than_may_be(most: int, pins: int) -> None:
    host = HostMemory(most, longest=3000 if most == 5000 else 0, pin=plain)
    for _ in range(9):
        host.take(1, 400)
        grown(host)
    assert host.pinned_bytes == pins


def test_the_next_slab_is_pinned_before_the_last_is_full() -> None:
    host = HostMemory(2 * SLAB, pin=plain)
    host.take(1, SLAB // 2)
    assert host._coming is None
    host.take(1, 1)
    host.take(1, 1)
    grown(host)
    assert host.take(1, SLAB - 2)[0].slab == 1 and not host.unpinned_pieces


def test_what_cannot_be_pinned_later_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sizes: list[int] = []

    def pin(size: int) -> Tensor:
        sizes.append(size)
        if len(sizes) > 1:
            raise RuntimeError("no more")
        return plain(size)

    host = HostMemory(4 * SLAB, pin=pin)
    for _ in range(8):
        host.take(1, 300)
        grown(host)
    assert (len(sizes), host.trouble, host.pinned_bytes) == (2, "no more", SLAB)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert host.unpinned_pieces == 5
