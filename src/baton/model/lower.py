"""A recorded step becomes a program: what each of torch's operations is in native instructions.

Views cost nothing: they are ways to look at a buffer, and torch itself says how (on the meta device). Constants are
computed here, once. Linear products that read the same numbers stand together. Behind the last attention only those
tokens go on whose logits are wanted. What is not known here raises LoadError, and the model is run as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from baton.model.draft import Buffer, Draft, Line, LookDraft, Space, TableDraft, Value, collapsed, lay_out, ref, refuse
from baton.model.record import ATTEND, KEEP, ROWS, Recorded

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class _Kept:
    """What a cache layer answers: its keys or values so far."""

    layer: int


def lower(recorded: Recorded) -> Draft:
    """Raises LoadError, with the reason, where the step holds what native code does not do."""
    return _Lowering(recorded).run()


class _Lowering:
    def __init__(self, recorded: Recorded) -> None:
        self._graph = recorded.graph
        self._draft = Draft(Buffer(1, Space.VALUES), Buffer(1, Space.VALUES))
        self._known: dict[Node, Any] = {}
        self._products: dict[Node, Value] = {}
        self._lines: list[Line] = []
        self._late = False
        self._picks: dict[Buffer, Buffer] = {}
        self._pick_lines: list[Line] = []
        self._tables: dict[tuple[int, tuple[int, ...], tuple[int, ...]], int] = {}

    def run(self) -> Draft:
        nodes = list(self._graph.graph.nodes)
        needed = _needed(nodes)
        before = _before_attention(nodes)
        inputs = iter((self._draft.token, self._draft.position))
        for node in nodes:
            if node.op == "placeholder":
                self._known[node] = Value(next(inputs), torch.empty(ROWS, 1, device="meta"))
        work = [node for node in nodes if node in needed and node.op in ("get_attr", "call_function")]
        self._groups = _groups(work, before)
        for late in (False, True):
            self._late = late
            if late:
                early, self._lines = self._lines, []
            for node in work:
                if node.op == "get_attr":
                    self._known[node] = getattr(self._graph, str(node.target))
                elif (node not in before) == late:
                    self._known[node] = self._lowered(node)
        self._answer(self._known[nodes[-1].args[0]])
        self._draft.lines = early + self._pick_lines + self._lines
        lay_out(self._draft)
        return self._draft

    def _answer(self, logits: object) -> None:
        if not isinstance(logits, Value) or logits.shape[:-1].numel() != ROWS or not self._late:
            raise refuse("its logits are not one row per token")
        size = logits.shape[-1]
        view = logits.view
        if logits.buffer.size != size or view.storage_offset() or view.stride(-1) != 1 or not self._picked(logits):
            logits = self.by_number("COPY", logits)
        logits.buffer.space = Space.LOGITS
        self._draft.vocabulary = size

    def _picked(self, value: Value) -> bool:
        return value.buffer.space is Space.LATE

    def _lowered(self, node: Node) -> object:
        args = torch.fx.node.map_arg(node.args, lambda one: self._known[one])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda one: self._known[one])
        values = [one for one in _flat((*args, *kwargs.values())) if isinstance(one, (Value, _Kept))]
        if node in self._products:
            return self._products[node]
        if not values:
            with torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        target: Any = node.target
        if target in (aten.mm.default, aten.addmm.default):
            return self._multiplied(node, args)
        if target in _VIEWS:
            return self._viewed(target, args, kwargs)
        handler = _HANDLERS.get(target)
        if handler is None:
            raise refuse(f"{target}")
        return handler(self, *args, **kwargs)

    # What handlers are made of

    def new(self, shape: Iterable[int]) -> Value:
        """A value in a buffer of its own."""
        shape = tuple(shape)
        if not shape or shape[0] != ROWS:
            raise refuse("a value without rows")
        view = torch.empty(shape, device="meta")
        return Value(Buffer(view[0].numel(), Space.LATE if self._late else Space.VALUES), view)

    def here(self, operand: Any) -> Any:
        """The operand, picked if it comes from before the last attention and only some tokens go on."""
        if not self._late or not isinstance(operand, Value) or self._picked(operand):
            return operand
        source = operand.buffer
        if source not in self._picks:
            target = self._picks[source] = Buffer(source.size, Space.LATE)
            whole = torch.empty(ROWS, source.size, device="meta")
            (sizes, refs) = collapsed(
                (source.size,), [ref(Value(b, whole), whole.shape) for b in (target, source)], keep_last=True
            )
            self._pick_lines.append(Line("PICK", sizes=sizes, out=refs[0], inputs=(refs[1],)))
        return Value(self._picks[source], operand.view)

    def by_number(self, code: str, *operands: Any, numbers: tuple[float, ...] = (), out: Value | None = None) -> Value:
        """An operation on numbers at the same place; operands are broadcast."""
        operands = tuple(self.here(one) for one in operands)
        shapes = [one.shape for one in operands if isinstance(one, (Value, Tensor))]
        shape = torch.broadcast_shapes(*shapes)
        out = self.new(shape) if out is None else self.here(out)
        refs = [ref(one, out.shape) for one in (out, *operands)]
        sizes, refs = collapsed(out.shape[1:], refs)
        self._lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers, by_number=True))
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
        self._lines.append(Line("ROWWISE", code, sizes, refs[0], tuple(refs[1:]), numbers))
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

    # The larger operations

    def _multiplied(self, node: Node, args: tuple[Any, ...]) -> Value:
        """This product, and with it all others that read the same numbers."""
        source = args[-2]
        if not isinstance(source, Value) or not isinstance(args[-1], Tensor):
            raise refuse("a product of two computed values")
        source = self.dense(source)
        first = True
        for other in self._groups.get(node, [node]):
            bias, weight = self._constants(other)
            table = self.table(weight.t(), packed=True)
            if first:
                _, (operand,) = collapsed(source.shape[1:], [ref(source, source.shape)], keep_last=True)
                self._lines.append(Line("READY", inputs=(operand,), table=table))
                first = False
            out = self.new((ROWS, weight.shape[1]))
            sizes, (written,) = collapsed(out.shape[1:], [ref(out, out.shape)], keep_last=True)
            self._lines.append(Line("PRODUCT", sizes=sizes, out=written, table=table, bias=bias))
            self._products[other] = out
        return self._products[node]

    def _constants(self, node: Node) -> tuple[Tensor | None, Tensor]:
        """A product's bias and weight `[inputs, outputs]`."""
        found = [self._constant(one) for one in node.args if isinstance(one, Node)]
        weight = found[-1]
        if weight is None or (len(found) == 3 and (found[0] is None or node.kwargs)):
            raise refuse("a product of two computed values")
        bias = found[0] if len(found) == 3 else None
        return (None if bias is None else bias.detach().float().contiguous()), weight

    def _constant(self, node: Node) -> Tensor | None:
        """What a node answers if it depends on constants alone."""
        if node not in self._known and node.op == "get_attr":
            self._known[node] = getattr(self._graph, str(node.target))
        if (
            node not in self._known
            and node.op == "call_function"
            and all(self._constant(one) is not None for one in node.all_input_nodes)
        ):
            self._known[node] = self._lowered(node)
        found = self._known.get(node)
        return found if isinstance(found, Tensor) else None

    def _viewed(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        value = args[0]
        if isinstance(value, _Kept):
            raise refuse("keys and values are looked at by more than attention")
        try:
            found = target(value.view, *args[1:], **kwargs)
        except RuntimeError:
            # A shape that these numbers cannot be seen in as they lie.
            value = self.by_number("COPY", value)
            found = target(value.view, *args[1:], **kwargs)
        if isinstance(found, Tensor):
            return Value(value.buffer, found)
        return [Value(value.buffer, one) for one in found]

    def joined(self, values: list[Any], dim: int = 0) -> Value:
        """`cat`"""
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
        """`embedding`"""
        index = self.here(index)
        if not isinstance(weight, Tensor) or index.shape[1:].numel() != 1:
            raise refuse("a table whose rows are not looked up one by one")
        out = self.new((*index.shape, weight.shape[1]))
        _, (number,) = collapsed((1,), [ref(_flat_view(index), (ROWS, 1))], keep_last=True)
        sizes, (written,) = collapsed(
            (weight.shape[1],), [ref(_flat_view(out), (ROWS, weight.shape[1]))], keep_last=True
        )
        self._lines.append(
            Line("EMBED", sizes=sizes, out=written, inputs=(number,), table=self.table(weight, packed=False))
        )
        return out

    def kept(self, keys: Value, values: Value, layer: int) -> tuple[_Kept, _Kept]:
        """A cache layer's new keys and values `[ROWS, heads, 1, dim]`."""
        self._draft.layers[layer] = (keys.shape[1], keys.shape[3], values.shape[3])
        self._lines.append(Line("KEEP", inputs=(_heads(keys), _heads(values)), layer=layer))
        return _Kept(layer), _Kept(layer)

    def attended(
        self, q: Value, keys: object, values: object, module: int, scale: float, sinks: Tensor | None
    ) -> Value:
        """q `[ROWS, heads, 1, dim]` -> `[ROWS, 1, heads, dim]`."""
        if not isinstance(keys, _Kept) or not isinstance(values, _Kept) or keys != values:
            raise refuse("attention over something other than what a layer keeps")
        sinks = None if sinks is None else sinks.detach().float().contiguous()
        look = LookDraft(module, keys.layer, q.shape[1], scale, sinks)
        dim = self._draft.layers[keys.layer][2]
        view = torch.empty(ROWS, 1, q.shape[1], dim, device="meta")
        out = Value(Buffer(q.shape[1] * dim, Space.ATTENDED), view)
        _, (written,) = collapsed((out.buffer.size,), [ref(_flat_view(out), (ROWS, out.buffer.size))], keep_last=True)
        self._lines.append(Line("ATTEND", out=written, inputs=(_heads(self.dense(q)),), look=len(self._draft.looks)))
        self._draft.looks.append(look)
        return out


def _heads(value: Value) -> Any:
    """`[ROWS, heads, 1, dim]` as an operand whose last two dimensions are heads and numbers."""
    if value.view.dim() != 4 or value.shape[2] != 1:
        raise refuse("keys, values or queries that are not one per token")
    found = ref(value, value.shape)
    return type(found)(found.buffer, found.offset, (0, 0, found.strides[0], found.strides[2]), found.constant)


def _flat_view(value: Value) -> Value:
    return Value(value.buffer, value.view.view(ROWS, -1))


def _flat(args: Iterable[Any]) -> Iterable[Any]:
    for one in args:
        if isinstance(one, (list, tuple)):
            yield from _flat(one)
        else:
            yield one


# Which nodes matter, and when


def _needed(nodes: list[Node]) -> set[Node]:
    """Those that the logits or the cache depend on, and those that change what others look at."""
    roots = [node for node in nodes if node.op == "output" or node.target is KEEP or _changes(node)]
    return _ancestors(roots)


def _changes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _before_attention(nodes: list[Node]) -> set[Node]:
    return _ancestors([node for node in nodes if node.target in (KEEP, ATTEND)])


def _ancestors(roots: list[Node]) -> set[Node]:
    found: set[Node] = set()
    left = list(roots)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left.extend(node.all_input_nodes)
    return found


_RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.alias.default, aten.reshape.default)


def _groups(nodes: list[Node], before: set[Node]) -> dict[Node, list[Node]]:
    """Products that read the same numbers, for each of them; all of one group come with its first."""
    found: dict[tuple[Node, int, bool], list[Node]] = {}
    for node in nodes:
        if node.target not in (aten.mm.default, aten.addmm.default):
            continue
        source: Any = node.args[-2]
        width = source.meta["tensor_meta"].shape[-1]
        while source.target in _RESHAPES:
            source = source.args[0]
        found.setdefault((source, width, node in before), []).append(node)
    return {node: group for group in found.values() for node in group}


# Torch's operations


def _unary(code: str) -> Callable[..., Value]:
    return lambda to, x: to.by_number(code, x)


def _binary(code: str) -> Callable[..., Value]:
    def emit(to: _Lowering, x: Any, y: Any, *, alpha: float = 1) -> Value:
        return to.by_number(code, x, y if alpha == 1 else to.by_number("MUL", y, float(alpha)))

    return emit


def _in_place(code: str) -> Callable[..., Value]:
    def emit(to: _Lowering, x: Value, y: Any, *, alpha: float = 1) -> Value:
        if alpha != 1:
            raise refuse("a scaled sum in place")
        return to.by_number(code, x, y, out=x)

    return emit


def _division(to: _Lowering, x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
    found = to.by_number("DIV", x, y)
    if rounding_mode is None:
        return found
    return to.by_number({"floor": "FLOOR", "trunc": "TRUNCATE"}[rounding_mode], found)


def _power(to: _Lowering, x: Value, exponent: float) -> Value:
    codes = {2: "SQUARE", 3: "CUBE", 0.5: "SQRT", -0.5: "RSQRT", -1: "RECIPROCAL"}
    if exponent in codes:
        return to.by_number(codes[exponent], x)
    return to.by_number("POWER", x, numbers=(float(exponent),))


def _reduction(code: str) -> Callable[..., Value]:
    def emit(
        to: _Lowering, x: Value, dim: list[int] | None = None, keepdim: bool = False, *, dtype: Any = None
    ) -> Value:
        if dim is None or len(dim) != 1 or dim[0] % x.view.dim() != x.view.dim() - 1:
            raise refuse(f"{code.lower()} over other dimensions than the last")
        return to.over_last(code, x, reduced=True, keep=keepdim)

    return emit


def _softmax(to: _Lowering, x: Value, dim: int, *args: object, **kwargs: object) -> Value:
    if dim % x.view.dim() != x.view.dim() - 1:
        raise refuse("softmax over another dimension than the last")
    return to.over_last("SOFTMAX", x, reduced=False)


def _layer_norm(
    to: _Lowering, x: Value, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Value]:
    if len(shape) != 1:
        raise refuse("a norm over several dimensions")
    more = (torch.ones(shape) if weight is None else weight, torch.zeros(shape) if bias is None else bias)
    return [to.over_last("LAYER_NORM", x, *more, numbers=(eps,), reduced=False)]


def _gelu(to: _Lowering, x: Value, *, approximate: str = "none") -> Value:
    return to.by_number("GELU" if approximate == "none" else "GELU_TANH", x)


def _clamp(to: _Lowering, x: Value, low: float | None = None, high: float | None = None, **named: Any) -> Value:
    low, high = named.get("min", low), named.get("max", high)
    infinity = float("inf")
    return to.by_number("CLAMP", x, numbers=(-infinity if low is None else low, infinity if high is None else high))


def _converted(to: _Lowering, x: Value, *, dtype: torch.dtype | None = None, **kwargs: object) -> Value:
    whole = dtype is not None and not dtype.is_floating_point and dtype is not torch.bool
    return to.by_number("TRUNCATE", x) if whole else x


def _softplus(to: _Lowering, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta != 1 or threshold != 20:
        raise refuse("a softplus of another shape")
    return to.by_number("SOFTPLUS", x)


_VIEWS = {
    *_RESHAPES,
    aten.transpose.int,
    aten.permute.default,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.slice.Tensor,
    aten.select.int,
    aten.expand.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
}
_SAME = (aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default)

_HANDLERS: dict[Any, Callable[..., Any]] = {
    operator.getitem: lambda to, x, at: x[at],
    KEEP: _Lowering.kept,
    ATTEND: _Lowering.attended,
    aten.embedding.default: _Lowering.looked_up,
    aten.cat.default: _Lowering.joined,
    aten.stack.default: lambda to, xs, dim=0: to.joined([_stacked(x, dim) for x in xs], dim),
    aten.pow.Tensor_Scalar: _power,
    aten.div.Tensor_mode: _division,
    aten.mean.dim: _reduction("MEAN"),
    aten.sum.dim_IntList: _reduction("SUM"),
    aten._softmax.default: _softmax,
    aten.native_layer_norm.default: _layer_norm,
    aten.gelu.default: _gelu,
    aten.clamp.default: _clamp,
    aten._to_copy.default: _converted,
    aten.softplus.default: _softplus,
    aten.rsub.Scalar: lambda to, x, y: to.by_number("SUB", y, x),
    aten.where.self: lambda to, which, x, y: to.by_number("WHERE", which, x, y),
    aten.copy_.default: lambda to, x, y, *args: to.by_number("COPY", y, out=x),
    **{
        getattr(aten, name).default: _unary(name.upper())
        for name in [
            "neg",
            "abs",
            "exp",
            "sigmoid",
            "silu",
            "tanh",
            "relu",
            "reciprocal",
            "rsqrt",
            "sqrt",
            "cos",
            "sin",
            "log",
            "log1p",
            "floor",
        ]
    },
    **{getattr(aten, name).Tensor: _binary(name.upper()) for name in ["add", "sub", "mul", "div"]},
    **{getattr(aten, name + "_").Tensor: _in_place(name.upper()) for name in ["add", "sub", "mul", "div"]},
    **{
        overload: _binary(code)
        for name, code in (("gt", "GREATER"), ("ge", "AT_LEAST"), ("lt", "LESS"), ("le", "AT_MOST"))
        for overload in (getattr(aten, name).Scalar, getattr(aten, name).Tensor)
    },
    aten.logical_and.default: _binary("MUL"),
    aten.maximum.default: _binary("LARGER"),
    aten.minimum.default: _binary("SMALLER"),
    **dict.fromkeys(_SAME, lambda to, x, **kwargs: x),
}


def _stacked(value: Any, dim: int) -> Any:
    if isinstance(value, Tensor):
        return value.unsqueeze(dim)
    return Value(value.buffer, value.view.unsqueeze(dim))
