"""Decode steps of constant shape: the host's work for one does not depend on how long rows are.

All inputs of a step are one array, so many numbers per slot, which is read on the device. A token that the step before
has just drawn is read on the device too. A CUDA device captures a step once for each number of slots (rounded up, see
BUCKETS), with its greedy draw, and replays it as one graph; each kind of random draw is a small graph after it. Other
devices run the same code directly.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from baton.core.sampling import SamplingParams
from baton.cuda.compiled_layers import compiled_layers
from baton.cuda.graphs import Graphs
from baton.cuda.ragged_attention import Ragged, TokenRows
from baton.cuda.slots import GREEDY, NUMBERS, Chance, Slot, chances_of, step_inputs
from baton.kv.rectangle import Rectangle
from baton.model.hooked import Hooked
from baton.model.layout import Layout
from baton.model.visibility import NOBODY, Span, Visibility
from baton.sampling.draw import filters_of
from baton.sampling.on_device import Kind, drawn

log = logging.getLogger("baton.model")

BUCKETS: tuple[int, ...] = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""How many slots captured steps have."""
# Runs before a capture, in which libraries choose their algorithms and allocate what they keep.
_WARM_UPS = 2


@dataclass(frozen=True, slots=True)
class Launched:
    """A running step. `logits` `[slots, vocabulary]` in float32 are valid until the next step."""

    slots: tuple[Slot, ...]
    logits: Tensor
    empty_slots: int
    _codes: Tensor
    _done: Any = None

    def tokens(self) -> list[int]:
        """The token that each slot drew, or NOT_FINITE or TOO_FEW_CANDIDATES; waits for the step."""
        if self._done is not None:
            self._done.synchronize()
        codes: list[int] = self._codes.tolist()
        return codes[: len(self.slots)]


@dataclass(slots=True)
class Resident(Layout):
    """One token per slot, `[n, 1]`. Everything that differs between steps is in tensors. `width`: columns in use."""

    stops: Tensor = field(default_factory=lambda: torch.empty(0))
    ragged: Ragged | None = None
    width: int = 0

    def keep(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        assert self.ragged is not None
        kept = self.rectangle.keys[layer], self.rectangle.values[layer]
        self.ragged.keep((keys[:, :, 0], values[:, :, 0]), kept, self._token_rows(self.rectangle.rings[layer]))
        return kept

    def attend(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float | None,
        visibility: Visibility,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """q `[n, Hq, 1, D]`, keys and values `[R, C, H, D]` -> `[n, 1, Hq, Dv]`."""
        assert self.ragged is not None
        token_rows = self._token_rows(keys.shape[1] if keys.shape[1] < self.rectangle.columns else 0)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return self.ragged.attend(q[:, :, 0], (keys, values), token_rows, scale, visibility, sinks)[:, None]

    def _token_rows(self, ring: int) -> TokenRows:
        return TokenRows(self.rows, self.stops, ring, self.width)


class Steps:
    """Steps over one rectangle, one after the other on the device's current stream.

    `capture`: as CUDA graphs. `compiled`: layers are compiled first, by this backend of torch.compile. `experts`: how
    steps compute experts, if not as usual.
    """

    def __init__(
        self,
        hooked: Hooked,
        rectangle: Rectangle,
        ragged: Ragged,
        *,
        capture: bool,
        compiled: str | None = None,
        experts: str | None = None,
    ) -> None:
        self.rectangle = rectangle
        self._hooked = hooked
        self._ragged = ragged
        self._compiled = compiled_layers(hooked, compiled) if compiled else None
        self._experts = experts
        self._made: dict[tuple[int, int], _Step] = {}
        self._drawn = torch.zeros(BUCKETS[-1], dtype=torch.int64, device=rectangle.device)
        self._graphs = Graphs() if capture else None

    def warm(self, rows: int) -> None:
        """Captures the steps of up to so many rows and their draws, before any row holds anything."""
        draws = (
            (GREEDY, Chance(1.0), Chance(1.0, filters_of(SamplingParams(top_k=1))))
            if self._graphs is not None
            else (GREEDY,)
        )
        enough = sum(bucket < rows for bucket in BUCKETS)
        for size, chance in itertools.product(BUCKETS[: enough + 1], draws):
            self.launch([Slot(place, 0, 1, chance) for place in range(min(size, rows))]).tokens()
        for row in range(rows):
            self.rectangle.clear(row)

    def launch(self, slots: Sequence[Slot]) -> Launched:
        """Begins a step of these slots, at most as many as the largest bucket has."""
        for slot in slots:
            self.rectangle.reserve(slot.place, slot.stop)
        size = next(size for size in BUCKETS if size >= len(slots))
        width = self._width(max(slot.stop for slot in slots)) if self._ragged.reads_width else 0
        kind = max(slot.chance.kind for slot in slots)
        step = self._made.get((size, width))
        inputs = step_inputs(slots, size)
        if step is None:
            step = self._made[size, width] = self._make(size, width, inputs)
        step.inputs.copy_(inputs, non_blocking=True)
        self._go(step, kind)
        return self._begun(slots, step, size)

    def _begun(self, slots: Sequence[Slot], step: _Step, size: int) -> Launched:
        if self._drawn.device.type != "cuda":
            return Launched(tuple(slots), step.logits[: len(slots)], size - len(slots), self._drawn[:size].clone())
        codes = torch.empty(size, dtype=torch.int64, pin_memory=True)
        codes.copy_(self._drawn[:size], non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return Launched(tuple(slots), step.logits[: len(slots)], size - len(slots), codes, done)

    @torch.inference_mode()
    def _go(self, step: _Step, kind: Kind) -> None:
        """Runs a step, which draws greedily, and then the random draws."""
        step.run()
        if kind in step.draws:
            step.draws[kind]()
        elif kind is not Kind.GREEDY:
            draw = partial(self._draw, step.inputs, step.logits, kind)
            draw()
            if self._graphs is not None:
                step.draws[kind] = self._drawing(self._graphs, draw, len(step.logits))

    def _drawing(self, graphs: Graphs, draw: Callable[[], None], size: int) -> Callable[[], Any]:
        """This draw as a graph; as plain code if the graph does not repeat its own draw."""
        expected = self._drawn[:size].clone()
        try:
            replay, _ = graphs.captured(draw)
            self._drawn[:size].fill_(0)
            replay()
            if torch.equal(self._drawn[:size], expected):
                return replay
            why = "its graph draws other tokens"
        except RuntimeError as error:
            why = str(error).splitlines()[0]
        log.warning("draws at random are launched behind each step, not as a graph: %s", why)
        self._drawn[:size].copy_(expected)
        return draw

    def _draw(self, inputs: Tensor, logits: Tensor, kind: Kind) -> None:
        self._drawn[: len(logits)].copy_(drawn(logits, chances_of(inputs), kind))

    def _width(self, longest: int) -> int:
        return min(self.rectangle.columns, 1 << (longest - 1).bit_length())

    def _make(self, size: int, width: int, first: Tensor) -> _Step:
        inputs = torch.zeros(NUMBERS, size, dtype=torch.int64, device=self.rectangle.device)
        body = self._body(inputs, width)
        if self._graphs is None:
            return _Step(inputs, body)
        before = self._drawn.clone()
        with self._graphs.aside():
            for _ in range(_WARM_UPS):
                # A step writes the same into the rectangle each time it is repeated.
                self._drawn.copy_(before)
                inputs.copy_(first)
                body()
            self._drawn.copy_(before)
        return _Step(inputs, *self._graphs.captured(body))

    def _body(self, inputs: Tensor, width: int) -> Callable[[], Tensor]:
        """The work of a step, over static tensors."""
        given, rows, stops = inputs[:3]
        size = inputs.shape[1]
        spans = [Span(NOBODY, 0, 1)] * size
        shape = Resident(spans, self.rectangle, rows, stops, 0, stops=stops, ragged=self._ragged, width=width)

        @torch.inference_mode()
        def body() -> Tensor:
            before = self._drawn[(-1 - given).clamp(min=0)].clamp(min=0)
            tokens = torch.where(given >= 0, given, before)
            positions = (stops - 1).clamp(min=0)
            with self._hooked.computing_experts(self._experts):
                logits, _ = self._hooked.run(shape, tokens[:, None], positions[:, None], None, compiled=self._compiled)
            self._draw(inputs, logits, Kind.GREEDY)
            return logits

        return body


class _Step:
    """`inputs`: the tensor with a step's inputs. `logits`: where it leaves them, or its last run's result.

    `draws`: random draws after it, if they were captured.
    """

    def __init__(self, inputs: Tensor, go: Callable[[], Any], logits: Tensor | None = None) -> None:
        self.inputs = inputs
        self._go = go
        self._left = logits
        self.draws: dict[Kind, Callable[[], Any]] = {}
        self.logits = logits if logits is not None else inputs

    def run(self) -> None:
        answered = self._go()
        self.logits = answered if self._left is None else self._left
