"""A forward over rows of a rectangle: lays spans out as the model's family needs it, and answers logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.cuda.decode_steps import BUCKETS, Steps
from baton.cuda.float8 import Float8Linear
from baton.cuda.ragged_attention import Ragged
from baton.cuda.slots import Slot
from baton.cuda.varlen_prefill import Varlen, packed
from baton.kv.rectangle import Rectangle
from baton.model import attention
from baton.model.attention import Layout, Padded
from baton.model.device import device_of
from baton.model.execution import DESCRIPTIONS, WHERE, AttentionBackend, PrefillPlacement
from baton.model.hooked import EXPERTS, Hooked
from baton.model.layout import on_device
from baton.model.port import Call, ForwardStats, together
from baton.model.probe import Geometry
from baton.model.visibility import Span, cut, wanted_tokens, with_padding
from baton.native.program import Program
from baton.sampling.on_device import exact

# Tokens of a prompt that are fed at once where shapes are fixed.
GRID = 64
# A native call takes at most so many tokens at once, where it can be divided: their values stay in the cache.
PASS = 512


class Forward:
    """A `ModelRunner` of a stock model over a rectangle, as it is loaded.

    `checked_tokens`: the longest text of the self-check, 0 before it. `unchecked`: what of the config's lengths no text
    of it went beyond. `gains`: how many times as fast as behind
    decode steps prompts are elsewhere; None where that was not measured.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        geometry: Geometry,
        way: AttentionBackend = AttentionBackend.RAGGED,
        *,
        whole_prompts: bool = False,
    ) -> None:
        self.geometry = geometry
        self.way = way
        self.whole_prompts = whole_prompts
        self._hooked = Hooked(model, geometry, ours=way.ours)
        self._device = model.device
        self.near_limit, self.anew_limit = self._hooked.near_limit, self._hooked.anew_limit
        self.checked_tokens = 0
        self.unchecked: tuple[str, ...] = ()
        self.gains: dict[PrefillPlacement, float] | None = None
        self.grid = 0
        self._fixed_rows = 0
        self._program: Program | None = None
        self._why_not_native = ""
        self._why_not_faster = ""
        self._ragged: Ragged | None = None
        self._compiled: str | None = None
        self._experts: str | None = None
        self._steps: Steps | None = None
        self._varlen: Varlen | None = None
        self._prompts = ""
        self._float8 = any(isinstance(layer, Float8Linear) for layer in model.modules())
        # Where a model has no numbers, nothing is drawn.
        self._draws_there = model.device.type in ("cpu", "meta") or exact(model.device.type)
        # Prompts of several rows may go through the model in one call.
        self._packs = way.ours and not self._hooked.recurrent
        self._pads = way is AttentionBackend.RAGGED and not self._hooked.recurrent

    @property
    def description(self) -> str:  # noqa: C901
        """How the model is run, for people."""
        parts = [DESCRIPTIONS[self.way]]
        rings = sorted({shape.window for shape in self.geometry.shapes if shape.window})
        if rings:
            parts.append(f"rings of {', '.join(map(str, rings))} tokens")
        if self._hooked.recurrent:
            parts.append("states per row, prompts one by one" + (" and whole" if self.whole_prompts else ""))
        if self.near_limit is not None:
            parts.append(f"beyond {self.near_limit} tokens rotated by each text's own length")
        if self.anew_limit is not None:
            parts.append(f"computed anew where a text grows beyond {self.anew_limit} tokens")
        if self.unchecked:
            lengths = ", ".join(self.unchecked)
            parts.append(f"not checked beyond {self.checked_tokens} tokens: {lengths} (baton check does)")
        if self._float8:
            parts.append("linear layers in float8")
        if not self._draws_there:
            parts.append("tokens drawn on the host, as this device computes integers otherwise")
        if self._program:
            parts.append(self._program.description)
        elif self._ragged:
            experts = self._experts or self.experts
            named = ["decode steps of constant shape", self._ragged.name]
            named += [EXPERTS.get(experts, experts)] if experts else []
            named += [f"compiled by {self._compiled}"] if self._compiled else []
            why = f" ({self._why_not_faster})" if self._why_not_faster else ""
            parts.append(", ".join(named) + why)
        else:
            parts.append(f"step by step in torch: {self._why_not_native}")
        if self._prompts:
            parts.append(self._prompts)
        if self.gains:
            others = (f"{WHERE[how]} {gain:.2f}x" for how, gain in self.gains.items())
            parts.append(f"prompts {WHERE[self.prompts]} (measured: {', '.join(others)})")
        return "; ".join(parts)

    @property
    def program(self) -> Program | None:
        """What carries steps out in one native call each; None where torch does."""
        return self._program

    @property
    def native(self) -> bool:
        return self._program is not None

    @property
    def prompts(self) -> PrefillPlacement:
        """Where prompts are computed fastest, as far as that was measured."""
        gains = {PrefillPlacement.AFTER_DECODE: 1.0, **(self.gains or {})}
        return max(gains, key=lambda how: gains[how])

    @property
    def exchanges(self) -> bool:
        """Not where torch computes step by step on the CPU: it reads all rows up to the last, so they lie together."""
        return self.native or self._ragged is not None or self._device.type != "cpu"

    @property
    def resident(self) -> bool:
        """Whether decode steps are of constant shape."""
        return self._ragged is not None

    @property
    def pads(self) -> bool:
        """Whether rows may be aligned in one call of the model, with slots of nobody's between them."""
        return self._pads

    def go_native(self, program: Program | None, why_not: str = "") -> None:
        """From now on steps are native calls of this program; or, where there is none, torch's, and `why_not` says why.

        Only for AttentionBackend.RAGGED.
        """
        self._program, self._why_not_native = program, why_not

    def experts_by_row(self) -> None:
        """Has experts compute each token by itself. Raises LoadError where they cannot."""
        self._hooked.experts_by_row()

    @property
    def experts(self) -> str | None:
        """How experts are computed, where it has any; see `Hooked.experts`."""
        return self._hooked.experts

    def go_resident(
        self, ragged: Ragged | None, why_not: str = "", *, compiled: str | None = None, experts: str | None = None
    ) -> None:
        """From now on decode steps have constant shapes (`cuda/decode_steps.py`); with None, not any more.

        `why_not`: why none that is faster. `compiled`: a backend of torch.compile. `experts`: other than as ever.
        Raises LoadError where the model's rows cannot be fed so.
        """
        if ragged is not None and not (self._pads and self.near_limit is None):
            raise LoadError("its rows need more than a token and a length each step")
        self._ragged, self._compiled, self._experts, self._steps = ragged, compiled, experts, None
        if ragged is None:
            self._why_not_native = why_not
        else:
            self._why_not_faster = why_not

    def go_packed(self, varlen: Varlen | None, why_not: str = "") -> None:
        """From now on prompts' attention is one call per layer; or, with None, request by request, `why_not` says why.

        Raises LoadError where attention is not ours.
        """
        if varlen is not None and self.way is not AttentionBackend.RAGGED:
            raise LoadError("its layers do not take our attention as it is")
        self._varlen = varlen
        self._prompts = "prompts' attention in one call per layer"
        if varlen is None:
            self._prompts = f"prompts' attention request by request: {why_not}"

    def steps(self, rectangle: Rectangle) -> Steps | None:
        """Steps of constant shape over this rectangle, which keep its address; None where there are none."""
        if self._ragged is None or self._fixed_rows or (rectangle.mapped and self._ragged.reads_width):
            return None
        if self._steps is None or self._steps.rectangle is not rectangle:
            capture = device_of(rectangle.device).captures
            how: dict[str, Any] = {"compiled": self._compiled, "experts": self._experts}
            self._steps = Steps(self._hooked, rectangle, self._ragged, capture=capture, **how)
        return self._steps

    def fix_shapes(self, rows: int) -> None:
        """From now on a row's results are equal to the bit in any company: `--deterministic`.

        A matrix product of another shape may round differently. So decode steps are always
        of `rows` rows, empty ones computed too, and each piece of a prompt is fed alone, in the same pieces always.
        Where rows cannot be decoded in one call, each is fed alone. Raises LoadError where experts cannot be computed
        row by row.
        """
        if self._program is not None:
            # Native kernels compute each token by itself, to the bit, however a prompt is cut.
            return
        self.grid = GRID
        self._fixed_rows = rows
        self._packs = False
        self.experts_by_row()

    def decode(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        if self._program is not None:
            return self._natively(self._program, rectangle, spans, tokens)
        steps = self.steps(rectangle)
        if steps is not None and len(spans) <= BUCKETS[-1]:
            fed = zip(_placed(rectangle, spans), tokens, strict=True)
            launched = steps.launch([Slot(span.row, token, span.stop) for span, token in fed])
            needed = sum(span.stop for span in spans)
            # The next step leaves its own in the same place.
            return launched.logits.clone(), ForwardStats(needed, 0, launched.empty_slots, lambda: None)
        spans = _placed(rectangle, spans)
        if self._pads and not self._fixed_rows:
            return together([self._rows(rectangle, spans, tokens)])
        return self._unpadded(rectangle, spans, tokens)

    def fill(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Without padding; see `ModelRunner.fill`."""
        if self._program is not None:
            return self._natively(self._program, rectangle, spans, tokens)
        return self._unpadded(rectangle, _placed(rectangle, spans), tokens)

    def padded(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Rows that cannot be padded are fed as by `fill`: padding reads columns that they have not reached."""
        if self._program is not None:
            return self._natively(self._program, rectangle, spans, tokens, pad=True)
        spans = _placed(rectangle, spans)
        if self._pads and not self._fixed_rows and not rectangle.mapped:
            return together([self._aligned(rectangle, spans, tokens)])
        return self._unpadded(rectangle, spans, tokens)

    def _unpadded(
        self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]
    ) -> tuple[Tensor, ForwardStats]:
        if self._packs:
            return together([self._flat(rectangle, spans, tokens)])
        return self._apart(rectangle, spans, tokens)

    def _apart(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> tuple[Tensor, ForwardStats]:
        """Single tokens of rows that have begun in one call, everything else row by row."""
        ends = list(itertools.accumulate(span.count for span in spans))
        pieces = [tokens[end - span.count : end] for end, span in zip(ends, spans, strict=True)]
        # FLAT and MLA would pack single tokens, which recurrent layers take for one text.
        single = self._pads if self._fixed_rows else self.way in (AttentionBackend.RAGGED, AttentionBackend.MASKED)
        if rectangle.mapped and self.way is AttentionBackend.MASKED:
            # Together, all of them would be read as far as the longest.
            single = False
        begun = [i for i, s in enumerate(spans) if single and s.count == 1 and (s.start or self._pads)]
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

    def _natively(
        self, program: Program, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int], *, pad: bool = False
    ) -> tuple[Tensor, ForwardStats]:
        """All tokens of all spans, one behind the other; `pad`: and as many of nobody's as rows are shorter."""
        wanted = list(wanted_tokens(spans))
        longest = max(span.count for span in spans) if pad else 0
        if pad:
            spans, tokens, wanted = with_padding(spans, tokens, longest)
        needed = sum(span.stop for span in spans if span.row >= 0)
        if len(tokens) <= PASS or any(rectangle.rings):
            logits, ran = program.run(rectangle, spans, tokens, wanted)
            return logits, ForwardStats(needed, longest, 0, partial(program.commit, ran))
        # Where there are no rings, a pass may be repeated like the whole: columns behind a row's end are nobody's.
        parts = []
        for first in range(0, len(tokens), PASS):
            last = min(first + PASS, len(tokens))
            kept = [at - first for at in wanted if first <= at < last]
            parts.append(program.run(rectangle, cut(spans, first, last), tokens[first:last], kept)[0])
        return torch.cat(parts), ForwardStats(needed, longest, 0, lambda: None)

    # The layouts of a call

    def _rows(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Call:
        """`[n, 1]`."""
        _reach(rectangle, spans)
        empty = self._fixed_rows - len(spans) if self._fixed_rows else 0
        if self.way.ours:
            shape: Layout = attention.decode(spans, rectangle, empty_rows=empty, fixed=self._fixed_rows > 0)
        else:
            shape = attention.own(spans, rectangle)
        ids = torch.tensor(tokens, device=rectangle.device)[:, None]
        nobody = ids.new_zeros(empty, 1)
        ids, positions = torch.cat([ids, nobody]), torch.cat([shape.cols[:, None], nobody])
        return Call(shape, partial(self._hooked.run, shape, ids, positions, None))

    def _flat(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Call:
        """`[1, N]`."""
        _reach(rectangle, spans)
        varlen = self._varlen
        shape = _FLAT[self.way](spans, rectangle) if varlen is None else packed(spans, rectangle, varlen)
        ids = on_device(tokens, rectangle.device)[None]
        kept = on_device([*wanted_tokens(spans)], rectangle.device)
        return Call(shape, partial(self._hooked.run, shape, ids, shape.cols[None], kept))

    def _aligned(self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int]) -> Call:
        """`[n, T]`."""
        _reach(rectangle, spans)
        shape = attention.padded(spans, rectangle)
        ids = torch.zeros(len(spans) * shape.padded_to, dtype=torch.int64, device=rectangle.device)
        ids[shape.kept] = torch.tensor(tokens, device=rectangle.device)
        positions = torch.zeros_like(ids)
        positions[shape.kept] = shape.cols
        last = torch.tensor(
            [at * shape.padded_to + span.count - 1 for at, span in enumerate(spans)], device=rectangle.device
        )
        aligned = (ids.view(-1, shape.padded_to), positions.view(-1, shape.padded_to))
        return Call(shape, partial(self._hooked.run, shape, *aligned, last))

    def aligned(self, shape: Padded, ids: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """One call over rows that are laid out already, `[n, T]`: logits `[wanted, vocabulary]` of these slots."""
        return self._hooked.run(shape, ids, positions, wanted)[0]


def _placed(rectangle: Rectangle, spans: Sequence[Span]) -> Sequence[Span]:
    """The same spans, by where their rows lie: from here on nobody knows rows by their numbers."""
    places = rectangle.places
    if all(places[span.row] == span.row for span in spans):
        return spans
    return [replace(span, row=places[span.row]) for span in spans]


def _reach(rectangle: Rectangle, spans: Sequence[Span]) -> None:
    """There is memory for what these write, placed as they are."""
    for span in spans:
        rectangle.reach(span.row, span.stop)


_FLAT: dict[AttentionBackend, Callable[[Sequence[Span], Rectangle], Layout]] = {
    AttentionBackend.RAGGED: attention.fill,
    AttentionBackend.FLAT: attention.flat,
    AttentionBackend.MLA: attention.latents,
    AttentionBackend.MASKED: attention.own,
    AttentionBackend.PER_ROW: attention.own,
}
