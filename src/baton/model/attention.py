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
class Look:
    """Which earlier tokens a layer's token sees, and how their scores are bent; all, and not at all, by default.

    `window`: the last so many, itself among them. `chunk`: those of its own chunk of so many. `softcap`: scores are
    softcap * tanh(scores / softcap). At most one of window and chunk is above 0.
    """

    window: int = 0
    chunk: int = 0
    softcap: float = 0.0

    def lowest(self, token: int) -> int:
        """The first column that a token sees."""
        if self.chunk:
            return token // self.chunk * self.chunk
        return max(0, token + 1 - self.window) if self.window else 0

    def seen(self, token: Tensor, column: Tensor) -> Tensor:
        """Whether tokens see columns; both broadcast."""
        found = column <= token
        if self.window:
            found = found & (column > token - self.window)
        if self.chunk:
            found = found & (column >= token // self.chunk * self.chunk)
        return found


EVERYTHING = Look()


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
    _masks: dict[Look, Tensor] = field(default_factory=dict)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, look: Look, sinks: Tensor | None = None
    ) -> Tensor:
        """q `[n, Hq, 1, D]`, keys and values `[R, C, H, D]` -> `[n, 1, Hq, D]`."""
        if not self.together:
            parts = [
                _attend_span(q[i : i + 1], keys, values, span, None, scale, look, sinks)
                for i, span in enumerate(self.spans)
            ]
            return torch.cat(parts).transpose(1, 2)
        top, width = self._top, self._width
        dense = len(self.spans) == top
        if not dense:
            q = q.new_zeros(top, *q.shape[1:]).index_copy_(0, self.rows, q)
        k, v = keys[:top, :width].transpose(1, 2), values[:top, :width].transpose(1, 2)
        out = _attention(q, k, v, self._mask(look), False, scale, look, sinks)
        return (out if dense else out[self.rows]).transpose(1, 2)

    @property
    def _top(self) -> int:
        return max(span.row for span in self.spans) + 1

    @property
    def _width(self) -> int:
        return max(span.stop for span in self.spans)

    def _mask(self, look: Look) -> Tensor:
        """`[top, 1, 1, width]`: which columns each row's token sees; made once per step and kind of layer."""
        found = self._masks.get(look)
        if found is None:
            token = torch.zeros(self._top, 1, dtype=torch.int64, device=self.cols.device)
            token.index_copy_(0, self.rows, self.cols[:, None])
            column = torch.arange(self._width, device=self.cols.device)
            found = self._masks[look] = look.seen(token, column)[:, None, None]
        return found


@dataclass(slots=True)
class Fill:
    """Tokens of several rows, packed flat `[1, N]` without padding; attention request by request."""

    spans: Sequence[Span]
    rows: Tensor
    cols: Tensor
    columns_read: int
    _masks: dict[tuple[Span, Look], Tensor] = field(default_factory=dict)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, look: Look, sinks: Tensor | None = None
    ) -> Tensor:
        """q `[1, Hq, N, D]`, keys and values `[R, C, H, D]` -> `[1, N, Hq, D]`."""
        parts, at = [], 0
        for span in self.spans:
            piece = q[:, :, at : at + span.count]
            at += span.count
            parts.append(_attend_span(piece, keys, values, span, self._mask(span, look), scale, look, sinks))
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).transpose(1, 2)

    def _mask(self, span: Span, look: Look) -> Tensor | None:
        """`[count, stop - lowest]`: which columns each of the span's tokens sees; None: plain causality."""
        first = look.lowest(span.start)
        if span.count == 1 or (span.start == 0 and look.lowest(span.stop - 1) == 0):
            return None
        found = self._masks.get((span, look))
        if found is None:
            token = torch.arange(span.start, span.stop, device=self.cols.device)[:, None]
            found = look.seen(token, torch.arange(first, span.stop, device=self.cols.device))
            self._masks[span, look] = found
        return found


@dataclass(slots=True)
class Padded:
    """Rows aligned to the longest, `[n, T]`: the batch-wise baseline. `kept` `[m]`: the slots that are real."""

    spans: Sequence[Span]
    rows: Tensor
    cols: Tensor
    kept: Tensor
    columns_read: int
    _masks: dict[Look, Tensor] = field(default_factory=dict)

    def attend(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, look: Look, sinks: Tensor | None = None
    ) -> Tensor:
        """q `[n, Hq, T, D]`, keys and values `[R, C, H, D]` -> `[n, T, Hq, D]`."""
        rows = [span.row for span in self.spans]
        width = max(span.stop for span in self.spans)
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        picked: slice | list[int] = slice(rows[0], rows[-1] + 1) if together else rows
        k, v = keys[picked, :width].transpose(1, 2), values[picked, :width].transpose(1, 2)
        mask = None
        if any(span.start for span in self.spans) or look.lowest(width - 1):
            mask = self._mask(q.shape[2], width, look)
        return _attention(q, k, v, mask, mask is None, scale, look, sinks).transpose(1, 2)

    def _mask(self, length: int, width: int, look: Look) -> Tensor:
        """`[n, 1, T, width]`"""
        found = self._masks.get(look)
        if found is None:
            starts = torch.tensor([span.start for span in self.spans], device=self.cols.device)
            token = starts[:, None, None] + torch.arange(length, device=self.cols.device)[:, None]
            column = torch.arange(width, device=self.cols.device)
            seen = look.seen(token, column)
            # A slot beyond its row's end may see nothing; it then sees column 0, so that no NaN arises.
            seen |= ~seen.any(-1, keepdim=True) & (column == 0)
            found = self._masks[look] = seen[:, None]
        return found


Shape = Decode | Fill | Padded


def _attend_span(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    span: Span,
    mask: Tensor | None,
    scale: float | None,
    look: Look,
    sinks: Tensor | None,
) -> Tensor:
    """One row's tokens: q `[1, Hq, count, D]` -> `[1, Hq, count, D]`. `mask` begins at the first column seen."""
    low = look.lowest(span.start)
    k = keys[span.row : span.row + 1, low : span.stop].transpose(1, 2)
    v = values[span.row : span.row + 1, low : span.stop].transpose(1, 2)
    return _attention(q, k, v, mask, mask is None and span.count > 1, scale, look, sinks)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    look: Look,
    sinks: Tensor | None,
) -> Tensor:
    """q `[B, Hq, T, D]`, k and v `[B, H, S, D]` -> `[B, Hq, T, D]`. SDPA knows neither softcaps nor sinks."""
    if look.softcap or sinks is not None:
        return _plain(q, k, v, mask, causal, scale, look.softcap, sinks)
    if q.shape[2] > 1:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True)
    # The query heads of a group stand where SDPA has its queries, so that no key is read twice.
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    out = scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
    return out.reshape(q.shape[0], q.shape[1], 1, -1)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out. `sinks` `[Hq]`: a score per head that takes its share and brings no value."""
    batch, heads, length, dim = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, length, dim)
    scores = grouped @ k.transpose(-1, -2)[:, :, None] * (dim**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~(mask[:, :, None] if mask.dim() == 4 else mask), -torch.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, k.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    shares = scores.softmax(-1, dtype=torch.float32)[..., : k.shape[2]].to(v.dtype)
    return (shares @ v[:, :, None]).reshape(batch, heads, length, -1)


def decode(spans: Sequence[Span], rectangle: Rectangle) -> Decode:
    """One token per span. Rows are attended in one masked call where the padding read costs less than calls."""
    device = rectangle.device
    needed = sum(span.stop for span in spans)
    whole = (max(span.row for span in spans) + 1) * max(span.stop for span in spans)
    per_column = rectangle.footprint.token_bytes / len(rectangle.shapes)
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
