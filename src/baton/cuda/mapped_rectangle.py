"""A rectangle whose memory is mapped as rows grow, for devices that do not do so by themselves.

All rows have the addresses of their whole length. Pages are mapped as far as rows have reached
(`cuda/virtual_memory.py`).
So addresses never change, CUDA graphs stay valid, and attention reads a row as it lies, without a table of blocks.
What is behind a row's reach must not be touched by anyone: `Rectangle.mapped` says so to all who read.
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
from baton.cuda.page_layout import Lane, PageLayout, Region
from baton.cuda.virtual_memory import Driver
from baton.kv.rectangle import Buffer, LayerShape, Rectangle


class _Space:
    """A region's addresses, and the pages behind them: `held[place]`, from the row's first byte on."""

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
        # Not before the last tensor over it is gone, whoever has that; nor when the process ends, with the driver.
        weakref.finalize(
            reserved.holder, _let_go, driver, self._address, self._row_bytes, self._page, self.held
        ).atexit = False

    def tensor(self, lane: Lane, *, columns: bool) -> Tensor:
        """`[rows, columns, heads, dim]`, or of states `[rows, ...]`."""
        size = lane.dtype.itemsize
        inner = [math.prod(lane.shape[at + 1 :]) for at in range(len(lane.shape))]
        shape, stride = [len(self.held)], [self._row_bytes // size]
        if columns:
            shape.append(self.region.width)
            stride.append(self.region.token_bytes // size)
        flat = self._bytes.view(lane.dtype)
        return flat.as_strided((*shape, *lane.shape), (*stride, *inner), lane.offset // size)

    def add(self, place: int, pages: Sequence[Any]) -> None:
        held = self.held[place]
        self._driver.map(self._address + place * self._row_bytes + len(held) * self._page, self._page, pages)
        held.extend(pages)

    def take(self, place: int, keep: int) -> list[Any]:
        """All pages but the first so many of the row, unmapped."""
        taken = self.held[place][keep:]
        if taken:
            first = self._address + place * self._row_bytes + keep * self._page
            self._driver.unmap(first, len(taken) * self._page)
            del self.held[place][keep:]
        return taken


def _let_go(driver: Driver, address: int, row_bytes: int, page: int, held: list[list[Any]]) -> None:
    driver.settle()
    for place, pages in enumerate(held):
        if pages:
            driver.unmap(address + place * row_bytes, len(pages) * page)
            _release(driver, pages)
    driver.free(address, len(held) * row_bytes)


def _release(driver: Driver, pages: list[Any]) -> None:
    while pages:
        driver.release(pages.pop())


class MappedRectangle(Rectangle):
    """See above. At most `most_bytes` of pages are made while cleared rows have some that nobody needs.

    A cleared row keeps its pages until others need them, since a step that the device has not finished may still
    write there: pages are only taken away after all work that was given to the device is done, and no work is given
    to it before its rows were reached.
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
        # Triton asks the driver of each tensor's first address, even where no program will touch it.
        for space in self._spaces:
            self._give(space, 0, self._take(1, 0))

    @property
    def spare_bytes(self) -> int:
        """Of pages that were made and that no row needs."""
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
        """Empties the row. What was in it stays there, for nobody: whoever reads, reads what its own row holds."""
        self.lens[row] = 0
        self._reached[self.row_slots[row]] = 0

    def mapped_pages(self, row: int) -> int:
        return sum(len(space.held[self.row_slots[row]]) for space in self._spaces)

    def release_unused(self) -> bool:
        if self.spare_bytes:
            self._driver.settle()
        for place in range(self.capacity):
            self._strip(place)
        found = len(self._spare)
        _release(self._driver, self._spare)
        self._made -= found
        return found > 0

    def _allocate(self) -> None:
        found: list[Buffer | None] = [None] * self._layout.buffers
        for region in self._layout.regions:
            space = _Space(region, self._layout, self.capacity, self._driver)
            self._spaces.append(space)
            columns = 0 if region.states else region.width
            for number, lane in region.lanes.items():
                found[number] = Buffer(space.tensor(lane, columns=columns > 0), columns)
        self._buffers = [buffer for buffer in found if buffer is not None]
        buffers = iter(self._buffers)
        for shape, ring in zip(self.shapes, self.rings, strict=True):
            for kept, dim in ((self.keys, shape.key_dim), (self.values, shape.value_dim)):
                empty = (self.capacity, ring or self.columns, shape.heads, dim)
                none = torch.empty(empty, dtype=self.dtype, device=self.device) if 0 in empty else None
                kept.append(next(buffers).tensor if none is None else none)
            self.states.append([next(buffers).tensor for _ in shape.states])

    def _needed(self, space: _Space, place: int) -> int:
        """Pages of a row that may not be taken away: as far as it was reached, and the very first one."""
        return max(self._layout.pages(space.region, self._reached[place]), place == 0)

    def _give(self, space: _Space, place: int, pages: list[Any]) -> None:
        try:
            space.add(place, pages)
        except Exception:
            self._spare.extend(pages)
            raise

    def _take(self, count: int, place: int) -> list[Any]:
        """So many pages, for this row. Raises torch.OutOfMemoryError."""
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
        """Takes the pages of another row that it does not need, of the one that has most; answers whether any has."""

        def idle(row: int) -> int:
            return sum(len(space.held[row]) - self._needed(space, row) for space in self._spaces)

        most = max((row for row in range(self.capacity) if row != place), key=idle, default=place)
        if most == place or idle(most) <= 0:
            return False
        # A step that is still to run may write one column behind the end of a row that is not there any more.
        self._driver.settle()
        self._strip(most)
        return True

    def _strip(self, place: int) -> None:
        for space in self._spaces:
            self._spare.extend(space.take(place, self._needed(space, place)))
