"""How many replicas are wanted: Little's law on the last minute, and no more for a long queue than it needs."""

from __future__ import annotations

import pytest

from baton.observe.replicas import Load, Wanted


def load_of(rate: float, served_seconds: float, row_bytes: float = 1000.0, until: float = 60.0) -> Load:
    load = Load()
    for number in range(int(rate * until)):
        time = number / rate
        load.arrived(time)
        load.ended(time, served_seconds)
        load.iterated(time, row_bytes)
    return load


def test_the_rows_that_arrivals_keep_busy_by_littles_law() -> None:
    wanted = load_of(rate=2, served_seconds=8).wanted(59.9, waiting=0, max_rows=8, kv_bytes_budget=10**9)
    assert wanted.rows == pytest.approx(2 * 8 / (0.8 * 8)) and wanted.replicas == 3


def test_memory_may_be_what_is_short() -> None:
    wanted = load_of(rate=2, served_seconds=8).wanted(59.9, waiting=0, max_rows=64, kv_bytes_budget=5000)
    assert wanted.memory == pytest.approx(16 * 1000 / (0.8 * 5000)) and wanted.replicas == 4


def test_those_who_wait_count_as_if_they_came_within_a_minute() -> None:
    load = load_of(rate=1, served_seconds=4)
    settled = load.wanted(59.9, waiting=0, max_rows=8, kv_bytes_budget=10**9)
    queued = load.wanted(59.9, waiting=256, max_rows=8, kv_bytes_budget=10**9)
    assert settled.replicas == 1
    assert queued.rows == pytest.approx((60 + 256) / 60 * 4 / 6.4) and queued.replicas == 4


def test_one_is_wanted_where_nothing_happens_or_nothing_is_known() -> None:
    assert Load().wanted(5.0, waiting=9, max_rows=8, kv_bytes_budget=100) == Wanted(0.0, 0.0)
    assert Wanted(0.0, 0.0).replicas == 1
    assert load_of(2, 8).wanted(200.0, waiting=0, max_rows=8, kv_bytes_budget=100).replicas == 1


def test_a_whole_number_is_not_rounded_up() -> None:
    assert Wanted(2.0, 0.0).replicas == 2 and Wanted(2.1, 0.0).replicas == 3


def test_it_keeps_a_minute() -> None:
    load = load_of(rate=3, served_seconds=1, until=600)
    assert len(load._seconds) <= 61
    assert load.wanted(599.9, waiting=0, max_rows=1, kv_bytes_budget=10**9).rows == pytest.approx(3 / 0.8, rel=0.02)
