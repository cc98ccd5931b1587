"""Rows and pool may take what was set, and less while the machine has less; the pool gives way first."""

from __future__ import annotations

import pytest
import torch

from baton.kv.budget import SPARE_BYTES, Budget, out_of_memory
from baton.testing.clock import ManualClock


class Machine:
    """A machine with so many free bytes above what is spared."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked = 0
        self.clock = ManualClock()

    def __call__(self) -> int:
        self.asked += 1
        return self.free + SPARE_BYTES

    def budget(self, *, lazy: bool = True) -> Budget:
        return Budget(100, 50, floor_bytes=30, free_bytes=self, clock=self.clock, lazy=lazy)


def looked(free: int, rows_used: int = 0, swap_used: int = 0, *, lazy: bool = True) -> tuple[int, int]:
    budget = Machine(free).budget(lazy=lazy)
    budget.update(rows_used, swap_used)
    return budget.rows_bytes, budget.swap_bytes


def test_with_memory_enough_what_was_set_holds() -> None:
    assert looked(150) == looked(10**9) == (100, 50)


def test_the_pool_gives_way_first_and_then_the_rows() -> None:
    assert looked(149) == (100, 49)
    assert looked(100) == (100, 0)
    assert looked(99) == (99, 0)


def test_what_they_take_already_is_theirs() -> None:
    assert looked(0, rows_used=80, swap_used=40) == (100, 20)
    assert looked(0, rows_used=60, swap_used=10) == (70, 0)


def test_the_longest_query_always_fits() -> None:
    assert looked(0) == (30, 0)
    assert looked(-SPARE_BYTES, rows_used=10) == (30, 0)


def test_rows_that_were_allocated_at_once_have_theirs() -> None:
    assert looked(20, rows_used=5, lazy=False) == (100, 20)
    assert looked(0, swap_used=7, lazy=False) == (100, 7)


@pytest.mark.parametrize("lazy", [True, False])
def test_where_the_pool_is_in_other_memory_neither_gives_way_to_the_other(lazy: bool) -> None:
    device, host = Machine(60), Machine(20)
    budget = Budget(100, 50, floor_bytes=30, free_bytes=device, clock=device.clock, lazy=lazy, swap_free_bytes=host)
    budget.update(15, 7)
    assert (budget.rows_bytes, budget.swap_bytes) == (75 if lazy else 100, 27)
    device.free, host.free = 1000, -30
    device.clock.advance(2)
    budget.update(15, 7)
    assert (budget.rows_bytes, budget.swap_bytes) == (100, 0)


def test_more_may_be_left_to_others() -> None:
    spare = SPARE_BYTES + 60
    budget = Budget(100, 0, floor_bytes=10, free_bytes=Machine(110), clock=ManualClock(), spare_bytes=spare)
    budget.update(0, 0)
    assert budget.rows_bytes == 50


def test_it_shrinks_and_grows_back_and_asks_once_a_second() -> None:
    machine = Machine(1000)
    budget = machine.budget()
    for free, expected in ((1000, (100, 50)), (60, (60, 0)), (120, (100, 20)), (1000, (100, 50))):
        machine.free = free
        budget.update(0, 0)
        assert (budget.rows_bytes, budget.swap_bytes) == expected
        machine.free = -1000
        machine.clock.advance(0.9)
        budget.update(0, 0)
        assert (budget.rows_bytes, budget.swap_bytes) == expected, "not asked again within a second"
        machine.clock.advance(0.2)
    assert machine.asked == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("no"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_an_allocators_error_is_known(error: Exception) -> None:
    assert out_of_memory(error)


def test_torchs_own_error_for_too_much_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("out of memory"), OSError(12, "memory")])
def test_other_errors_are_not_of_memory(error: Exception) -> None:
    assert not out_of_memory(error)
