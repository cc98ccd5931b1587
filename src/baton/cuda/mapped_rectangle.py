"""A rectangle whose memory is mapped as rows grow, for devices that do not do so by themselves.

All rows have addresses for their whole length. Pages are mapped as far as rows have been reserved
(`cuda/virtual_memory.py`). So addresses never change, CUDA graphs stay valid, and attention reads a row directly,
without a block table. Memory after a row's reserved part must not be touched; `Rectangle.mapped` says so to readers.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baton.core.errors import SettingError
from baton.cuda.page_layout import BufferLayout, PageLayout, Region
from baton.cuda.virtual_memory import Driver
from baton.kv.rectangle import Buffer, LayerShape, Rectangle


class _Space:
    """A region's addresses, and the pages mapped to them: `held[row_slot]`, from the row's first byte on."""

    def __init__(self, region: Region, layout: PageLayout, capacity: int, driver: Driver) -> None:
        self.region = region
        self.held: list[list[Any]] = [[] for _ in range(capacity)]
        self._driver = driver
        self._page = layout.page
        self._row_bytes = layout.pages(region, region.width) * layout.page
        size = capacity * self._row_bytes
        try:
            reserved = driver.reserve(size)
        except RuntimeError as error:
            message = f"{size / 2**30:.1f} GiB of address space could not be reserved ({error}): "
            raise SettingError(message + "lower --max-batch-size or --max-model-len", param="max_model_len") from error
        self._bytes, self._address = reserved.tensor, reserved.address
        # Not before the last tensor over it is gone, wherever it is held; nor when the process ends, together with the
        # driver.
        weakref.finalize(
            reserved.holder, _let_go, driver, self._address, self._row_bytes, self._page, self.held
        ).atexit = False

    def tensor(self, layout: BufferLayout, *, columns: bool) -> Tensor:
        """`[rows, columns, heads, dim]`, or for states `[rows, ...]`."""
        size = layout.dtype.itemsize
        inner = [math.prod(layout.shape[at + 1 :]) for at in range(len(layout.shape))]
        shape, stride = [len(self.held)], [self._row_bytes // size]
        if columns:
            shape.append(self.region.width)
            stride.append(self.region.token_bytes // size)
        flat = self._bytes.view(layout.dtype)
        return flat.as_strided((*shape, *layout.shape), (*stride, *inner), layout.offset // size)

    def add(self, place: int, pages: Sequence[Any]) -> None:
        held = self.held[place]
        self._driver.map(self._address + place * self._row_bytes + len(held) * self._page, self._page, pages)
        held.extend(pages)

    def take(self, place: int, keep: int) -> list[Any]:
        """Unmaps and returns all pages of the row after the first so many."""
        taken = self.held[place][keep:]
        if taken:
            first = self._address + place * self._row_bytes + keep * self._page
            self._driver.unmap(first, len(taken) * self._page)
            del self.held[place][keep:]
        return taken


def _let_go(driver: Driver, address: int, row_bytes: int, page: int, held: list[list[Any]]) -> None:
    driver.synchronize()
    for place, pages in enumerate(held):
        if pages:
            driver.unmap(address + place * row_bytes, len(pages) * page)
            _release(driver, pages)
    driver.free(address, len(held) * row_bytes)


def _release(driver: Driver, pages: list[Any]) -> None:
    while pages:
        driver.release(pages.pop())


class MappedRectangle(Rectangle):
    """See above. Pages beyond `most_bytes` are only made after cleared rows' unneeded pages have been reused.

    A cleared row keeps its pages until others need them, because a running step may still write there. Pages are only
    taken away after all work that was given to the device is done, and work is only given to it after its rows are
    reserved.
    """

    mapped = True

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        capacity: int,
        columns: int,
        dtype: torch.dtype,
        device: torch.device,
        driver: Driver,
        most_bytes: int = sys.maxsize,
        layout: PageLayout | None = None,
    ) -> None:
        self._driver = driver
        self._layout = layout or PageLayout(shapes, columns, dtype, driver.granularity)
        self._most_pages = most_bytes // self._layout.page
        self._spaces: list[_Space] = []
        self._spare: list[Any] = []
        self._made = 0
        super().__init__(shapes, capacity=capacity, columns=columns, dtype=dtype, device=device)
        self.footprint = self._layout.footprint
        weakref.finalize(self, _release, driver, self._spare).atexit = False
        # Triton asks the driver about each tensor's first address, even if no program touches it.
        for space in self._spaces:
            self._give(space, 0, self._take(1, 0))

    @property
    def spare_bytes(self) -> int:
        """Bytes of pages that were made and that no row needs."""
        needed = sum(self._needed(space, place) for space in self._spaces for place in range(self.capacity))
        return (self._made - needed) * self._layout.page

    def reserve(self, place: int, tokens: int) -> None:
        if tokens <= self._reached[place]:
            return
        for space in self._spaces:
            lacking = self._layout.pages(space.region, tokens) - len(space.held[place])
            if lacking > 0:
                self._give(space, place, self._take(lacking, place))
        self._reached[place] = tokens

    def clear(self, row: int) -> None:
        """Empties the row. Its old content stays but is never read: a reader reads only what its own row holds."""
        self.lens[row] = 0
        self._reached[self.row_slots[row]] = 0

    def mapped_pages(self, row: int) -> int:
        return sum(len(space.held[self.row_slots[row]]) for space in self._spaces)

    def release_unused(self) -> bool:
        if self.spare_bytes:
            self._driver.synchronize()
        for place in range(self.capacity):
            self._strip(place)
        spare_pages = len(self._spare)
        _release(self._driver, self._spare)
        self._made -= spare_pages
        return spare_pages > 0

    def _allocate(self) -> None:
        numbered: list[Buffer | None] = [None] * self._layout.buffers
        for region in self._layout.regions:
            space = _Space(region, self._layout, self.capacity, self._driver)
            self._spaces.append(space)
            columns = 0 if region.states else region.width
            for number, layout in region.layouts.items():
                numbered[number] = Buffer(space.tensor(layout, columns=columns > 0), columns)
        self._buffers = [buffer for buffer in numbered if buffer is not None]
        buffers = iter(self._buffers)
        for shape, ring in zip(self.shapes, self.rings, strict=True):
            for kept, dim in ((self.keys, shape.key_dim), (self.values, shape.value_dim)):
                empty = (self.capacity, ring or self.columns, shape.heads, dim)
                none = torch.empty(empty, dtype=self.dtype, device=self.device) if 0 in empty else None
                kept.append(next(buffers).tensor if none is None else none)
            self.states.append([next(buffers).tensor for _ in shape.states])

    def _needed(self, space: _Space, place: int) -> int:
        """Pages of a row that must stay: its reserved part, and the very first page."""
        return max(self._layout.pages(space.region, self._reached[place]), place == 0)

    def _give(self, space: _Space, place: int, pages: list[Any]) -> None:
        try:
            space.add(place, pages)
        except Exception:
            self._spare.extend(pages)
            raise

    def _take(self, count: int, place: int) -> list[Any]:
        """Gets so many pages for this row. Raises torch.OutOfMemoryError."""
        while len(self._spare) < count:
            if self._made < self._most_pages and self._create():
                continue
            if self._reclaim(place):
                continue
            self._driver.make_room()
            if not self._create():
                raise torch.OutOfMemoryError("no memory is left for keys and values")
        return [self._spare.pop() for _ in range(count)]

    def _create(self) -> bool:
        try:
            self._spare.append(self._driver.create(self._layout.page))
        except torch.OutOfMemoryError:
            return False
        self._made += 1
        return True

    def _reclaim(self, place: int) -> bool:
        """Takes unneeded pages from the row that has most of them. Returns whether any row has some."""

        def idle(row: int) -> int:
            return sum(len(space.held[row]) - self._needed(space, row) for space in self._spaces)

        most = max((row for row in range(self.capacity) if row != place), key=idle, default=place)
        if most == place or idle(most) <= 0:
            return False
        # A step that is still to run may write one column after the end of a row that has left.
        self._driver.synchronize()
        self._strip(most)
        return True

    def _strip(self, place: int) -> None:
        for space in self._spaces:
            self._spare.extend(space.take(place, self._needed(space, place)))
