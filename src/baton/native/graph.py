"""A step's program while it is written: values, the rows of numbers that hold them, and instructions.

Everything is float32 here, token ids and positions too (exact up to 2^24).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from baton.core.errors import LoadError
from baton.model.packed_experts import PackedExperts
from baton.model.packed_linear import PackedLinear
from baton.native.record import ROWS

MOST_DIMS = 4
PLANES = 2
"""Bytes of an activation in products with weights that a checkpoint packs: as exact as their codes are."""


class Space(Enum):
    """Where a buffer lies; see `Space` in native/source/program.h."""

    CONSTANT = 0
    VALUES = 1
    LATE = 2
    ATTENDED = 3
    LOGITS = 4
    STATE = 5
    SCRATCH = 6
    STATE_BEFORE = 7


@dataclass(eq=False, slots=True)
class Buffer:
    """So many numbers of each token. `offset`: where they begin in the token's row, in floats; set by `lay_out`.

    Of a STATE: which one, in the order of `Graph.states`.
    """

    size: int
    space: Space
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor `[ROWS, ...]` of the recorded step. `view`, on the meta device, has its strides in the buffer."""

    buffer: Buffer
    view: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.view.shape


@dataclass(frozen=True, slots=True)
class Ref:
    """An operand: a buffer or, if it is None, a constant's memory. `offset` and `strides` are in floats."""

    buffer: Buffer | None
    offset: int
    strides: tuple[int, ...]
    constant: Tensor | None = None

    # Of a STATE: read as the token before left it.
    before: bool = False

    @property
    def whole(self) -> bool:
        return self.offset == 0

    @property
    def space(self) -> Space:
        if self.buffer is None:
            return Space.CONSTANT
        return Space.STATE_BEFORE if self.before else self.buffer.space


@dataclass(slots=True)
class Line:
    """One instruction, see native/source/program.h."""

    does: str
    code: str = ""
    sizes: tuple[int, ...] = (1,) * MOST_DIMS
    out: Ref | None = None
    inputs: tuple[Ref, ...] = ()
    numbers: tuple[float, ...] = ()
    table: int = 0
    layer: int = 0
    visibility: int = 0
    bias: Tensor | None = None
    # Whether each number of the result depends only on the operands' numbers at the same position.
    by_number: bool = False
    # The scan it belongs to, and how far apart its parts' numbers are: of `out`, then of `inputs`.
    scan: int | None = None
    steps: tuple[int, ...] = ()


@dataclass(slots=True)
class TableSpec:
    """A weight `[outputs, inputs]`, or of experts `[experts, outputs, inputs]`, as the model has it, until it is built.

    `packed`: products read it, packed. `layer`: whose checkpoint has the weight packed already; then there is no
    `weight`. `chooses`: its product decides which experts a token goes to.
    """

    weight: Tensor | None
    packed: bool = False
    layer: PackedLinear | PackedExperts | None = None
    chooses: bool = False

    @property
    def outputs(self) -> int:
        """0 of experts."""
        if self.layer is not None:
            return self.layer.out_features if isinstance(self.layer, PackedLinear) else 0
        return len(self.weight) if self.weight is not None and self.weight.dim() == 2 else 0


@dataclass(slots=True)
class VisibilitySpec:
    """One attention of the step. `module` counts the model's attention layers, `layer` its cache layers."""

    module: int
    layer: int
    heads: int
    scale: float
    sinks: Tensor | None


@dataclass(slots=True)
class Graph:
    """A program that can be built. `layers`: heads, key and value dimensions of each layer that keeps columns.

    `states`: each layer's number and its state's, with the buffer that stands for it.
    """

    token: Buffer
    position: Buffer
    lines: list[Line] = field(default_factory=list)
    tables: list[TableSpec] = field(default_factory=list)
    visibilities: list[VisibilitySpec] = field(default_factory=list)
    layers: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    states: dict[tuple[int, int], Buffer] = field(default_factory=dict)
    row_floats: int = 0
    late_floats: int = 0
    attended_floats: int = 0
    scratch_floats: int = 0
    vocabulary: int = 0


def head_tables(graph: Graph) -> set[int]:
    """The tables of the output layer, and those of products that read the same numbers as it does."""
    heads = {at for at, one in enumerate(graph.tables) if one.outputs == graph.vocabulary}
    readers: list[set[int]] = []
    for line in graph.lines:
        if line.does == "READY":
            readers.append(set())
        elif line.does == "PRODUCT":
            readers[-1].add(line.table)
    while more := {table for group in readers if group & heads for table in group} - heads:
        heads |= more
    return heads


def refuse(why: str) -> LoadError:
    return LoadError(f"its step cannot be carried out natively: {why}")


def ref(operand: Value | Tensor | float, shape: Sequence[int]) -> Ref:
    """Returns an operand as an operation of this shape `[ROWS, ...]` reads it."""
    if isinstance(operand, Value):
        view = operand.view.expand(shape)
        if view.stride(0) != operand.buffer.size or view.storage_offset() >= max(operand.buffer.size, 1):
            raise refuse("an operation mixes rows")
        return Ref(operand.buffer, int(view.storage_offset()), tuple(view.stride()[1:]))
    constant = torch.as_tensor(operand).detach().to(torch.float32)
    if constant.dim() == len(shape) and constant.shape[0] == ROWS:
        if not (constant == constant[:1]).all():
            raise refuse("a constant differs from row to row")
        constant = constant[:1]
    constant = constant.contiguous()
    expanded = constant.expand(shape)
    return Ref(None, 0, tuple(expanded.stride()[1:]), constant)


def collapsed(
    sizes: Sequence[int], operands: Iterable[Ref], *, keep_last: int = 0
) -> tuple[tuple[int, ...], list[Ref]]:
    """Returns the same loop with as few dimensions as possible, padded in front to MOST_DIMS.

    `keep_last`: so many of the last dimensions are reduced or normalised, and are not merged.
    """
    operands = list(operands)
    if keep_last and not sizes:
        sizes, operands = (1,), [_with(one, (0,)) for one in operands]
    dims = [at for at, size in enumerate(sizes) if size != 1 or at >= len(sizes) - keep_last]
    found_sizes = [sizes[at] for at in dims]
    strides = [[one.strides[at] for at in dims] for one in operands]
    at = len(found_sizes) - 2 - keep_last
    while at >= 0:
        if all(s[at] == s[at + 1] * found_sizes[at + 1] for s in strides):
            found_sizes[at : at + 2] = [found_sizes[at] * found_sizes[at + 1]]
            for s in strides:
                del s[at]
        at -= 1
    if len(found_sizes) > MOST_DIMS:
        raise refuse(f"an operation over {len(found_sizes)} dimensions")
    fill = MOST_DIMS - len(found_sizes)
    sized = (1,) * fill + tuple(found_sizes)
    return sized, [_with(one, (0,) * fill + tuple(s)) for one, s in zip(operands, strides, strict=True)]


def _with(one: Ref, strides: tuple[int, ...]) -> Ref:
    return Ref(one.buffer, one.offset, strides, one.constant)
