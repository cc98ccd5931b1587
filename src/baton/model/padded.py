"""The layout of the batch-wise baseline: rows aligned to the longest, and their attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.kv.rectangle import Rectangle
from baton.model.attention import positions_of
from baton.model.layout import Layout
from baton.model.sdpa import attention
from baton.model.visibility import Span, Visibility


@dataclass(slots=True)
class Padded(Layout):
    """Rows aligned to the longest, `[n, T]`: the batch-wise baseline. `kept` `[m]`: the slots that are not padding."""

    kept: Tensor = field(default_factory=lambda: torch.empty(0))
    _masks: dict[Visibility, Tensor] = field(default_factory=dict)

    def by_token(self, states: Tensor) -> Tensor:
        return states.transpose(1, 2).flatten(0, 1)[self.kept]

    def by_place(self, numbers: Tensor) -> Tensor:
        padded = numbers.new_zeros(len(self.spans) * self.padded_to)
        padded[self.kept] = numbers
        return padded.view(-1, self.padded_to)

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q `[n, Hq, T, D]`, keys and values `[R, C, H, D]` -> `[n, T, Hq, D]`."""
        if keys.shape[1] < self.rectangle.columns:
            return self._attend_rings(q, keys, values, scale, visibility, sinks)
        rows = [span.row for span in self.spans]
        width = max(span.stop for span in self.spans)
        together = rows == list(range(rows[0], rows[0] + len(rows)))
        picked: slice | list[int] = slice(rows[0], rows[-1] + 1) if together else rows
        k, v = keys[picked, :width].transpose(1, 2), values[picked, :width].transpose(1, 2)
        mask = None
        if any(span.start for span in self.spans) or visibility.lowest(width - 1):
            mask = self._mask(q.shape[2], width, visibility)
        out = attention(q, k, v, mask=mask, causal=mask is None, scale=scale, softcap=visibility.softcap, sinks=sinks)
        return out.transpose(1, 2)

    def _attend_rings(
        self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None, visibility: Visibility, sinks: Tensor | None
    ) -> Tensor:
        """Rings have no common columns, so this goes row by row. The padding's output is not used and stays 0."""
        out = q.new_zeros(*q.shape[:3], values.shape[-1])
        for i, span in enumerate(self.spans):
            piece, mask = q[i : i + 1, :, : span.count], self._mask_of(span, visibility)
            attended = self._attend_span(piece, keys, values, span, mask, scale, visibility, sinks)
            out[i : i + 1, :, : span.count] = attended
        return out.transpose(1, 2)

    def _mask(self, length: int, width: int, visibility: Visibility) -> Tensor:
        """`[n, 1, T, width]`."""
        mask = self._masks.get(visibility)
        if mask is None:
            starts = torch.tensor([span.start for span in self.spans], device=self.cols.device)
            token = starts[:, None, None] + torch.arange(length, device=self.cols.device)[:, None]
            column = torch.arange(width, device=self.cols.device)
            seen = visibility.seen(token, column)
            # A slot beyond its row's end may see nothing; it is given column 0, so that no NaN arises.
            seen |= ~seen.any(-1, keepdim=True) & (column == 0)
            mask = self._masks[visibility] = seen[:, None]
        return mask


def padded(spans: Sequence[Span], rectangle: Rectangle) -> Padded:
    """Each span padded to the longest."""
    longest = max(span.count for span in spans)
    kept = [i * longest + j for i, span in enumerate(spans) for j in range(span.count)]
    return Padded(
        spans,
        rectangle,
        *positions_of(spans, rectangle),
        columns_read=len(spans) * max(span.stop for span in spans),
        padded_to=longest,
        kept=torch.tensor(kept, device=rectangle.device),
    )
