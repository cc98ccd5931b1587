"""A graph's lines as the instructions that the native side carries out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from baton.core.errors import LoadError
from baton.model.probe import Geometry
from baton.native import library as native
from baton.native import structs
from baton.native.graph import Graph, Line, Ref, Space

# Spaces in which buffers share room.
_SHARED = (Space.VALUES, Space.LATE, Space.SCRATCH)


class Assembler:
    """`first[i]`: where the weights of the graph's table i begin.

    `alive`: what instructions point to, which must live as long as they do.
    """

    def __init__(self, first: Sequence[int]) -> None:
        self._first = first
        self.alive: list[Tensor] = []

    def instructions(self, graph: Graph) -> Any:
        """An array of `Instruction`."""
        return (structs.Instruction * len(graph.lines))(*(self._instruction(line) for line in graph.lines))

    def visibilities(self, graph: Graph, geometry: Geometry) -> Any:
        """An array of `Visibility`."""
        made = (structs.Visibility * len(graph.visibilities))()
        for at, seen in enumerate(graph.visibilities):
            visibility = geometry.visibilities[seen.module]
            sinks = self._address(seen.sinks)
            made[at] = structs.Visibility(
                seen.layer, seen.heads, seen.scale, visibility.softcap, visibility.window, visibility.chunk, sinks
            )
        return made

    def _instruction(self, line: Line) -> structs.Instruction:
        instruction = structs.Instruction()
        instruction.does = _code(line.does)
        instruction.weight = self._first[line.table] if self._first else 0
        instruction.layer, instruction.visibility = line.layer, line.visibility
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
        instruction.steps[: len(line.steps)] = line.steps
        return instruction

    def _operand(self, to: structs.Operand, one: Ref) -> int:
        to.strides[:] = one.strides
        if one.buffer is None:
            to.data = self._address(one.constant)
            return int(Space.CONSTANT.value)
        to.data = 4 * (one.buffer.offset * (one.buffer.space in _SHARED) + one.offset)
        to.row_stride = one.buffer.offset if one.buffer.space is Space.STATE else one.buffer.size
        return int(one.space.value)

    def _address(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self.alive.append(tensor)
        return tensor.data_ptr()


@cache
def _code(name: str) -> int:
    assert native.library is not None
    number: int = native.library.baton_code(name.encode())
    if number < 0:
        raise LoadError(f"the native library does not know {name}; reinstall baton")
    return number
