"""Where what rows keep is placed in memory that is mapped by pages.

What layers keep of a token is placed together, `[rows, columns, layers, 2, heads, dim]`: a page holds some tokens of
all layers, so that a row grows by one page, not by one for each buffer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from baton.core.footprint import Columns, Footprint
from baton.kv.rectangle import LayerShape

# A page has room for so many tokens: calls of the driver cost tens of microseconds, and half a page per row is lost.
PAGE_TOKENS = 64
# Alignment of a token's numbers of a layer: what kernels load at once.
_ALIGNED_BYTES = 16


@dataclass(frozen=True, slots=True)
class BufferLayout:
    """One buffer's part of a token, from the token's byte `offset` on. `shape`: `(heads, dim)`, or a state's."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Region:
    """Buffers that are placed together. `layouts` by the buffer's number, in the order of `Rectangle.view`.

    `width`: its columns; a ring's, or 1 for states, which count as one token's.
    """

    width: int
    token_bytes: int
    layouts: dict[int, BufferLayout]
    states: bool

    def bytes_of(self, tokens: int) -> int:
        return min(tokens, self.width) * self.token_bytes


# A buffer's number, and its shape and dtype per token.
_Part = tuple[int, tuple[int, ...], torch.dtype]


class PageLayout:
    """Where everything of a row is. `interleaved`: layers of the same width together, else each buffer by itself."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        columns: int,
        dtype: torch.dtype,
        granularity: int,
        *,
        interleaved: bool = True,
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        kinds: dict[tuple[int, int], list[_Part]] = {}
        number = 0
        for shape in shapes:
            ring = shape.window if 0 < shape.window < columns else columns
            dims = [(shape.heads, dim) for dim in (shape.key_dim, shape.value_dim) if shape.heads * dim]
            parts: list[_Part] = [(ring, one, dtype) for one in dims]
            parts += [(0, one.shape, one.dtype) for one in shape.states]
            for width, inner, kind in parts:
                apart = number if width and not interleaved else 0
                kinds.setdefault((width, apart), []).append((number, inner, kind))
                number += 1
        self.columns = columns
        self.buffers = number
        self.regions = [_region(width, parts) for (width, _), parts in kinds.items()]
        growing = max((region.token_bytes for region in self.regions if not region.states), default=1)
        self.page = -(-page_tokens * growing // granularity) * granularity

    @property
    def footprint(self) -> Footprint:
        """What a query takes, in whole pages."""
        kinds: Counter[tuple[int, int]] = Counter()
        state_pages = 0
        for region in self.regions:
            if region.states:
                state_pages += self.pages(region, 1)
            else:
                kinds[region.token_bytes, region.width if region.width < self.columns else 0] += 1
        columns = tuple(Columns(size, ring, count) for (size, ring), count in sorted(kinds.items()))
        return Footprint(columns, state_pages * self.page, self.page)

    def pages(self, region: Region, tokens: int) -> int:
        """How many pages of it a row of so many tokens needs."""
        return -(-region.bytes_of(tokens) // self.page)


def _region(width: int, parts: Sequence[_Part]) -> Region:
    layouts, end = {}, 0
    for number, dims, dtype in parts:
        layouts[number] = BufferLayout(end, dims, dtype)
        end += -(-math.prod(dims) * dtype.itemsize // _ALIGNED_BYTES) * _ALIGNED_BYTES
    return Region(max(width, 1), end, layouts, states=not width)
