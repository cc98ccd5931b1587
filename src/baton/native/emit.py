"""Writes a step's instructions: values get buffers, and operations become lines of a `Graph`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.model.packed_experts import PackedExperts
from baton.model.packed_linear import PackedLinear
from baton.native.graph import Buffer, Graph, Line, Ref, Space, TableSpec, Value, VisibilitySpec, collapsed, ref, refuse
from baton.native.record import ROWS
from baton.native.views import (
    along,
    firsts,
    flat_view,
    fold,
    heads_of,
    is_repeated,
    rows_at,
    rows_first,
    same_along,
    unfold,
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a cache layer returns: its keys or values so far."""

    layer: int


class Emitter:
    """Writes lines and makes values.

    `late`: after the last attention, where only tokens go on whose logits are wanted.
    """

    def __init__(self, graph: Graph) -> None:
        self.late = False
        self.lines: list[Line] = []
        self.pick_lines: list[Line] = []
        self._graph = graph
        self._picks: dict[Buffer, Buffer] = {}
        self._tables: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}

    def new(self, shape: Iterable[int]) -> Value:
        """A new value in a buffer of its own."""
        shape = tuple(shape)
        if not shape or shape[0] != ROWS:
            raise refuse("a value without rows")
        view = torch.empty(shape, device="meta")
        return Value(Buffer(view[0].numel(), Space.LATE if self.late else Space.VALUES), view)

    def here(self, operand: Any) -> Any:
        """Returns the operand. If it comes from before the last attention, its wanted tokens are picked."""
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
        """An element-wise operation; operands are broadcast."""
        operands = tuple(self.here(one) for one in operands)
        shape = torch.broadcast_shapes(*(one.shape for one in operands if isinstance(one, (Value, Tensor))))
        if out is not None and (not out.view.numel() or is_repeated(out)):
            return self._in_no_place(out)
        turned = rows_first(shape)
        if turned is not None:
            to, back = turned
            there = [along(one, shape, to) for one in operands]
            done = self.by_number(code, *there, numbers=numbers, out=out and along(out, shape, to))
            return Value(done.buffer, back(done.view)) if out is None else out
        # What is the same along a dimension is computed once: state spaces have much of it, other models nothing.
        once = code != "COPY" and out is None and self._graph.states
        same = same_along(operands, shape) if once else []
        if same:
            operands = tuple(along(one, shape, lambda view: firsts(view, same)) for one in operands)
        out = self.new([1 if at in same else size for at, size in enumerate(shape)]) if out is None else self.here(out)
        refs = [ref(one, out.shape) for one in (out, *operands)]
        sizes, refs = collapsed(out.shape[1:], refs)
        self.lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers, by_number=True))
        return Value(out.buffer, out.view.expand(shape)) if same else out

    @staticmethod
    def _in_no_place(out: Value) -> Value:
        if out.view.numel():
            raise refuse("an operation in place on numbers that are kept once for several")
        return out

    def over_last(
        self, code: str, value: Value, *more: Any, numbers: tuple[float, ...] = (), reduced: bool, keep: bool = True
    ) -> Value:
        """An operation over the last dimension; `reduced`: to one number, whose dimension stays if `keep`."""
        value = self.here(value)
        shape = value.shape
        if shape[0] != ROWS:
            return fold(self.over_last(code, unfold(value), *more, numbers=numbers, reduced=reduced, keep=keep))
        out = self.new((*shape[:-1], 1) if reduced else shape)
        written = Value(out.buffer, out.view.expand(shape)) if reduced else out
        refs = [ref(one, shape) for one in (written, value, *more)]
        sizes, refs = collapsed(shape[1:], refs, keep_last=True)
        self.lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers))
        return out if keep or not reduced else Value(out.buffer, out.view.squeeze(-1))

    def dotted(self, x: Any, y: Any, dim: int, *, out: Value | None = None) -> Value:
        """The sum of x times y, which have one shape, over a dimension, which stays."""
        x, y = self.here(x), self.here(y)
        shape, last = x.shape, len(x.shape) - 1
        if out is None:
            out = self.new([*shape[:dim], 1, *shape[dim + 1 :]])
        # Summed over the last dimension, or over the last but one.
        to = last if dim == last else last - 1
        turned = [along(one, shape, lambda view: view.transpose(dim, to)) for one in (out, x, y)]
        refs = [ref(one, turned[1].shape) for one in turned]
        sizes, refs = collapsed(turned[1].shape[1:], refs, keep_last=1 if dim == last else 2)
        self.lines.append(Line("ROWWISE", "DOT" if dim == last else "DOT_ACROSS", sizes, refs[0], tuple(refs[1:])))
        return out

    def dense(self, value: Value) -> Value:
        """The same value, with the numbers of its last dimension side by side."""
        value = self.here(value)
        return value if value.view.stride(-1) == 1 or value.shape[-1] == 1 else self.by_number("COPY", value)

    def table(self, weight: Tensor, *, packed: bool) -> int:
        key = (weight.data_ptr(), tuple(weight.shape), tuple(weight.stride()))
        if key not in self._tables:
            self._tables[key] = len(self._graph.tables)
            self._graph.tables.append(TableSpec(weight))
        entry = self._graph.tables[self._tables[key]]
        entry.packed = entry.packed or packed
        return self._tables[key]

    def packed_table(self, layer: PackedLinear | PackedExperts) -> int:
        """The table of a weight that its checkpoint has packed."""
        key = (-1 - layer.layer_id, (), ())
        if key not in self._tables:
            self._tables[key] = len(self._graph.tables)
            self._graph.tables.append(TableSpec(None, packed=True, layer=layer))
        return self._tables[key]

    def joined(self, values: list[Any], dim: int = 0) -> Value:
        """`cat`."""
        shapes = [list(one.shape) for one in values]
        dim %= len(shapes[0])
        total = [*shapes[0]]
        total[dim] = sum(shape[dim] for shape in shapes)
        rows, at = rows_at(torch.Size(total)), 0
        out = self.new((total.pop(rows), *total))
        out = Value(out.buffer, out.view.movedim(0, rows))
        for value, shape in zip(values, shapes, strict=True):
            part = Value(out.buffer, out.view.narrow(dim, at, shape[dim]))
            self.by_number("COPY", value, out=part)
            at += shape[dim]
        return out

    def looked_up(self, weight: Tensor, index: Value, *args: Any, **kwargs: Any) -> Value:
        """`embedding`."""
        index = self.here(index)
        if not isinstance(weight, Tensor) or weight.dim() != 2:
            raise refuse("a table that is computed")
        width = weight.shape[1]
        out = self.new((*index.shape, width))
        numbers = self.flat(index)
        count = numbers.shape[1]
        self.lines.append(
            Line(
                "EMBED",
                sizes=(1, 1, count, width),
                out=_padded(ref(flat_view(out), (ROWS, count * width)), (width, 1)),
                inputs=(_padded(ref(numbers, numbers.shape), (numbers.view.stride(1), 0)),),
                table=self.table(weight, packed=False),
            )
        )
        return out

    def flat(self, value: Value) -> Value:
        """The same value as `[ROWS, numbers]`."""
        try:
            return flat_view(value)
        except RuntimeError:
            return flat_view(self.by_number("COPY", value))

    def chosen(self, x: Value, index: Value, weight: Tensor | PackedExperts) -> Value:
        """A product with chosen experts: x `[ROWS, slots or 1, inputs]`, index `[ROWS, slots]`.

        `weight` `[experts, outputs, inputs]`; returns `[ROWS, slots, outputs]`.
        """
        if not isinstance(weight, (Tensor, PackedExperts)) or x.view.dim() != 3 or index.view.dim() != 2:
            raise refuse("experts whose weights are computed")
        x, index = self.dense(x), self.here(index)
        if isinstance(weight, PackedExperts):
            experts, outputs, table = weight.experts, weight.out_features, self.packed_table(weight)
        else:
            (experts, outputs, _), table = weight.shape, self.table(weight, packed=True)
        slots = index.shape[1]
        out = self.new((ROWS, slots, outputs))
        between = x.view.stride(1) if x.shape[1] > 1 else 0
        self.lines.append(
            Line(
                "EXPERT",
                sizes=(1, experts, slots, outputs),
                out=_padded(ref(out, out.shape), (outputs, 1)),
                inputs=(
                    _padded(ref(x, x.shape), (between, 1)),
                    _padded(ref(index, index.shape), (index.view.stride(1), 0)),
                ),
                table=table,
            )
        )
        return out

    def largest(self, x: Value, count: int) -> tuple[Value, Value]:
        """The largest numbers of the last dimension `[..., count]`, in order, and which they are."""
        x = self.here(x)
        index = self.new((*x.shape[:-1], count))
        self._by_index("TOPK", index, x, numbers=(float(x.shape[-1]), float(count)))
        return self.picked(x, index), index

    def picked(self, x: Any, index: Value) -> Value:
        """`gather` along the last dimension."""
        index = self.here(index)
        out = self.new(index.shape)
        self._by_index("GATHER", out, x, index, numbers=(float(x.shape[-1]),))
        return out

    def scattered(self, to: Value, index: Value, what: Any) -> Value:
        """`scatter` along the last dimension, in place."""
        to, index = self.here(to), self.here(index)
        shape = index.shape
        what = what if isinstance(what, Value) else torch.as_tensor(what)
        what = Value(what.buffer, what.view[..., : shape[-1]]) if isinstance(what, Value) else what
        self._by_index("SCATTER", to, index, what, numbers=(float(to.shape[-1]), float(shape[-1])))
        return to

    def _by_index(self, code: str, out: Value, *operands: Any, numbers: tuple[float, ...]) -> None:
        """A line whose operands have the same dimensions but the last, which each walks in its own way."""
        operands = tuple(self.here(one) for one in operands)
        shapes = [one.shape if isinstance(one, Value) else (*out.shape[:-1], 1) for one in (out, *operands)]
        if len({tuple(shape[:-1]) for shape in shapes}) != 1:
            raise refuse(f"{code.lower()} over dimensions that differ")
        refs = [ref(one, shape) for one, shape in zip((out, *operands), shapes, strict=True)]
        sizes, refs = collapsed(out.shape[1:], refs, keep_last=True)
        self.lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers))

    def state(self, like: Value, layer: int, at: int, shape: list[int], dtype: torch.dtype) -> Value:
        """A state of the token's row, as the row's last token left it."""
        buffer = self._graph.states.setdefault((layer, at), Buffer(math.prod(shape), Space.STATE))
        return Value(buffer, torch.empty(ROWS, *shape, device="meta"))

    def kept_state(self, value: Value, layer: int, at: int) -> Value:
        """The state as the row's next token finds it."""
        buffer = self._graph.states[layer, at]
        whole = Value(buffer, torch.empty(value.shape, device="meta"))
        if value.buffer is not buffer:
            return self.by_number("COPY", value, out=whole)
        if value.view.stride() != whole.view.stride():
            raise refuse("a state that becomes a view of itself")
        return value

    def kept(self, keys: Value, values: Value, layer: int) -> tuple[Kept, Kept]:
        """A cache layer's new keys and values `[ROWS, heads, 1, dim]`."""
        self._graph.layers[layer] = (keys.shape[1], keys.shape[3], values.shape[3])
        self.lines.append(Line("KEEP", inputs=(heads_of(keys), heads_of(values)), layer=layer))
        return Kept(layer), Kept(layer)

    def attended(
        self, q: Value, keys: object, values: object, module: int, scale: float, sinks: Tensor | None
    ) -> Value:
        """q `[ROWS, heads, 1, dim]` -> `[ROWS, 1, heads, dim]`."""
        if not isinstance(keys, Kept) or not isinstance(values, Kept) or keys != values:
            raise refuse("attention over something other than what a layer keeps")
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        visibility = VisibilitySpec(module, keys.layer, q.shape[1], scale, sinks)
        dim = self._graph.layers[keys.layer][2]
        view = torch.empty(ROWS, 1, q.shape[1], dim, device="meta")
        out = Value(Buffer(q.shape[1] * dim, Space.ATTENDED), view)
        _, (written,) = collapsed((out.buffer.size,), [ref(flat_view(out), (ROWS, out.buffer.size))], keep_last=True)
        self.lines.append(
            Line("ATTEND", out=written, inputs=(heads_of(self.dense(q)),), visibility=len(self._graph.visibilities))
        )
        self._graph.visibilities.append(visibility)
        return out


def _padded(one: Ref, strides: tuple[int, int]) -> Ref:
    """An operand whose last two dimensions are these."""
    return Ref(one.buffer, one.offset, (0, 0, *strides), one.constant)
