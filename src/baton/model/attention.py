"""Attention over rows of different lengths, on stock SDPA: reads the rectangle, masks by the rows' lengths.

Shapes: Hq query heads, H key/value heads, G = Hq / H, D head dimension, C columns of the rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from baton.kv.rectangle import Rectangle

# One SDPA call costs about as much as reading this many bytes of K and V (lab-notes 2026-11-21, "attention calls").
CALL_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of one row, fed at once: they get the columns from `start` on."""

    row: int
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(slots=True)
class Decode:
    """One token per row, `[n, 1]`. `rows` and `cols` `[n]`: where each token's keys and values go."""

    spans: Sequence[Span]
    rows: Tensor
    cols: Tensor
    together: bool
    columns_read: int
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int) -> Tensor:
        """q `[n, Hq, 1, D]`, keys and values `[R, C, H, D]` -> `[n, 1, Hq, D]`."""
        if not self.together:
            parts = [_one(q[i, :, 0], keys, values, span, scale, window) for i, span in enumerate(self.spans)]
            return torch.stack(parts)[:, None]
        top, width = self._top, self._width
        heads, n = keys.shape[2], len(self.spans)
        dense = n == top
        grouped = q.view(n, heads, -1, q.shape[-1])
        if not dense:
            grouped = grouped.new_zeros(top, *grouped.shape[1:]).index_copy_(0, self.rows, grouped)
        k, v = keys[:top, :width].transpose(1, 2), values[:top, :width].transpose(1, 2)
        out = scaled_dot_product_attention(grouped, k, v, attn_mask=self._mask(window), scale=scale)
        if not dense:
            out = out[self.rows]
        return out.reshape(n, 1, -1, out.shape[-1])

    @property
    def _top(self) -> int:
        return max(span.row for span in self.spans) + 1

    @property
    def _width(self) -> int:
        return max(span.stop for span in self.spans)

    def _mask(self, window: int) -> Tensor:
        """`[top, 1, 1, width]`: which columns each row's token sees; made once per step and window."""
        found = self._masks.get(window)
        if found is None:
            last = torch.zeros(self._top, 1, dtype=torch.int64, device=self.cols.device)
            last.index_copy_(0, self.rows, self.cols[:, None])
            at = torch.arange(self._width, device=self.cols.device)
            seen = at <= last
            if window:
                seen &= at > last - window
            found = self._masks[window] = seen[:, None, None]
        return found


@dataclass(slots=True)
class Fill:
    """Tokens of several rows, packed flat `[1, N]` without padding; attention request by request."""

    spans: Sequence[Span]
    rows: Tensor
    cols: Tensor
    columns_read: int
    _masks: dict[tuple[Span, int], Tensor] = field(default_factory=dict)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int) -> Tensor:
        """q `[1, Hq, N, D]`, keys and values `[R, C, H, D]` -> `[1, N, Hq, D]`."""
        parts, at = [], 0
        for span in self.spans:
            piece = q[:, :, at : at + span.count]
            at += span.count
            if span.count == 1:
                parts.append(_one(piece[0, :, 0], keys, values, span, scale, window)[None, None])
            else:
                parts.append(self._many(piece, keys, values, span, scale, window).transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _many(self, q: Tensor, keys: Tensor, values: Tensor, span: Span, scale: float | None, window: int) -> Tensor:
        low = max(0, span.start + 1 - window) if window else 0
        k = keys[span.row : span.row + 1, low : span.stop].transpose(1, 2)
        v = values[span.row : span.row + 1, low : span.stop].transpose(1, 2)
        mask = None
        if span.start or (window and span.stop > window):
            mask = self._mask(span, low, window)
        return scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )

    def _mask(self, span: Span, low: int, window: int) -> Tensor:
        """`[count, stop - low]`: which columns each of the span's tokens sees."""
        found = self._masks.get((span, window))
        if found is None:
            token = torch.arange(span.start, span.stop, device=self.cols.device)[:, None]
            at = torch.arange(low, span.stop, device=self.cols.device)
            found = at <= token
            if window:
                found &= at > token - window
            self._masks[span, window] = found
        return found


@dataclass(slots=True)
class Padded:
    """Rows aligned to the longest, `[n, T]`: the batch-wise baseline. `kept` `[m]`: the slots that are real."""

    spans: Sequence[Span]
    rows: Tensor
    cols: Tensor
    kept: Tensor
    columns_read: int
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, window: int) -> Tensor:
        """q `[n, Hq, T, D]`, keys and values `[R, C, H, D]` -> `[n, T, Hq, D]`."""
        rows = [span.row for span in self.spans]
        width = max(span.stop for span in self.spans)
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        picked: slice | list[int] = slice(rows[0], rows[-1] + 1) if together else rows
        k, v = keys[picked, :width].transpose(1, 2), values[picked, :width].transpose(1, 2)
        mask = None
        if any(span.start for span in self.spans) or (window and width > window):
            mask = self._mask(q.shape[2], width, window)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2)

    def _mask(self, length: int, width: int, window: int) -> Tensor:
        """`[n, 1, T, width]`"""
        found = self._masks.get(window)
        if found is None:
            starts = torch.tensor([span.start for span in self.spans], device=self.cols.device)
            token = starts[:, None, None] + torch.arange(length, device=self.cols.device)[:, None]
            at = torch.arange(width, device=self.cols.device)
            seen = at <= token
            if window:
                # A slot beyond its row's end may see nothing; it then sees column 0, so that no NaN arises.
                seen &= (at > token - window) | ((token - window + 1 >= width) & (at == 0))
            found = self._masks[window] = seen[:, None]
        return found


Shape = Decode | Fill | Padded


def _one(q: Tensor, keys: Tensor, values: Tensor, span: Span, scale: float | None, window: int) -> Tensor:
    """One token of one row: q `[Hq, D]` -> `[Hq, D]`. Query heads of a group stand where SDPA has its queries."""
    low = max(0, span.stop - window) if window else 0
    k = keys[span.row : span.row + 1, low : span.stop].transpose(1, 2)
    v = values[span.row : span.row + 1, low : span.stop].transpose(1, 2)
    heads = k.shape[1]
    out = scaled_dot_product_attention(q.view(1, heads, -1, q.shape[-1]), k, v, scale=scale)
    return out.reshape(-1, out.shape[-1])


def decode(spans: Sequence[Span], rectangle: Rectangle) -> Decode:
    """One token per span. Rows are attended in one masked call where the padding read costs less than calls."""
    device = rectangle.device
    needed = sum(span.stop for span in spans)
    whole = (max(span.row for span in spans) + 1) * max(span.stop for span in spans)
    per_column = rectangle.bytes_per_token / len(rectangle.shapes)
    together = (whole - needed) * per_column <= (len(spans) - 1) * CALL_BYTES
    return Decode(
        spans=spans,
        rows=torch.tensor([span.row for span in spans], device=device),
        cols=torch.tensor([span.start for span in spans], device=device),
        together=together,
        columns_read=whole if together else needed,
    )


def fill(spans: Sequence[Span], rectangle: Rectangle) -> Fill:
    """All tokens of all spans, one behind the other."""
    rows = [span.row for span in spans for _ in range(span.count)]
    cols = [column for span in spans for column in range(span.start, span.stop)]
    return Fill(
        spans=spans,
        rows=torch.tensor(rows, device=rectangle.device),
        cols=torch.tensor(cols, device=rectangle.device),
        columns_read=sum(span.stop for span in spans),
    )


def padded(spans: Sequence[Span], rectangle: Rectangle) -> Padded:
    """Each span padded to the longest."""
    longest = max(span.count for span in spans)
    flat = fill(spans, rectangle)
    kept = [i * longest + j for i, span in enumerate(spans) for j in range(span.count)]
    return Padded(
        spans=spans,
        rows=flat.rows,
        cols=flat.cols,
        kept=torch.tensor(kept, device=rectangle.device),
        columns_read=len(spans) * max(span.stop for span in spans),
    )
