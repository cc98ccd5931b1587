"""Pages go to rows as they grow, from rows that need them no more, and back to the device."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.core.errors import SettingError
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.page_layout import PageLayout
from baton.cuda.virtual_memory import trial
from baton.kv.rectangle import LayerShape, Rectangle, StateShape
from baton.testing.host_driver import HostDriver

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
CPU = torch.device("cpu")
# Two layers that keep all, of different dims; a ring; states of two dtypes; and nothing at all.
STATES = (StateShape((3, 5), torch.float32), StateShape((7,), torch.float64))
SHAPES = (LayerShape(2, 8, 8), LayerShape(3, 5, 7), LayerShape(2, 8, 8, window=4), LayerShape(states=STATES))
COLUMNS = 300
ROWS = 4


def mapped(
    driver: HostDriver, shapes: Sequence[LayerShape] = SHAPES, *, interleaved: bool = True, **more: Any
) -> MappedRectangle:
    layout = PageLayout(shapes, COLUMNS, torch.float32, driver.granularity, interleaved=interleaved, page_tokens=1)
    of: dict[str, Any] = {"capacity": ROWS, "columns": COLUMNS, "dtype": torch.float32, "device": CPU}
    return MappedRectangle(shapes, driver=driver, layout=layout, **of, **more)


def plain() -> Rectangle:
    return Rectangle(SHAPES, capacity=ROWS, columns=COLUMNS, dtype=torch.float32, device=CPU)


def content(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dims = [(min(count, shape.window or count), shape.heads, dim) for shape in SHAPES[:3] for dim in _dims(shape)]
    parts = [torch.randn(*one, generator=generator) for one in dims]
    return parts + [torch.randn(*one.shape, generator=generator).to(one.dtype) for one in STATES]


def _dims(shape: LayerShape) -> tuple[int, int]:
    return shape.key_dim, shape.value_dim


VERBS = st.tuples(
    st.sampled_from(["write", "clear", "move", "exchange"]), st.integers(0, ROWS - 1), st.integers(0, 300)
)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("most", [2**40, 20 * 4096])
@settings(max_examples=30, deadline=None, derandomize=True)
@given(verbs=st.lists(VERBS, max_size=20))
def test_rows_hold_what_they_hold_where_memory_is_there_at_once(
    verbs: list[tuple[str, int, int]], interleaved: bool, most: int
) -> None:
    ours, theirs = mapped(HostDriver(), interleaved=interleaved, most_bytes=most), plain()
    for seed, (verb, row, count) in enumerate(verbs):
        if verb == "write":
            count = max(count, 1)
            ours.write(row, content(seed, count), count)
            theirs.write(row, content(seed, count), count)
        elif verb == "clear":
            ours.clear(row)
            theirs.clear(row)
        elif verb == "move" and theirs.lens[row] and not theirs.lens[count % ROWS]:
            ours.move(row, count % ROWS)
            theirs.move(row, count % ROWS)
        elif verb == "exchange":
            ours.swap_rows(row, count % ROWS)
            theirs.swap_rows(row, count % ROWS)
        for at in range(ROWS):
            assert ours.lens[at] == theirs.lens[at]
            if ours.lens[at]:
                assert all(torch.equal(a, b) for a, b in zip(ours.view(at), theirs.view(at), strict=True))


def test_a_row_has_the_pages_that_its_footprint_says() -> None:
    for interleaved in (True, False):
        rectangle = mapped(HostDriver(), interleaved=interleaved)
        footprint = rectangle.footprint
        assert footprint.page == 4096 and footprint.of(0) == 0
        for tokens in (1, 3, 4, 5, 40, 200, COLUMNS):
            rectangle.reserve(2, tokens)
            assert rectangle.mapped_pages(2) * footprint.page == footprint.of(tokens)
        # The first row has the first page of everything from the beginning.
        assert rectangle.mapped_pages(0) * footprint.page == footprint.of(1)
        assert rectangle.spare_bytes == 0


def test_what_layers_keep_of_a_token_lies_together() -> None:
    rectangle = mapped(HostDriver(), SHAPES[:1] * 3)
    token = 3 * 2 * 2 * 8 * 4
    (first, *others), step = rectangle.keys, 2 * 8 * 4
    assert first.stride(1) * 4 == token
    assert [buffer.data_ptr() - first.data_ptr() for buffer in others] == [2 * step, 4 * step]
    assert rectangle.values[0].data_ptr() - first.data_ptr() == step
    assert first.stride(0) * 4 % 4096 == 0


def test_a_cleared_rows_pages_stay_until_another_row_needs_them() -> None:
    driver = HostDriver(pages=30)
    rectangle = mapped(driver, SHAPES[:1])
    # 128 bytes a token: 32 of them to a page.
    rectangle.write(1, [torch.randn(COLUMNS, 2, 8)] * 2, COLUMNS)
    assert rectangle.mapped_pages(1) == 10
    rectangle.clear(1)
    assert rectangle.mapped_pages(1) == 10 and rectangle.spare_bytes == 10 * 4096
    rectangle.reserve(2, COLUMNS)
    rectangle.reserve(3, 290)
    # One is the first row's, nineteen new ones were to be had.
    assert [rectangle.mapped_pages(row) for row in range(ROWS)] == [1, 0, 10, 10]
    assert rectangle.spare_bytes == 9 * 4096
    with pytest.raises(torch.OutOfMemoryError):
        rectangle.reserve(1, COLUMNS)
    assert rectangle.mapped_pages(1) == 0
    rectangle.clear(2)
    rectangle.reserve(1, COLUMNS)
    assert [rectangle.mapped_pages(row) for row in range(ROWS)] == [1, 10, 0, 10]


def test_pages_of_cleared_rows_are_taken_before_more_are_made_than_the_budget_has() -> None:
    driver = HostDriver(pages=1000)
    rectangle = mapped(driver, SHAPES[:1], most_bytes=12 * 4096)
    for row in (1, 2, 3, 1, 2, 3):
        rectangle.reserve(row, COLUMNS)
        rectangle.clear(row)
    assert 1000 - driver.left <= 12
    # Present rows get what there is, whatever the budget.
    for row in range(1, ROWS):
        rectangle.reserve(row, COLUMNS)
    assert 1000 - driver.left == 31


def test_what_no_row_needs_goes_back_to_the_device() -> None:
    driver = HostDriver(pages=100)
    rectangle = mapped(driver, SHAPES[:1])
    rectangle.reserve(1, COLUMNS)
    rectangle.reserve(2, 64)
    assert not rectangle.release_unused()
    rectangle.clear(1)
    rectangle.write(2, [torch.ones(64, 2, 8)] * 2, 64)
    assert rectangle.release_unused()
    assert 100 - driver.left == 3 and rectangle.spare_bytes == 0
    assert bool((rectangle.view(2)[0] == 1).all())
    keys = rectangle.view(2)[0]
    del rectangle
    gc.collect()
    # Not while somebody still has a row's keys.
    assert bool((keys == 1).all()) and driver.left < 100
    del keys
    gc.collect()
    assert driver.left == 100


def test_addresses_that_are_not_to_be_had_are_refused_by_the_setting() -> None:
    of: dict[str, Any] = {"columns": 2**42, "dtype": torch.float32, "device": CPU}
    with pytest.raises(SettingError, match="lower --max-batch-size or --max-model-len") as refused:
        MappedRectangle([LayerShape(8, 64, 64)], capacity=64, driver=HostDriver(), **of)
    assert refused.value.param == "max_model_len"


def test_the_trial_finds_memory_that_does_not_hold_what_is_written() -> None:
    trial(HostDriver())

    class Forgetful(HostDriver):
        """Takes the wrong page away."""

        def unmap(self, address: int, size: int) -> None:
            super().unmap(address - size if size == self.granularity else address, size)

    with pytest.raises(RuntimeError, match=r"mapped twice|was not read"):
        trial(Forgetful())
