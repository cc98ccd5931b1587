"""A model's step as one native call: packed weights and instructions, run over any tokens of any rows.

The order of a call is that of native/source/program.cpp. Its threads are the process's own pool, made once.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections.abc import Iterable, Iterator, Sequence
from ctypes import CDLL, byref, c_int64, c_size_t, c_void_p
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baton.core.errors import LoadError
from baton.kv.rectangle import Rectangle
from baton.model.packed_linear import PackedLinear
from baton.model.probe import Geometry
from baton.model.visibility import NOBODY, Span
from baton.native import library as native
from baton.native.codes import bytes_of_codes, pack_codes
from baton.native.graph import PLANES, Graph, Line, Ref, Space, TableSpec, head_tables
from baton.native.mapped_files import MappedFiles
from baton.native.packing import AS_SAVED, KINDS, Packing, aligned, kind_of

_HUGE_PAGE = 2 << 20


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
    they are packed, so that there is never a second copy of all; `restore` undoes it.
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
    ) -> None:
        kernels = native.best()
        if native.library is None or kernels is None:
            raise LoadError(native.describe())
        if dtype not in KINDS:
            raise LoadError(f"native kernels do not compute in {dtype}")
        self._library = native.library
        self._kernels = kernels
        self._graph = graph
        self._packing = packing
        # First: once weights are released, there is no way back to the model's own.
        self._pool = _pool(threads)
        # Memory that the native side points to must live as long as this object.
        self._alive: list[Any] = []
        self.weight_bytes = 0
        head = head_tables(graph)
        packings = [packing.of(head=at in head) for at in range(len(graph.tables))]
        self._files = MappedFiles()
        self._arena = _Arena(
            sum(self._bytes_of(one, packed) for one, packed in zip(graph.tables, packings, strict=True) if one.packed)
        )
        self._alive.append(self._arena)
        self._parameters = {parameter.data_ptr(): parameter for parameter in parameters}
        self._release = release
        # What was packed: the parameter, or None if it was made of some; and whether it lies the other way round.
        self._kept: list[tuple[nn.Parameter | None, native.Weight, bool]] = []
        tables = []
        for one, packed in zip(graph.tables, packings, strict=True):
            if one.layer is not None:
                tables.append(self._with_codes(one.layer))
                continue
            assert one.weight is not None
            tables.append(self._packed(one.weight, packed) if one.packed else self._as_is(one.weight))
            one.weight = None
        for parameter in self._parameters.values() if release else ():
            # Parameters that stay must not hold on to the file from which all were loaded.
            parameter.data = parameter.data.clone()
        self._parameters.clear()
        self._tables = (native.Table * len(tables))(*tables)
        code = (native.Instruction * len(graph.lines))(*(self._instruction(line) for line in graph.lines))
        count = len(geometry.shapes)
        layers = (native.Layer * count)(*(native.Layer(*graph.layers.get(at, (0, 0, 0))) for at in range(count)))
        visibilities = (native.Visibility * len(graph.visibilities))()
        for at, seen in enumerate(graph.visibilities):
            visibility = geometry.visibilities[seen.module]
            sinks = self._address(seen.sinks)
            visibilities[at] = native.Visibility(
                seen.layer, seen.heads, seen.scale, visibility.softcap, visibility.window, visibility.chunk, sinks
            )
        ir = native.ProgramIR(
            graph.row_floats,
            graph.late_floats,
            graph.attended_floats,
            graph.vocabulary,
            graph.token.offset,
            graph.position.offset,
            KINDS[dtype],
        )
        self._alive += [code, layers, visibilities]
        self._program: int = self._library.baton_program_new(
            kernels,
            self._pool,
            byref(ir),
            code,
            len(code),
            self._tables,
            len(tables),
            layers,
            count,
            visibilities,
            len(visibilities),
        )
        # Not when the interpreter ends: what the call needs may be gone by then, and the system frees everything.
        weakref.finalize(self, self._library.baton_program_free, self._program).atexit = False
        self._columns: tuple[Rectangle, Any, Any, Any] | None = None

    @property
    def description(self) -> str:
        """How steps run, for people."""
        return f"a step is one native call ({self._library.baton_name(self._kernels).decode()})"

    @property
    def vocabulary(self) -> int:
        return self._graph.vocabulary

    def run(
        self, rectangle: Rectangle, spans: Sequence[Span], tokens: Sequence[int], kept: Sequence[int]
    ) -> tuple[Tensor, Any]:
        """Feeds the spans' tokens.

        Returns float32 logits `[kept, vocabulary]` of the kept tokens, and the input of `commit`. Tokens of NOBODY are
        computed like others, but their keys and values are not kept. Raises MemoryError; then nothing has changed.
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
        keys, values, rings = self._of(rectangle)
        step = native.Step(
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
        )
        self._library.baton_run(self._program, byref(step))
        return logits, (step, ids, positions, placed, wanted)

    def commit(self, ran: Any) -> None:
        """Makes permanent what `run` returned; must be called before the next run."""
        self._library.baton_commit(self._program, byref(ran[0]))

    def restore(self) -> None:
        """Gives the model back the parameters that were released. Raises LoadError where they were quantised."""
        if not self._release:
            return
        if self._kept and not self._packing.exact:
            raise LoadError("its weights were quantised and are gone")
        for parameter, weight, turned in self._kept:
            if parameter is not None:
                parameter.data = self._unpacked(parameter, weight, turned)
        self._kept.clear()

    @property
    def lendable_bytes(self) -> int | None:
        """Of the parameters that `lent` gives, or None if products read weights that are no parameters."""
        size = 0
        for parameter, weight, _ in self._kept:
            if parameter is None:
                return None
            size += parameter.element_size() * weight.outputs * weight.inputs
        return size

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The model has parameters with the numbers that products read, which may be rounded, for so long."""
        before = [(parameter, parameter.data) for parameter, _, _ in self._kept if parameter is not None]
        try:
            for parameter, weight, turned in self._kept:
                if parameter is not None:
                    parameter.data = self._unpacked(parameter, weight, turned)
            yield
        finally:
            for parameter, data in before:
                parameter.data = data

    def _unpacked(self, parameter: nn.Parameter, weight: native.Weight, turned: bool) -> Tensor:
        packed = torch.empty(weight.outputs, weight.inputs)
        self._library.baton_unpack(self._kernels, byref(weight), 0, weight.outputs, packed.data_ptr())
        packed = packed.to(parameter.dtype)
        return packed.t().contiguous() if turned else packed

    def profile(self, on: bool) -> None:
        """Starts or stops counting seconds by instruction."""
        self._library.baton_time_parts(self._program, on)

    def parts(self) -> list[tuple[str, float]]:
        """Each instruction's kind and its seconds since `profile`."""
        seconds = np.zeros(len(self._graph.lines))
        self._library.baton_parts(self._program, seconds.ctypes.data)
        return [(line.does, float(took)) for line, took in zip(self._graph.lines, seconds, strict=True)]

    def _of(self, rectangle: Rectangle) -> tuple[Any, Any, Any]:
        """Where a rectangle's columns are, layer by layer."""
        if self._columns is None or self._columns[0] is not rectangle:
            count = len(rectangle.shapes)
            keys = (native.Columns * count)(*(_columns(tensor) for tensor in rectangle.keys))
            values = (native.Columns * count)(*(_columns(tensor) for tensor in rectangle.values))
            self._columns = (rectangle, keys, values, (c_int64 * count)(*rectangle.rings))
        return self._columns[1:]

    # What the native side is handed

    def _bytes_of(self, one: TableSpec, packing: Packing) -> int:
        if one.layer is not None:
            return bytes_of_codes(self._library, self._kernels, one.layer.weight_read)
        assert one.weight is not None
        return packing.bytes_of(self._library, self._kernels, one.weight)

    def _with_codes(self, layer: PackedLinear) -> native.Table:
        """Packs a checkpoint's codes into the arena. If that is allowed, the memory of the file's own is given back."""
        weight = layer.weight_read
        size = bytes_of_codes(self._library, self._kernels, weight)
        packed = pack_codes(self._library, self._kernels, weight, PLANES, self._arena.take(size))
        self.weight_bytes += size
        for tensor in layer.tensors.values() if self._release else ():
            # Whoever reads it again reads the file again.
            if self._files.hold(tensor):
                _drop_pages(tensor)
        return native.Table(packed, 0)

    def _packed(self, weight: Tensor, packing: Packing) -> native.Table:
        """Packs a product's weight into the arena, and gives back the model's own memory for it if that is allowed."""
        size = packing.bytes_of(self._library, self._kernels, weight)
        packed = packing.pack(self._library, self._kernels, weight, self._arena.take(size))
        self.weight_bytes += size
        parameter = self._parameters.get(weight.data_ptr())
        if parameter is not None and parameter.numel() != weight.numel():
            parameter = None
        self._kept.append((parameter, packed, not weight.is_contiguous()))
        if self._release and parameter is not None:
            del self._parameters[weight.data_ptr()]
            _drop_pages(parameter.data)
            parameter.data = parameter.data.new_empty(0)
        return native.Table(packed, 0)

    def _as_is(self, weight: Tensor) -> native.Table:
        """A weight that is read row by row, such as an embedding's."""
        kind, (outputs, inputs) = kind_of(weight.dtype), weight.shape
        weight = weight.detach().contiguous()
        parameter = self._parameters.pop(weight.data_ptr(), None) if self._release else None
        if parameter is not None:
            weight = parameter.data = weight.clone()
        self._alive.append(weight)
        return native.Table(native.Weight(kind, outputs, inputs, weight.data_ptr(), None), 1)

    def _instruction(self, line: Line) -> native.Instruction:
        instruction = native.Instruction()
        instruction.does = _code(line.does)
        instruction.weight, instruction.layer, instruction.visibility = line.table, line.layer, line.visibility
        instruction.op.code = _code(line.code) if line.code else 0
        instruction.op.dims = len(line.sizes)
        instruction.op.sizes[:] = line.sizes
        instruction.op.operands = len(line.inputs)
        if line.out is not None:
            instruction.out_space = self._operand(instruction.op.out, line.out)
        for at, one in enumerate(line.inputs):
            instruction.in_spaces[at] = self._operand(instruction.op.inputs[at], one)
        instruction.op.numbers[: len(line.numbers)] = line.numbers
        instruction.bias = self._address(line.bias)
        return instruction

    def _operand(self, to: native.Operand, one: Ref) -> int:
        to.strides[:] = one.strides
        if one.buffer is None:
            to.data = self._address(one.constant)
            return int(Space.CONSTANT.value)
        to.data = 4 * (one.buffer.offset * (one.buffer.space in (Space.VALUES, Space.LATE)) + one.offset)
        to.row_stride = one.buffer.size
        return int(one.buffer.space.value)

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._alive.append(tensor)
        return tensor.data_ptr()


class _Arena:
    """Memory for all packed weights together, in huge pages if the system has them.

    Fewer pages must then be looked up, and prefetching does not end at each.
    """

    def __init__(self, size: int) -> None:
        # Private, because shared memory has no huge pages.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._memory = mmap.mmap(-1, size + _HUGE_PAGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        start = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
        self._next = -(-start // _HUGE_PAGE) * _HUGE_PAGE

    def take(self, size: int) -> int:
        """Returns the address of so many bytes, at the start of a cache line."""
        address = self._next
        self._next += aligned(size)
        return address


def _drop_pages(tensor: Tensor) -> None:
    """Gives back the memory of numbers that are not needed any more.

    The memory may be a part of a mapped file that others still read.
    """
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and start < stop and tensor.is_contiguous():
        CDLL(None).madvise(c_void_p(start), c_size_t(stop - start), mmap.MADV_DONTNEED)


@cache
def _code(name: str) -> int:
    assert native.library is not None
    number: int = native.library.baton_code(name.encode())
    if number < 0:
        raise LoadError(f"the native library does not know {name}; reinstall baton")
    return number


def _columns(tensor: Tensor) -> native.Columns:
    """A layer's keys or values `[rows, columns, heads, dim]`."""
    row, column, head, _ = tensor.stride()
    return native.Columns(tensor.data_ptr(), row, column, head)
