"""Runs rows that are aligned at their ends: the paper's literal shaping, with an explicit mask.

New queries' tokens and running rows' are in the same last columns, and shorter rows have padding in front (BATON, Cong
et al., arXiv 2410.18701). Everything is computed by torch, in one masked call of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.kv.aligned import AlignedRectangle
from baton.kv.rectangle import Rectangle
from baton.model.padded import Padded
from baton.model.port import ForwardStats
from baton.model.sdpa import attention
from baton.model.visibility import Span, Visibility


@dataclass(slots=True)
class Aligned(Padded):
    """Rows `[n, T]` whose tokens are in the last slots, and in the columns before `end`.

    `positions` `[n, T]`: of each slot's token in its row's text, below 0 for padding. `starts` `[rows]`: the column of
    each row's first token. Columns before `first` are unused.
    """

    end: int = 0
    first: int = 0
    positions: Tensor = field(default_factory=lambda: torch.empty(0))
    starts: Tensor = field(default_factory=lambda: torch.empty(0))
    _seen: dict[Visibility, Tensor] = field(default_factory=dict)

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
        rows = [span.row for span in self.spans]
        top = len(self.starts)
        if rows != list(range(top)):
            q = q.new_zeros(top, *q.shape[1:]).index_copy_(0, torch.tensor(rows, device=q.device), q)
        k, v = (buffer[:top, self.first : self.end].transpose(1, 2) for buffer in (keys, values))
        out = attention(
            q, k, v, mask=self._mask_of_all(visibility), scale=scale, softcap=visibility.softcap, sinks=sinks
        )
        return out[rows].transpose(1, 2)

    def _mask_of_all(self, visibility: Visibility) -> Tensor:
        """`[rows, 1, T, columns]`: which columns each slot's token sees; made once per step and kind of layer."""
        mask = self._seen.get(visibility)
        if mask is None:
            column = torch.arange(self.first, self.end, device=self.starts.device)
            token = self.positions.new_zeros(len(self.starts), self.positions.shape[1])
            token[[span.row for span in self.spans]] = self.positions
            place = (column - self.starts[:, None])[:, None]
            seen = (place >= 0) & visibility.seen(token[..., None], place)
            # A padding slot sees nothing; it is given the last column, so that no NaN arises.
            seen |= ~seen.any(-1, keepdim=True) & (column == self.end - 1)
            mask = self._seen[visibility] = seen[:, None]
        return mask


class Alignable(Protocol):
    """What AlignedForward needs of a forward; the one in torch has it."""

    @property
    def pads(self) -> bool: ...
    @property
    def long_rope_limit(self) -> int | None: ...
    def parts(self) -> list[str]: ...
    def aligned(self, shape: Padded, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor: ...


class AlignedForward:
    """A `ModelRunner` over an AlignedRectangle. Raises LoadError, with the reason, for a model that cannot run so."""

    swaps_rows = False
    whole_prompts = False
    long_rope_limit = None
    recompute_limit = None
    grid = 0

    def __init__(self, forward: Alignable, rectangle: AlignedRectangle) -> None:
        if not forward.pads or forward.long_rope_limit is not None:
            how = ", ".join(forward.parts())
            raise LoadError(f"--shaping aligned: this model's rows cannot be aligned ({how})")
        self._forward = forward
        self._rectangle = rectangle

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """See `ModelRunner`; all three lay rows out in the same way."""
        shape, ids = self._laid_out(spans, tokens)
        slots = [
            at * shape.padded_to + slot
            for at, span in enumerate(spans)
            for slot in range(shape.padded_to - span.kept, shape.padded_to)
        ]
        wanted = torch.tensor(slots, device=ids.device)
        logits = self._forward.aligned(shape, ids, shape.positions.clamp(min=0), wanted)

        def commit() -> None:
            self._rectangle.end = shape.end

        return logits, ForwardStats(shape.columns_read, shape.padded_to, 0, commit)

    fill = padded = decode

    def _laid_out(self, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Aligned, Tensor]:
        """The shape, and token ids `[n, T]`."""
        body, device = self._rectangle, self._rectangle.device
        # A finished row is fed its last token again, which leaves the row as it is wherever it stands.
        going = {span.row: span.count for span in spans if span.start == body.lens[span.row]}
        end = body.make_room(going or {spans[0].row: 0})
        longest = max(span.count for span in spans)
        stops = [body.starts[span.row] + span.stop for span in spans]
        kept = [(at + 1) * longest - span.count + j for at, span in enumerate(spans) for j in range(span.count)]
        cols = [column for stop, span in zip(stops, spans, strict=True) for column in range(stop - span.count, stop)]
        top, first = max(span.row for span in spans) + 1, min(body.first, end - longest)
        last = torch.tensor([span.stop for span in spans], device=device)[:, None]
        shape = Aligned(
            spans,
            body,
            torch.tensor([span.row for span in spans for _ in range(span.count)], device=device),
            torch.tensor(cols, device=device),
            columns_read=top * (end - first),
            padded_to=longest,
            kept=torch.tensor(kept, device=device),
            end=end,
            first=first,
            positions=last - longest + torch.arange(longest, device=device),
            starts=torch.tensor(body.starts[:top], device=device),
        )
        ids = torch.zeros(len(spans) * longest, dtype=torch.int64, device=device)
        ids[shape.kept] = torch.tensor(tokens, device=device)
        return shape, ids.view(-1, longest)
