"""How a forward's tokens are laid out in the rectangle: what all layouts share.

A layout serves one forward. `keep` takes a layer's new keys and values and returns the input of the model's attention.
`attend` is that attention, if it is ours. `commit` writes what must not be written before the forward succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from baton.kv.rectangle import Rectangle
from baton.model.sdpa import attention
from baton.model.visibility import Span, Visibility


def on_device(numbers: Sequence[int], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """`[n]` on the device; the host does not wait for a CUDA device's earlier work."""
    tensor = torch.tensor(numbers, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(slots=True)
class Layout:
    """What all layouts share. `rows` and `cols` `[tokens]`: row and position of each token that is fed.

    `columns_read`: KV columns that attention reads. `padded_to`: slots per row, if rows are aligned; else 0.
    `empty_rows`: slots after those of the spans, of no row.
    """

    spans: Sequence[Span]
    rectangle: Rectangle
    rows: Tensor
    cols: Tensor
    columns_read: int
    padded_to: int = 0
    empty_rows: int = 0
    # For layers that are rings, by the address of keys and of values: what each span of several tokens attends to.
    _ordered: dict[int, dict[Span, Tensor]] = field(default_factory=dict)
    _later: list[tuple[Tensor, int, Tensor, Tensor]] = field(default_factory=list)

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Takes a layer's new keys and values `[B, H, T, D]`. Returns its buffers `[R, C, H, D]`, for `attend`."""
        for buffers, new in ((self.rectangle.keys, keys), (self.rectangle.values, values)):
            self._put(buffers[layer], self.rectangle.rings[layer], self.by_token(new))
        return self.rectangle.keys[layer], self.rectangle.values[layer]

    def by_token(self, states: Tensor) -> Tensor:
        """`[B, H, T, D]` -> `[tokens, H, D]`, without padding."""
        return states.transpose(1, 2).flatten(0, 1)

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """A layer's attention: q `[B, Hq, T, D]`, and what `keep` returned -> `[B, T, Hq, D]`."""
        raise NotImplementedError

    def lengths(self) -> list[int]:
        """For each token, how long its text is when it is fed alone: as it began, or as far as the token."""
        return [max(span.began, at + 1) for span in self.spans for at in range(span.start, span.stop)]

    def by_place(self, numbers: Tensor) -> Tensor:
        """`[tokens]` -> `[B, T]`; 0 for padding."""
        raise NotImplementedError

    def before(self) -> int | Tensor:
        """For models that ask: how many tokens rows hold before the fed ones; for several rows, the longest's.

        Only models that do not depend on it run in such layouts (`loader/cache_length.py`).
        """
        return max(span.start for span in self.spans)

    def commit(self) -> None:
        """The forward succeeded: rings take their newest tokens."""
        for buffer, row, columns, new in self._later:
            buffer[row].index_copy_(0, columns, new)
        self._later.clear()

    def _put(self, buffer: Tensor, ring: int, new: Tensor) -> None:
        if not ring:
            buffer.index_put_((self.rows, self.cols), new)
            return
        if all(span.count == 1 for span in self.spans):
            # The overwritten token has left the window, so a forward may be repeated.
            buffer.index_put_((self.rows, self.cols % ring), new)
            return
        ordered: dict[Span, Tensor] = {}
        pieces = new.split([span.count for span in self.spans])
        for span, piece in zip(self.spans, pieces, strict=True):
            at = torch.arange(max(span.start, span.stop - ring), span.stop, device=new.device) % ring
            if span.count == 1:
                buffer[span.row].index_copy_(0, at, piece)
                continue
            # What is overwritten may still be seen by the first tokens of the span, and is needed if the forward fails.
            before = torch.arange(max(0, span.start + 1 - ring), span.start, device=new.device) % ring
            ordered[span] = torch.cat([buffer[span.row].index_select(0, before), piece])
            self._later.append((buffer, span.row, at, piece[-len(at) :]))
        self._ordered[buffer.data_ptr()] = ordered

    def _attend_span(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        span: Span,
        mask: Tensor | None,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None,
    ) -> Tensor:
        """One row's tokens: q `[1, Hq, count, D]` -> `[1, Hq, count, D]`. `mask` begins at the first token seen."""
        k, v = (self._seen_by(buffer, span, visibility)[None].transpose(1, 2) for buffer in (keys, values))
        causal = mask is None and span.count > 1
        return attention(q, k, v, mask=mask, causal=causal, scale=scale, softcap=visibility.softcap, sinks=sinks)

    def _seen_by(self, buffer: Tensor, span: Span, visibility: Visibility) -> Tensor:
        """`[seen, H, D]`: what a span's tokens attend to, in the order of the text if there are several tokens."""
        low = visibility.lowest(span.start)
        if buffer.shape[1] == self.rectangle.columns:
            return buffer[span.row, low : span.stop]
        if span.count == 1:
            return buffer[span.row, : span.stop - low]
        return self._ordered[buffer.data_ptr()][span][-(span.stop - low) :]

    def _mask_of(self, span: Span, visibility: Visibility) -> Tensor | None:
        """`[count, stop - lowest]`: which tokens each of the span's tokens sees; None: plain causality."""
        first = visibility.lowest(span.start)
        # A mask would keep flash attention from a chunk of a prompt on CUDA.
        plain = span.start == 0 or self.cols.device.type == "cuda"
        if span.count == 1 or (plain and visibility.lowest(span.stop - 1) == 0):
            return None
        token = torch.arange(span.start, span.stop, device=self.cols.device)[:, None]
        return visibility.seen(token, torch.arange(first, span.stop, device=self.cols.device))
