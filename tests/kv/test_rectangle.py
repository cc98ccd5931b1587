"""The rectangle holds rows apart, commits memory as rows grow, and gives it back."""

from __future__ import annotations

import gc
import sys

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.kv.rectangle import LayerShape, Rectangle, StateShape, footprint

# The second layer's row is not a whole number of pages: 10 columns of 3 * 5 * 4 bytes.
SHAPES = (LayerShape(2, 8, 8), LayerShape(3, 5, 7))
CPU = torch.device("cpu")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is allocated at once")


def rectangle_of(capacity: int = 4, columns: int = 10, dtype: torch.dtype = torch.float32) -> Rectangle:
    return Rectangle(SHAPES, capacity=capacity, columns=columns, dtype=dtype, device=CPU)


def content(seed: int, count: int = 10) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dims = [(shape.heads, dim) for shape in SHAPES for dim in (shape.key_dim, shape.value_dim)]
    return [torch.randn(count, heads, dim, generator=generator) for heads, dim in dims]


def same(parts: list[Tensor], expected: list[Tensor], count: int) -> bool:
    return all(f.shape == e[:count].shape and torch.equal(f, e[:count]) for f, e in zip(parts, expected, strict=True))


def test_what_is_written_to_a_row_is_what_its_view_shows() -> None:
    rectangle = rectangle_of()
    rectangle.write(1, content(1), 7)
    rectangle.write(2, content(2), 10)
    assert rectangle.lens == [0, 7, 10, 0]
    assert same(rectangle.view(1), content(1), 7)
    assert same(rectangle.view(2), content(2), 10)
    assert same(rectangle.view(0), content(1), 0)


def test_a_write_copies() -> None:
    rectangle = rectangle_of()
    parts = content(1)
    rectangle.write(0, parts, 5)
    for tensor in parts:
        tensor.zero_()
    assert same(rectangle.view(0), content(1), 5)


def test_a_view_is_not_a_copy() -> None:
    rectangle = rectangle_of()
    rectangle.write(0, content(1), 5)
    rectangle.view(0)[0][4] = 42.0
    assert bool((rectangle.keys[0][0, 4] == 42.0).all())


def test_columns_beyond_a_write_are_left_alone() -> None:
    rectangle = rectangle_of()
    rectangle.write(0, content(1), 3)
    assert not rectangle.keys[0][0, 3:].any()
    assert not rectangle.values[1][0, 3:].any()


def test_a_cleared_row_reads_zero_and_its_neighbours_are_untouched() -> None:
    rectangle = rectangle_of()
    for row in range(4):
        rectangle.write(row, content(row), 10)
    rectangle.clear(2)
    assert rectangle.lens == [10, 10, 0, 10]
    assert not any(buffer[2].any() for buffer in (*rectangle.keys, *rectangle.values))
    for row in (0, 1, 3):
        assert same(rectangle.view(row), content(row), 10)


def test_clearing_takes_away_what_was_written_past_the_rows_length() -> None:
    """A forward that failed has written keys and values already: a NaN of it must not meet the row's next query."""
    rectangle = rectangle_of()
    rectangle.keys[0][1, 0] = torch.nan
    rectangle.clear(1)
    assert not rectangle.keys[0][1].any()


def test_a_cleared_row_can_be_written_again() -> None:
    rectangle = rectangle_of()
    rectangle.write(0, content(1), 10)
    rectangle.clear(0)
    rectangle.clear(0)
    rectangle.write(0, content(2), 4)
    assert same(rectangle.view(0), content(2), 4)


def test_a_move_takes_a_row_whole_and_leaves_its_place_empty() -> None:
    rectangle = rectangle_of()
    rectangle.write(3, content(3), 6)
    rectangle.write(1, content(1), 9)
    rectangle.move(3, 0)
    assert rectangle.lens == [6, 9, 0, 0]
    assert same(rectangle.view(0), content(3), 6)
    assert same(rectangle.view(1), content(1), 9)
    assert not rectangle.keys[0][3].any()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_are_those_of_the_pages_that_rows_have_written(dtype: torch.dtype, size: int) -> None:
    assert footprint(SHAPES, 4096, dtype, CPU).token_bytes == (2 * (8 + 8) + 3 * (5 + 7)) * size
    rectangle = rectangle_of(columns=4096, dtype=dtype)
    everyone = range(rectangle.capacity)
    assert rectangle.bytes_of(everyone) == 0
    rectangle.write(0, content(0), 3)
    rectangle.write(2, content(2, 1000), 1000)
    page = rectangle.footprint.page
    pages = sum(-(-1000 * width * size // page) for width in (16, 16, 15, 21))
    assert rectangle.bytes_of(everyone) == (4 + pages) * page
    rectangle.clear(2)
    assert rectangle.bytes_of(everyone) == 4 * page


def test_a_layer_with_a_window_keeps_that_much_and_states_are_kept_whole() -> None:
    state = StateShape((3, 5), torch.float64)
    shapes = (LayerShape(2, 8, 8), LayerShape(2, 8, 8, window=4), LayerShape(states=(state,)))
    rectangle = Rectangle(shapes, capacity=3, columns=10, dtype=torch.float32, device=CPU)
    assert rectangle.rings == [0, 4, 0]
    parts = [torch.randn(7, 2, 8), torch.randn(7, 2, 8), torch.randn(4, 2, 8), torch.randn(4, 2, 8)]
    kept = [*parts, torch.randn(3, 5, dtype=torch.float64)]
    rectangle.write(1, kept, 7)
    rectangle.move(1, 2)
    assert all(torch.equal(part, expected) for part, expected in zip(rectangle.view(2), kept, strict=True))
    assert rectangle.states[2][0].dtype == torch.float64
    assert not rectangle.states[2][0][1].any()
    page = rectangle.footprint.page
    assert rectangle.bytes_of([2]) == rectangle.footprint.of(7) == (4 if page > 1 else 0) * page + page


def test_a_window_as_long_as_the_rectangle_is_no_ring() -> None:
    rectangle = Rectangle([LayerShape(1, 4, 4, window=10)], capacity=1, columns=10, dtype=torch.float32, device=CPU)
    assert rectangle.rings == [0]


@linux_only
def test_a_row_begins_on_a_page_of_its_own() -> None:
    for buffer in (*rectangle_of().keys, *rectangle_of().values):
        assert buffer.stride(0) * buffer.element_size() % 4096 == 0
        assert buffer.data_ptr() % 4096 == 0


def resident() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


@linux_only
def test_memory_is_committed_as_rows_grow_and_goes_back_when_they_are_cleared() -> None:
    mib = 2**20
    shape = LayerShape(8, 64, 64)  # 4 KiB a token
    before = resident()
    rectangle = Rectangle([shape] * 4, capacity=64, columns=2048, dtype=torch.float32, device=CPU)
    reserved = sum(buffer.numel() * buffer.element_size() for buffer in (*rectangle.keys, *rectangle.values))
    assert reserved == 2048 * mib
    assert resident() - before < 16 * mib, "a reservation takes memory"
    tokens = torch.ones(1, 8, 64).expand(2048, 8, 64)
    rectangle.write(5, [tokens] * 8, 2048)
    rectangle.write(6, [tokens] * 8, 1024)
    grown = resident() - before
    assert 44 * mib < grown < 72 * mib, f"two rows of 32 and 16 MiB took {grown / mib:.0f} MiB"
    rectangle.clear(5)
    left = resident() - before
    assert left < grown - 28 * mib, f"{left / mib:.0f} of {grown / mib:.0f} MiB were kept"
    assert bool((rectangle.keys[3][6, :1024] == 1).all())


VERBS = st.tuples(st.sampled_from(["write", "clear", "move"]), st.integers(0, 3), st.integers(0, 10))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(VERBS, max_size=20))
def test_any_order_of_verbs_keeps_rows_apart(verbs: list[tuple[str, int, int]]) -> None:
    rectangle = rectangle_of()
    expected: dict[int, tuple[int, int]] = {}  # row -> whose content, how much of it
    for seed, (verb, row, count) in enumerate(verbs):
        if verb == "write" and row not in expected:
            rectangle.write(row, content(seed), count)
            expected[row] = (seed, count)
        elif verb == "clear":
            rectangle.clear(row)
            expected.pop(row, None)
        elif verb == "move" and row in expected and count % 4 not in expected:
            rectangle.move(row, count % 4)
            expected[count % 4] = expected.pop(row)
    for row in range(4):
        seed, count = expected.get(row, (0, 0))
        assert rectangle.lens[row] == count
        assert same(rectangle.view(row), content(seed), count)
        assert not rectangle.keys[0][row, count:].any()
    assert rectangle.bytes_of(range(4)) == sum(rectangle.footprint.of(count) for _, count in expected.values())


def test_rows_that_are_exchanged_are_where_the_other_was_and_nothing_is_copied() -> None:
    shapes = [LayerShape(heads=1, key_dim=2, value_dim=2)]
    rectangle = Rectangle(shapes, capacity=3, columns=8, dtype=torch.float32, device=torch.device("cpu"))
    parts = [torch.arange(6.0).view(3, 1, 2), -torch.arange(6.0).view(3, 1, 2)]
    rectangle.write(2, parts, 3)
    before = [part.data_ptr() for part in rectangle.view(2)]
    rectangle.swap_rows(2, 0)
    assert (rectangle.lens, rectangle.row_slots) == ([3, 0, 0], [2, 1, 0])
    assert [part.data_ptr() for part in rectangle.view(0)] == before
    assert all(torch.equal(ours, part) for ours, part in zip(rectangle.view(0), parts, strict=True))
    rectangle.clear(2)
    assert all(torch.equal(ours, part) for ours, part in zip(rectangle.view(0), parts, strict=True))
    rectangle.clear(0)
    assert not any(tensor[2].any() for tensor in (*rectangle.keys, *rectangle.values))


def test_a_step_writes_the_other_copy_of_a_rows_states() -> None:
    shape = LayerShape(states=(StateShape((2, 3), torch.float32, copies=2),))
    rectangle = Rectangle([shape], capacity=3, columns=8, dtype=torch.float32, device=CPU)
    rectangle.write(1, [torch.ones(2, 3)], 5)
    current, spare = rectangle.state_slots(1)
    rectangle.states[0][0][spare] = 2.0
    assert (rectangle.view(1)[0] == 1.0).all()
    rectangle.flip(1)
    assert (rectangle.view(1)[0] == 2.0).all()
    assert rectangle.state_slots(1) == (spare, current)
    # Copies follow a row's slot, and rows do not share any.
    rectangle.swap_rows(1, 2)
    assert (rectangle.view(2)[0] == 2.0).all()
    assert len({slot for row in range(3) for slot in rectangle.state_slots(row)}) == 6
    rectangle.move(2, 0)
    assert (rectangle.view(0)[0] == 2.0).all()
    # The moved row's memory was given back, of both copies.
    assert not rectangle.states[0][0][[current, spare]].any()


def test_copies_take_memory_and_are_no_other_states() -> None:
    one, two = (StateShape((64, 64), torch.float32, "a", copies=copies) for copies in (1, 2))
    single, double = (footprint([LayerShape(states=(state,))], 8, torch.float32, CPU) for state in (one, two))
    assert double.of(1) == 2 * single.of(1)
    assert repr(one) == repr(two)
