"""A stock model over rows of a rectangle, call by call in torch: lays spans out as the model's family needs it."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.kv.rectangle import Rectangle
from baton.model import attention
from baton.model.attention import Layout
from baton.model.execution import DESCRIPTIONS, AttentionBackend
from baton.model.hooked import Hooked
from baton.model.layout import on_device
from baton.model.padded import Padded, padded
from baton.model.port import Call, ForwardStats, together
from baton.model.probe import Geometry
from baton.model.visibility import Span, wanted_tokens
from baton.sampling.on_device import exact

# Tokens of a prompt that are fed at once if shapes are fixed.
GRID = 64

FlatLayout = Callable[[Sequence[Span], Rectangle], Layout]
"""Lays tokens of several rows out one after the other, `[1, N]`."""


class TorchForward:
    """A `Forward` in which torch computes each step, as the stock model is written."""

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: Geometry,
        backend: AttentionBackend = AttentionBackend.RAGGED,
        *,
        whole_prompts: bool = False,
    ) -> None:
        self.geometry = geometry
        self.backend = backend
        self.whole_prompts = whole_prompts
        self.hooked = Hooked(model, geometry, ours=backend.ours)
        self.long_rope_limit, self.recompute_limit = self.hooked.long_rope_limit, self.hooked.recompute_limit
        self.grid = 0
        self._fixed_rows = 0
        self._flat_layout = _FLAT[backend]
        # Prompts of several rows may go through the model in one call.
        self._packs = backend.ours and not self.hooked.recurrent
        self.pads = backend is AttentionBackend.RAGGED and not self.hooked.recurrent
        """Whether rows may be aligned in one call of the model, with padding between them."""

    def parts(self, *, apart: bool = True) -> list[str]:
        """How the model is run, for people. `apart`: rows with states are fed their prompts one by one."""
        parts = [DESCRIPTIONS[self.backend]]
        rings = sorted({shape.window for shape in self.geometry.shapes if shape.window})
        if rings:
            parts.append(f"rings of {', '.join(map(str, rings))} tokens")
        if self.hooked.recurrent:
            whole = " and whole" if self.whole_prompts else ""
            parts.append("states per row" + (f", prompts one by one{whole}" if apart else ""))
        if self.long_rope_limit is not None:
            parts.append(f"beyond {self.long_rope_limit} tokens rotated by each text's own length")
        if self.recompute_limit is not None:
            parts.append(f"recomputed when a text grows beyond {self.recompute_limit} tokens")
        # A model on the meta device has no values, so nothing is drawn.
        if self.device.type not in ("cpu", "meta") and not exact(self.device.type):
            parts.append("tokens drawn on the host, as this device computes integers otherwise")
        return parts

    @property
    def device(self) -> torch.device:
        return self.hooked.device

    @property
    def swaps_rows(self) -> bool:
        """False on the CPU: torch reads all rows there up to the last one, so they must be together."""
        return self.device.type != "cpu"

    def packed(self, layout: FlatLayout) -> TorchForward:
        """Returns the same forward, with prompts of several rows laid out by `layout`."""
        forward = copy.copy(self)
        forward._flat_layout = layout
        return forward

    def fixed(self, rows: int) -> TorchForward:
        """Returns a forward whose decode steps always have `rows` rows; see `Forward.fixed`.

        A matrix product of another shape may round differently. So empty rows are computed too, and each piece of a
        prompt is fed alone, always cut in the same places. Rows that cannot be decoded in one call are fed alone.
        """
        self.hooked.experts_by_row()
        forward = copy.copy(self)
        forward.grid, forward._fixed_rows, forward._packs = GRID, rows, False
        return forward

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        spans = _placed(rectangle, spans)
        if self.pads and not self._fixed_rows:
            return together([self._rows(rectangle, spans, tokens)])
        return self._unpadded(rectangle, spans, tokens)

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Without padding; see `ModelRunner.fill`."""
        return self._unpadded(rectangle, _placed(rectangle, spans), tokens)

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Rows that cannot be padded are fed as by `fill`: padding reads columns that they do not have yet."""
        spans = _placed(rectangle, spans)
        if self.pads and not self._fixed_rows and not rectangle.mapped:
            return together([self._aligned(rectangle, spans, tokens)])
        return self._unpadded(rectangle, spans, tokens)

    def _unpadded(
        self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]
    ) -> tuple[Tensor, ForwardStats]:
        if self._packs:
            return together([self._flat(rectangle, spans, tokens)])
        return self._apart(rectangle, spans, tokens)

    def _apart(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Feeds single tokens of rows that have begun in one call, and everything else row by row."""
        ends = list(itertools.accumulate(span.count for span in spans))
        pieces = [tokens[end - span.count : end] for end, span in zip(ends, spans, strict=True)]
        # FLAT and MLA would pack single tokens, which recurrent layers would take for one text.
        single = self.pads if self._fixed_rows else self.backend in (AttentionBackend.RAGGED, AttentionBackend.MASKED)
        if rectangle.mapped and self.backend is AttentionBackend.MASKED:
            # In one call all of them would be read as far as the longest.
            single = False
        begun = [i for i, s in enumerate(spans) if single and s.count == 1 and (s.start or self.pads)]
        most = self._fixed_rows or len(spans)
        rows = [begun[at : at + most] for at in range(0, len(begun), most)]
        flat = [[i] for i in range(len(spans)) if i not in begun]
        calls = []
        for layout, groups in ((self._flat, flat), (self._rows, rows)):
            for group in groups:
                fed = [token for i in group for token in pieces[i]]
                calls.append(layout(rectangle, [spans[i] for i in group], fed))
        logits, ran = together(calls)
        order = [i for group in (*flat, *rows) for i in group]
        parts = dict(zip(order, logits.split([spans[i].kept for i in order]), strict=True))
        return torch.cat([parts[i] for i in range(len(spans))]), ran

    # The layouts of a call

    def _rows(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Call:
        """`[n, 1]`."""
        _reach(rectangle, spans)
        empty = self._fixed_rows - len(spans) if self._fixed_rows else 0
        if self.backend.ours:
            shape: Layout = attention.decode(spans, rectangle, empty_rows=empty, fixed=self._fixed_rows > 0)
        else:
            shape = attention.own(spans, rectangle)
        ids = torch.tensor(tokens, device=rectangle.device)[:, None]
        nobody = ids.new_zeros(empty, 1)
        ids, positions = torch.cat([ids, nobody]), torch.cat([shape.cols[:, None], nobody])
        return Call(shape, partial(self.hooked.run, shape, ids, positions, None))

    def _flat(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Call:
        """`[1, N]`."""
        _reach(rectangle, spans)
        shape = self._flat_layout(spans, rectangle)
        ids = on_device(tokens, rectangle.device)[None]
        kept = on_device([*wanted_tokens(spans)], rectangle.device)
        return Call(shape, partial(self.hooked.run, shape, ids, shape.cols[None], kept))

    def _aligned(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Call:
        """`[n, T]`."""
        _reach(rectangle, spans)
        shape = padded(spans, rectangle)
        ids = torch.zeros(len(spans) * shape.padded_to, dtype=torch.int64, device=rectangle.device)
        ids[shape.kept] = torch.tensor(tokens, device=rectangle.device)
        positions = torch.zeros_like(ids)
        positions[shape.kept] = shape.cols
        last = torch.tensor(
            [at * shape.padded_to + span.count - 1 for at, span in enumerate(spans)], device=rectangle.device
        )
        aligned = (ids.view(-1, shape.padded_to), positions.view(-1, shape.padded_to))
        return Call(shape, partial(self.hooked.run, shape, *aligned, last))

    def aligned(self, shape: Padded, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """One call over rows that are laid out already, `[n, T]`.

        Returns logits `[wanted, vocabulary]` of these slots.
        """
        return self.hooked.run(shape, ids, positions, wanted)[0]


def _placed(rectangle: Rectangle, spans: Sequence[Span]) -> Sequence[Span]:
    """Replaces row numbers by row slots, which everything below uses."""
    row_slots = rectangle.row_slots
    if all(row_slots[span.row] == span.row for span in spans):
        return spans
    return [replace(span, row=row_slots[span.row]) for span in spans]


def _reach(rectangle: Rectangle, spans: Sequence[Span]) -> None:
    """Reserves memory for what these spans write."""
    for span in spans:
        rectangle.reserve(span.row, span.stop)


_FLAT: dict[AttentionBackend, FlatLayout] = {
    AttentionBackend.RAGGED: attention.fill,
    AttentionBackend.FLAT: attention.flat,
    AttentionBackend.MLA: attention.latents,
    AttentionBackend.MASKED: attention.own,
    AttentionBackend.PER_ROW: attention.own,
}
