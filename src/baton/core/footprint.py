"""How many bytes a query's keys, values and states take, from the number of its cached tokens."""

from __future__ import annotations

from dataclasses import dataclass

ALIGNED_SPARE = 256
"""Columns that a row has beyond the longest text if rows are aligned at their ends (`kv/aligned.py`)."""


@dataclass(frozen=True, slots=True)
class Columns:
    """`count` buffers that keep `token_bytes` for each token, or for the last `most` of them if that is above 0."""

    token_bytes: int
    most: int = 0
    count: int = 1

    def of(self, tokens: int, page: int) -> int:
        kept = min(tokens, self.most) if self.most else tokens
        return -(-kept * self.token_bytes // page) * page * self.count


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one query takes in memory. `state_bytes`: what recurrent layers keep of it, however long it is.

    `page`: memory is committed in multiples of so many bytes per buffer; 1 if it is not committed by pages.
    """

    columns: tuple[Columns, ...]
    state_bytes: int = 0
    page: int = 1

    def of(self, tokens: int) -> int:
        """Bytes of a row with so many tokens, in whole pages of each buffer; nothing for an empty row."""
        if tokens <= 0:
            return 0
        total = self.state_bytes
        for columns in self.columns:
            total += columns.of(tokens, self.page)
        return total

    def aligned(self, longest: int) -> Footprint:
        """The footprint if rows are aligned at their ends.

        Each row has all columns of the longest text, some to spare, and no windows.
        """
        every = tuple(Columns(columns.token_bytes, 0, columns.count) for columns in self.columns)
        whole = Footprint(every, self.state_bytes, self.page).of(longest + ALIGNED_SPARE)
        return Footprint((), whole, self.page)

    @property
    def token_bytes(self) -> int:
        """What one more token takes while no window is full; for display, not for accounting."""
        return sum(columns.token_bytes * columns.count for columns in self.columns)


NOTHING = Footprint(())
