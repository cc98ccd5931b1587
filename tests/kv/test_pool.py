"""The pool owns segments within its bytes, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch

from baton.core.errors import Refused
from baton.kv.pool import SegmentPool
from baton.kv.segment import KVSegment, arrived
from random_batch import query_of


def kept(name: str, size: int) -> KVSegment:
    """A segment that keeps so many bytes."""
    segment = arrived(query_of(name, [3, 4], 2), "stamp")
    segment.parts, segment.cached = [torch.zeros(size, dtype=torch.uint8)], 1
    return segment


def test_what_is_put_in_is_counted_and_comes_back() -> None:
    pool, segment = SegmentPool(100), kept("a", 60)
    pool.put(segment)
    pool.put(kept("b", 40))
    assert (list(pool), len(pool), pool.bytes_used, "a" in pool) == (["a", "b"], 2, 100, True)
    assert pool.pop("a") is segment
    assert (list(pool), pool.bytes_used, "a" in pool) == (["b"], 40, False)


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    pool = SegmentPool(100)
    pool.put(kept("a", 60))
    with pytest.raises(Refused, match="41 bytes, the pool has 40 left"):
        pool.put(kept("b", 41))
    with pytest.raises(Refused, match="in the pool already"):
        pool.put(kept("a", 1))
    with pytest.raises(Refused, match="not in the pool"):
        pool.pop("b")
    assert (list(pool), pool.bytes_used) == (["a"], 60)


def test_a_segment_that_keeps_nothing_fits_into_a_full_pool() -> None:
    pool = SegmentPool(0)
    pool.put(arrived(query_of("a", [3], 2), "stamp"))
    pool.put(kept("b", 0))
    assert (len(pool), pool.bytes_used) == (2, 0)


def test_what_was_taken_out_of_a_segment_meanwhile_leaves_the_count_right() -> None:
    pool, segment = SegmentPool(100), kept("a", 60)
    pool.put(segment)
    segment.release()
    assert pool.pop("a").bytes == 0
    assert pool.bytes_used == 0


def test_a_pool_that_was_made_smaller_refuses_until_it_is_emptied() -> None:
    pool = SegmentPool(100)
    pool.put(kept("a", 60))
    pool.bytes_most = 50
    with pytest.raises(Refused):
        pool.put(kept("b", 1))
    pool.pop("a")
    pool.put(kept("b", 50))
