"""The layouts of a forward, and each one's attention over rows of different lengths.

Shapes: Hq query heads, H key/value heads, D head dimension, R rows and C columns of the rectangle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.kv.rectangle import Rectangle
from baton.model.layout import Layout, on_device
from baton.model.sdpa import attention
from baton.model.visibility import EVERYTHING, Span, Visibility

# One SDPA call costs about as much as reading this many bytes of K and V (lab-notes 2026-11-21, "attention calls").
CALL_BYTES = 128 * 1024


@dataclass(slots=True)
class Decode(Layout):
    """One token per row, `[n, 1]`. `together`: attention of all rows in one masked call, with no empty rows between."""

    together: bool = False
    _masks: dict[tuple[Visibility, int], Tensor] = field(default_factory=dict)

    def by_token(self, states: Tensor) -> Tensor:
        return states[: len(self.spans), :, 0]

    def by_place(self, numbers: Tensor) -> Tensor:
        return torch.cat([numbers, numbers.new_zeros(self.empty_rows)])[:, None]

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q `[n, Hq, 1, D]`, keys and values `[R, C, H, D]` -> `[n, 1, Hq, D]`."""
        if not self.together:
            parts = [
                self._attend_span(q[i : i + 1], keys, values, span, None, scale, visibility, sinks)
                for i, span in enumerate(self.spans)
            ]
            if self.empty_rows:
                parts.append(parts[0].new_zeros(self.empty_rows, *parts[0].shape[1:]))
            return torch.cat(parts).transpose(1, 2)
        top, width = self._top, min(self._width, keys.shape[1])
        dense = len(self.spans) == top and all(span.row == at for at, span in enumerate(self.spans))
        if not dense:
            q = q.new_zeros(top, *q.shape[1:]).index_copy_(0, self.rows, q)
        k, v = keys[:top, :width].transpose(1, 2), values[:top, :width].transpose(1, 2)
        mask = self._mask(visibility, width, keys.shape[1] if keys.shape[1] < self.rectangle.columns else 0)
        out = attention(q, k, v, mask=mask, scale=scale, softcap=visibility.softcap, sinks=sinks)
        return (out if dense else out[self.rows]).transpose(1, 2)

    @property
    def _top(self) -> int:
        return max(span.row for span in self.spans) + 1

    @property
    def _width(self) -> int:
        return max(span.stop for span in self.spans)

    def _mask(self, visibility: Visibility, width: int, ring: int) -> Tensor:
        """`[top, 1, 1, width]`: which columns each row's token sees; made once per step and kind of layer."""
        mask = self._masks.get((visibility, ring))
        if mask is None:
            token = torch.zeros(self._top, 1, dtype=torch.int64, device=self.cols.device)
            token.index_copy_(0, self.rows, self.cols[:, None])
            column = torch.arange(width, device=self.cols.device)
            if not ring:
                seen = visibility.seen(token, column)
            elif visibility.chunk:
                seen = column <= token % ring
            else:
                seen = column <= token
            mask = self._masks[visibility, ring] = seen[:, None, None]
        return mask


@dataclass(slots=True)
class Fill(Layout):
    """Tokens of several rows, packed flat `[1, N]` without padding; attention request by request."""

    _masks: dict[tuple[Span, Visibility], Tensor | None] = field(default_factory=dict)

    def by_place(self, numbers: Tensor) -> Tensor:
        return numbers[None]

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q `[1, Hq, N, D]`, keys and values `[R, C, H, D]` -> `[1, N, Hq, D]`."""
        parts, at = [], 0
        for span in self.spans:
            piece = q[:, :, at : at + span.count]
            at += span.count
            parts.append(
                self._attend_span(piece, keys, values, span, self._mask(span, visibility), scale, visibility, sinks)
            )
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).transpose(1, 2)

    def _mask(self, span: Span, visibility: Visibility) -> Tensor | None:
        if (span, visibility) not in self._masks:
            self._masks[span, visibility] = self._mask_of(span, visibility)
        return self._masks[span, visibility]


@dataclass(slots=True)
class Flat(Fill):
    """A Fill for models that count positions by the length of the cache."""

    def before(self) -> int | Tensor:
        """`[N]` of several rows, so that `arange(N)` plus it are their tokens' positions."""
        if len(self.spans) == 1:
            return self.spans[0].start
        return self.cols - torch.arange(len(self.cols), device=self.cols.device)


@dataclass(slots=True)
class Latents(Fill):
    """A Fill for layers that expand what the cache returns: they get the columns of all spans, one after the other.

    So nothing is expanded that no token attends to (multi-head latent attention, DeepSeek-V2, section 2.1).
    """

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `[1, H, columns of all spans, D]`."""
        # Not super(): with slots, the dataclass is another class than the one written here.
        buffers = Layout.keep(self, layer, keys, values)
        keys, values = (
            torch.cat([buffer[span.row, : span.stop] for span in self.spans])[None].transpose(1, 2)
            for buffer in buffers
        )
        return keys, values

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q `[1, Hq, N, D]`, keys and values `[1, H, columns of all spans, D]` -> `[1, N, Hq, Dv]`."""
        parts, at, column = [], 0, 0
        for span in self.spans:
            low, high = column + visibility.lowest(span.start), column + span.stop
            mask = self._mask(span, visibility)
            out = attention(
                q[:, :, at : at + span.count],
                keys[:, :, low:high],
                values[:, :, low:high],
                mask=mask,
                causal=mask is None and span.count > 1,
                scale=scale,
                softcap=visibility.softcap,
                sinks=sinks,
            )
            parts.append(out)
            at, column = at + span.count, high
        return torch.cat(parts, dim=2).transpose(1, 2)


@dataclass(slots=True)
class ModelAttention(Layout):
    """Rows `[n, T]` for the model's own attention, which gets the rows' columns and a mask of two dimensions.

    All rows have T tokens. If T is above 1 there is one row.
    """

    @property
    def width(self) -> int:
        return max(span.stop for span in self.spans)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `[n, H, width, D]`, contiguous as stock caches are, because some models' code relies on it."""
        buffers = Layout.keep(self, layer, keys, values)
        rows = [span.row for span in self.spans]
        keys, values = (buffer[rows, : self.width].transpose(1, 2).contiguous() for buffer in buffers)
        return keys, values

    def by_place(self, numbers: Tensor) -> Tensor:
        return numbers.view(len(self.spans), -1)

    @property
    def mask(self) -> Tensor | None:
        """`[n, width]`: the columns that rows hold; None if nothing must be masked."""
        if all(span.stop == self.width for span in self.spans):
            return None
        stops = torch.tensor([span.stop for span in self.spans], device=self.cols.device)
        return (torch.arange(self.width, device=self.cols.device) < stops[:, None]).long()


def decode(spans: Sequence[Span], rectangle: Rectangle, *, empty_rows: int = 0, fixed: bool = False) -> Decode:
    """One token per span. Rows are attended in one masked call if reading the padding costs less than more calls.

    `fixed`: never, so that no row's attention depends on how long others are.
    """
    needed = sum(span.stop for span in spans)
    whole = (max(span.row for span in spans) + 1) * max(span.stop for span in spans)
    per_column = rectangle.footprint.token_bytes / len(rectangle.shapes)
    # A masked call reads the columns after a row's end.
    apart = fixed or rectangle.mapped
    together = not apart and (whole - needed) * per_column <= (len(spans) - 1) * CALL_BYTES
    return Decode(
        spans,
        rectangle,
        *positions_of(spans, rectangle),
        columns_read=whole if together else needed,
        empty_rows=empty_rows,
        together=together,
    )


def fill(spans: Sequence[Span], rectangle: Rectangle) -> Fill:
    """All tokens of all spans, one span after the other."""
    return Fill(spans, rectangle, *positions_of(spans, rectangle), sum(span.stop for span in spans))


def flat(spans: Sequence[Span], rectangle: Rectangle) -> Flat:
    """All tokens of all spans, one span after the other, for models that count positions themselves."""
    return Flat(spans, rectangle, *positions_of(spans, rectangle), sum(span.stop for span in spans))


def latents(spans: Sequence[Span], rectangle: Rectangle) -> Latents:
    """All tokens of all spans, one span after the other, and their columns too."""
    return Latents(spans, rectangle, *positions_of(spans, rectangle), sum(span.stop for span in spans))


def own(spans: Sequence[Span], rectangle: Rectangle) -> ModelAttention:
    """One token of each of several rows, or several tokens of one row, for the model's own attention."""
    width = max(span.stop for span in spans)
    return ModelAttention(spans, rectangle, *positions_of(spans, rectangle), width * len(spans))


def positions_of(spans: Sequence[Span], rectangle: Rectangle) -> tuple[Tensor, Tensor]:
    """Row and position of each token, `[tokens]` each."""
    rows = [span.row for span in spans for _ in range(span.count)]
    cols = [column for span in spans for column in range(span.start, span.stop)]
    return on_device(rows, rectangle.device), on_device(cols, rectangle.device)


__all__ = ["EVERYTHING", "Decode", "Fill", "Latents", "Visibility", "ModelAttention", "Layout", "Span"]
