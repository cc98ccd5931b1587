"""Writes a step's instructions: values get buffers, operations become lines of a draft."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.native.graph import Buffer, Graph, Line, Space, TableDraft, Value, VisibilityDraft, collapsed, ref, refuse
from baton.native.record import ROWS


@dataclass(frozen=True, slots=True)
class Kept:
    """What a cache layer answers: its keys or values so far."""

    layer: int


class Emitter:
    """`late`: behind the last attention, where only those tokens go on whose logits are wanted."""

    def __init__(self, draft: Graph) -> None:
        self.late = False
        self.lines: list[Line] = []
        self.pick_lines: list[Line] = []
        self._draft = draft
        self._picks: dict[Buffer, Buffer] = {}
        self._tables: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}

    def new(self, shape: Iterable[int]) -> Value:
        """A value in a buffer of its own."""
        shape = tuple(shape)
        if not shape or shape[0] != ROWS:
            raise refuse("a value without rows")
        view = torch.empty(shape, device="meta")
        return Value(Buffer(view[0].numel(), Space.LATE if self.late else Space.VALUES), view)

    def here(self, operand: Any) -> Any:
        """The operand, picked if it comes from before the last attention and only some tokens go on."""
        if not self.late or not isinstance(operand, Value) or operand.buffer.space is Space.LATE:
            return operand
        source = operand.buffer
        if source not in self._picks:
            target = self._picks[source] = Buffer(source.size, Space.LATE)
            whole = torch.empty(ROWS, source.size, device="meta")
            (sizes, refs) = collapsed(
                (source.size,), [ref(Value(b, whole), whole.shape) for b in (target, source)], keep_last=True
            )
            self.pick_lines.append(Line("PICK", sizes=sizes, out=refs[0], inputs=(refs[1],)))
        return Value(self._picks[source], operand.view)

    def by_number(self, code: str, *operands: Any, numbers: tuple[float, ...] = (), out: Value | None = None) -> Value:
        """An operation on numbers at the same place; operands are broadcast."""
        operands = tuple(self.here(one) for one in operands)
        shapes = [one.shape for one in operands if isinstance(one, (Value, Tensor))]
        shape = torch.broadcast_shapes(*shapes)
        out = self.new(shape) if out is None else self.here(out)
        refs = [ref(one, out.shape) for one in (out, *operands)]
        sizes, refs = collapsed(out.shape[1:], refs)
        self.lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers, by_number=True))
        return out

    def over_last(
        self, code: str, value: Value, *more: Any, numbers: tuple[float, ...] = (), reduced: bool, keep: bool = True
    ) -> Value:
        """An operation over the last dimension; `reduced`: to one number, whose dimension stays if `keep`."""
        value = self.here(value)
        shape = value.shape
        out = self.new((*shape[:-1], 1) if reduced else shape)
        written = Value(out.buffer, out.view.expand(shape)) if reduced else out
        refs = [ref(one, shape) for one in (written, value, *more)]
        sizes, refs = collapsed(shape[1:], refs, keep_last=True)
        self.lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers))
        return out if keep or not reduced else Value(out.buffer, out.view.squeeze(-1))

    def dense(self, value: Value) -> Value:
        """With its last dimension's numbers side by side."""
        value = self.here(value)
        return value if value.view.stride(-1) == 1 or value.shape[-1] == 1 else self.by_number("COPY", value)

    def table(self, weight: Tensor, *, packed: bool) -> int:
        key = (weight.data_ptr(), tuple(weight.shape), tuple(weight.stride()))
        if key not in self._tables:
            self._tables[key] = len(self._draft.tables)
            self._draft.tables.append(TableDraft(weight))
        found = self._draft.tables[self._tables[key]]
        found.packed = found.packed or packed
        return self._tables[key]

    def joined(self, values: list[Any], dim: int = 0) -> Value:
        """`cat`."""
        shapes = [list(one.shape) for one in values]
        dim %= len(shapes[0])
        total = [*shapes[0]]
        total[dim] = sum(shape[dim] for shape in shapes)
        out, at = self.new(total), 0
        for value, shape in zip(values, shapes, strict=True):
            part = Value(out.buffer, out.view.narrow(dim, at, shape[dim]))
            self.by_number("COPY", value, out=part)
            at += shape[dim]
        return out

    def looked_up(self, weight: Tensor, index: Value, *args: Any, **kwargs: Any) -> Value:
        """`embedding`."""
        index = self.here(index)
        if not isinstance(weight, Tensor) or index.shape[1:].numel() != 1:
            raise refuse("a table whose rows are not looked up one by one")
        out = self.new((*index.shape, weight.shape[1]))
        _, (number,) = collapsed((1,), [ref(flat_view(index), (ROWS, 1))], keep_last=True)
        sizes, (written,) = collapsed(
            (weight.shape[1],), [ref(flat_view(out), (ROWS, weight.shape[1]))], keep_last=True
        )
        self.lines.append(
            Line("EMBED", sizes=sizes, out=written, inputs=(number,), table=self.table(weight, packed=False))
        )
        return out

    def kept(self, keys: Value, values: Value, layer: int) -> tuple[Kept, Kept]:
        """A cache layer's new keys and values `[ROWS, heads, 1, dim]`."""
        self._draft.layers[layer] = (keys.shape[1], keys.shape[3], values.shape[3])
        self.lines.append(Line("KEEP", inputs=(heads_of(keys), heads_of(values)), layer=layer))
        return Kept(layer), Kept(layer)

    def attended(
        self, q: Value, keys: object, values: object, module: int, scale: float, sinks: Tensor | None
    ) -> Value:
        """q `[ROWS, heads, 1, dim]` -> `[ROWS, 1, heads, dim]`."""
        if not isinstance(keys, Kept) or not isinstance(values, Kept) or keys != values:
            raise refuse("attention over something other than what a layer keeps")
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        look = VisibilityDraft(module, keys.layer, q.shape[1], scale, sinks)
        dim = self._draft.layers[keys.layer][2]
        view = torch.empty(ROWS, 1, q.shape[1], dim, device="meta")
        out = Value(Buffer(q.shape[1] * dim, Space.ATTENDED), view)
        _, (written,) = collapsed((out.buffer.size,), [ref(flat_view(out), (ROWS, out.buffer.size))], keep_last=True)
        self.lines.append(Line("ATTEND", out=written, inputs=(heads_of(self.dense(q)),), look=len(self._draft.looks)))
        self._draft.looks.append(look)
        return out


def heads_of(value: Value) -> Any:
    """`[ROWS, heads, 1, dim]` as an operand whose last two dimensions are heads and numbers."""
    if value.view.dim() != 4 or value.shape[2] != 1:
        raise refuse("keys, values or queries that are not one per token")
    found = ref(value, value.shape)
    return type(found)(found.buffer, found.offset, (0, 0, found.strides[0], found.strides[2]), found.constant)


def flat_view(value: Value) -> Value:
    return Value(value.buffer, value.view.view(ROWS, -1))
