"""A model's step as one native call: packed weights and instructions, run over any tokens of any rows.

The order of a call is that of native/source/program.cpp. Its threads are the process's own pool, made once.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from ctypes import byref, c_int64
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baton.core.errors import LoadError
from baton.kv.rectangle import Rectangle
from baton.model.probe import Geometry
from baton.model.visibility import NOBODY, Span
from baton.native import library as native
from baton.native import structs
from baton.native.assembler import Assembler
from baton.native.graph import Graph
from baton.native.kept_weights import KeptWeights
from baton.native.latents import kept_by
from baton.native.packing import AS_SAVED, KINDS, Packing
from baton.native.weights import Weights


@cache
def _pool(threads: int) -> int:
    """Returns the process's native threads, which live as long as it does.

    Raises LoadError if they cannot be started.
    """
    assert native.library is not None
    pool: int = native.library.baton_pool_new(threads)
    return pool


class Program:
    """`dtype`: of keys and values, and of weights that are not quantised. Only one thread calls it.

    `packing`: how products' weights are kept. `parameters`: the model's, and whether to `release` their memory once
    they are packed, so that there is never a second copy of all; `restore` undoes it. `kept`: see `Weights`.
    Raises LoadError without a native library, if it does not compute in this dtype, or if its threads cannot start.
    """

    def __init__(
        self,
        graph: Graph,
        geometry: Geometry,
        dtype: torch.dtype,
        *,
        threads: int,
        packing: Packing = AS_SAVED,
        parameters: Iterable[nn.Parameter] = (),
        release: bool = False,
        kept: KeptWeights | None = None,
    ) -> None:
        kernels = native.best()
        if native.library is None or kernels is None:
            raise LoadError(native.describe())
        if dtype not in KINDS:
            raise LoadError(f"native kernels do not compute in {dtype}")
        self._library = native.library
        self._kernels = kernels
        self._graph = graph
        # First: once weights are released, there is no way back to the model's own.
        self._pool = _pool(threads)
        self._weights = Weights(kernels, graph, packing, parameters, release=release, kept=kept)
        self._tables = self._weights.tables
        assembler = Assembler(self._weights.first)
        code = assembler.instructions(graph)
        self.geometry = kept_by(geometry, graph)
        count = len(geometry.shapes)
        layers = (structs.Layer * count)(*(structs.Layer(*graph.layers.get(at, (0, 0, 0))) for at in range(count)))
        visibilities = assembler.visibilities(graph, geometry)
        ir = structs.ProgramIR(
            graph.row_floats,
            graph.late_floats,
            graph.attended_floats,
            graph.vocabulary,
            graph.scratch_floats,
            graph.token.offset,
            graph.position.offset,
            KINDS[dtype],
        )
        states = np.array([math.prod(geometry.shapes[layer].states[at].shape) for layer, at in graph.states], np.int64)
        # What the native side points to must live as long as this object.
        self._alive = [*assembler.alive, code, layers, visibilities, states]
        self._program: int = self._library.baton_program_new(
            kernels,
            self._pool,
            byref(ir),
            code,
            len(code),
            self._tables,
            len(self._tables),
            layers,
            count,
            visibilities,
            len(visibilities),
            states.ctypes.data,
            len(states),
        )
        # Not when the interpreter ends: what the call needs may be gone by then, and the system frees everything.
        weakref.finalize(self, self._library.baton_program_free, self._program).atexit = False
        self._places: tuple[Rectangle, Any, Any, Any, Any, Any] | None = None

    @property
    def description(self) -> str:
        """How steps run, for people."""
        return f"a step is one native call ({self._library.baton_name(self._kernels).decode()})"

    @property
    def vocabulary(self) -> int:
        return self._graph.vocabulary

    def run(
        self,
        rectangle: Rectangle,
        spans: Sequence[Span],
        tokens: Sequence[int],
        kept: Sequence[int],
        begun: Collection[int] = (),
    ) -> tuple[Tensor, Any]:
        """Feeds the spans' tokens.

        Returns float32 logits `[kept, vocabulary]` of the kept tokens, and the input of `commit`. Tokens of NOBODY are
        computed like others, but their keys and values are not kept. `begun`: rows that go on from the states that an
        earlier run wrote, which is not committed yet. Raises MemoryError; then nothing has changed.
        """
        counts = [span.count for span in spans]
        firsts = np.cumsum([0, *counts[:-1]])
        # A span of NOBODY (-1) has no row slot either.
        at = [*rectangle.row_slots, NOBODY]
        placed = np.array(
            [(at[s.row], s.start, s.count, first) for s, first in zip(spans, firsts, strict=True)], np.int64
        )
        ids = np.array(tokens, np.int64)
        positions = (
            np.concatenate([np.arange(span.start, span.stop) for span in spans])
            if max(counts) > 1
            else placed[:, 1].copy()
        )
        wanted = np.array(kept, np.int64)
        logits = torch.empty(len(kept), self._graph.vocabulary)
        keys, values, rings, states, strides = self._of(rectangle)
        read, written = _state_slots(rectangle, spans, begun)
        step = structs.Step(
            len(ids),
            ids.ctypes.data,
            positions.ctypes.data,
            placed.ctypes.data,
            len(placed),
            wanted.ctypes.data,
            len(wanted),
            keys,
            values,
            rings,
            logits.data_ptr(),
            states.ctypes.data,
            strides.ctypes.data,
            read.ctypes.data,
            written.ctypes.data,
        )
        self._library.baton_run(self._program, byref(step))
        return logits, (step, ids, positions, placed, wanted, read, written)

    def commit(self, rectangle: Rectangle, spans: Sequence[Span], ran: Any = None) -> None:
        """Makes permanent what runs of these spans wrote. `ran`: what the only run returned, if there are rings.

        Must be called before the next run.
        """
        if ran is not None:
            self._library.baton_commit(self._program, byref(ran[0]))
        if self._graph.states:
            for row in {span.row for span in spans if span.row != NOBODY}:
                rectangle.flip(row)

    @property
    def chosen_share(self) -> float:
        """The share of experts that a token chooses, the smallest of all layers; 0 if it goes to all there are."""
        lines = self._graph.lines
        sizes = [line.sizes for line in lines if line.does == "EXPERT"]
        # All are slots where those that were not chosen are fed zeros.
        largest = {line.numbers[0]: line.numbers[1] for line in lines if line.code == "TOPK"}
        chosen = [(slots if slots < all else largest.get(all, all)) / all for _, all, slots, _ in sizes]
        return min((share for share in chosen if share < 1), default=0.0)

    @property
    def chooses(self) -> bool:
        """Whether tokens choose among experts."""
        return self.chosen_share > 0

    @property
    def weight_bytes(self) -> int:
        """Of all packed weights."""
        return self._weights.packed_bytes

    def restore(self) -> None:
        """Gives the model back the parameters that were released. Raises LoadError where they were quantised."""
        self._weights.restore()

    @property
    def lendable_bytes(self) -> int | None:
        """Of the parameters that `lent` gives, or None if products read weights that are no parameters."""
        return self._weights.lendable_bytes

    def lent(self) -> AbstractContextManager[None]:
        """The model has parameters with the numbers that products read, which may be rounded, for so long."""
        return self._weights.lent()

    def profile(self, on: bool) -> None:
        """Starts or stops counting seconds by instruction."""
        self._library.baton_time_parts(self._program, on)

    def parts(self) -> list[tuple[str, float]]:
        """Each instruction's kind and its seconds since `profile`."""
        seconds = np.zeros(len(self._graph.lines))
        self._library.baton_parts(self._program, seconds.ctypes.data)
        return [(line.does, float(took)) for line, took in zip(self._graph.lines, seconds, strict=True)]

    def _of(self, rectangle: Rectangle) -> tuple[Any, Any, Any, Any, Any]:
        """Where a rectangle's columns are, layer by layer, and its states."""
        if self._places is None or self._places[0] is not rectangle:
            count = len(rectangle.shapes)
            keys = (structs.Columns * count)(*(_columns(tensor) for tensor in rectangle.keys))
            values = (structs.Columns * count)(*(_columns(tensor) for tensor in rectangle.values))
            states = [rectangle.states[layer][at] for layer, at in self._graph.states]
            addresses = np.array([state.data_ptr() for state in states], np.uintp)
            strides = np.array([state.stride(0) for state in states], np.int64)
            self._places = (rectangle, keys, values, (c_int64 * count)(*rectangle.rings), addresses, strides)
        return self._places[1:]


def _state_slots(rectangle: Rectangle, spans: Sequence[Span], begun: Collection[int]) -> tuple[Any, Any]:
    """Which of the states' slots each span reads, and which it writes; -1: none."""
    read, written = np.full(len(spans), -1, np.int64), np.full(len(spans), -1, np.int64)
    for at, span in enumerate(spans):
        if span.row != NOBODY:
            current, spare = rectangle.state_slots(span.row)
            read[at] = -1 if not span.start else spare if span.row in begun else current
            written[at] = spare
    return read, written


def _columns(tensor: Tensor) -> structs.Columns:
    """A layer's keys or values `[rows, columns, heads, dim]`."""
    row, column, head, _ = tensor.stride()
    return structs.Columns(tensor.data_ptr(), row, column, head)
