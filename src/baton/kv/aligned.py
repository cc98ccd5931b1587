"""The paper's literal shaping: rows aligned at their ends, padding in front, one write column for all rows.

A second, slower body of the rectangle, for study (BATON, Cong et al., arXiv 2410.18701: vector shaping). A query that
is longer than the batch shifts the whole batch when it joins; a shorter one gets padding in front. `kv/rectangle.py`
says why this is not the first body.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from baton.core.footprint import ALIGNED_SPARE
from baton.kv.rectangle import LayerShape, Rectangle


def keeping_all(shapes: Sequence[LayerShape]) -> list[LayerShape]:
    """The same layers, each keeping every token, because a ring's columns cannot be aligned with others'."""
    return [replace(shape, window=0) for shape in shapes]


class AlignedRectangle(Rectangle):
    """Token p of a row is in column `starts[row]` + p. Rows that are fed together end together, at `end`.

    Columns before the longest row's start are unused: rows move over them when `end` reaches the right edge,
    `ALIGNED_SPARE` columns beyond the longest text. A row keeps the memory of a whole row. Only for layers that keep
    every token (`keeping_all`) and no states.
    """

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        capacity: int,
        columns: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        wide = columns + ALIGNED_SPARE
        super().__init__(shapes, capacity=capacity, columns=wide, dtype=dtype, device=device)
        self.footprint = self.footprint.aligned(columns)
        self.columns = columns
        self.starts = [0] * capacity
        self.end = 0
        self.shifts = 0
        """How often the whole batch was shifted."""

    @property
    def first(self) -> int:
        """The first column in which any row has a token."""
        return min((self.starts[row] for row in self._holding()), default=self.end)

    def write(self, row: int, parts: Sequence[Tensor], count: int) -> None:
        """KV embedding. If the row is longer than the batch, the batch is shifted first."""
        if not self._holding():
            self.end = count
        if count > self.end:
            self._shift(count - self.end)
        self.starts[row] = self.end - count
        self.lens[row] = count
        for part, source in zip(self.view(row), parts, strict=True):
            part.copy_(source)

    def view(self, row: int) -> list[Tensor]:
        start = self.starts[row]
        return [buffer.tensor[row, start : start + self.lens[row]] for buffer in self._buffers]

    def clear(self, row: int) -> None:
        """The row's tokens may have been anywhere in its columns."""
        self.reserve(row, self.columns + ALIGNED_SPARE)
        super().clear(row)

    def make_room(self, counts: Mapping[int, int]) -> int:
        """Lays out rows that will be fed so many tokens, so that all end together. Returns where they end.

        No row's content changes. A row that is fed fewer tokens than others moves right, next to its new ones.
        """
        if not self._holding():
            self.end = 0
        end = self.end + max(counts.values())
        if end > self.columns + ALIGNED_SPARE:
            # No room to the right: all rows move to the front, over the unused columns.
            end = max(self.lens[row] + count for row, count in counts.items())
        for row, count in counts.items():
            self._slide(row, end - count - self.lens[row])
        return end

    def _holding(self) -> list[int]:
        return [row for row, count in enumerate(self.lens) if count]

    def _shift(self, by: int) -> None:
        """Moves all rows right by so many columns: every key and value is copied."""
        first, rows = self.first, slice(0, max(self._holding()) + 1)
        for buffer in self._buffers:
            buffer.tensor[rows, first + by : self.end + by] = buffer.tensor[rows, first : self.end].clone()
        for row in self._holding():
            self.starts[row] += by
        self.end += by
        self.shifts += 1

    def _slide(self, row: int, start: int) -> None:
        """Moves one row to this start."""
        if self.lens[row] and start != self.starts[row]:
            held = [part.clone() for part in self.view(row)]
            self.starts[row] = start
            for part, copied in zip(self.view(row), held, strict=True):
                part.copy_(copied)
        self.starts[row] = start
