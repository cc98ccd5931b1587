"""Turns a recorded step into a program: walks its graph once and writes each operation as native instructions.

Views cost nothing: torch itself computes their strides, on the meta device. Constants are computed here, once. Linear
products that read the same numbers are placed together. After the last attention only tokens go on whose logits are
wanted. An unknown operation raises LoadError, and the model runs without native calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

from baton.model.packed_experts import PACKED_EXPERT
from baton.model.packed_linear import PACKED, packed_layer
from baton.native.codes import reads
from baton.native.complex_numbers import Complex, emit, is_complex
from baton.native.emit import Emitter, Kept
from baton.native.graph import PLANES, Buffer, Graph, Line, Space, Value, collapsed, ref, refuse
from baton.native.latents import absorbed
from baton.native.layout import lay_out
from baton.native.nodes import changes, choosing, early_nodes, first_read, needed_nodes
from baton.native.operations import FUSED, HANDLERS, RESHAPES, VIEWS
from baton.native.record import ATTEND, EXPERT, KEEP, ROWS, Recorded
from baton.native.sequential import fused, scans
from baton.native.stacked import Stacked, emit_stacked, is_stacked

aten = torch.ops.aten
_PRODUCTS = (aten.mm.default, aten.addmm.default, PACKED)
_NEVER_SCANNED = (*_PRODUCTS, KEEP, ATTEND, EXPERT, PACKED_EXPERT, aten.embedding.default)


def lower(recorded: Recorded) -> Graph:
    """Raises LoadError, with the reason, if the step has an operation that native code does not know."""
    recorded = absorbed(recorded)
    try:
        graph = _Lowering(recorded).run()
    except (RuntimeError, IndexError) as error:
        # Torch's views say so where shapes are other than any that is known here.
        raise refuse((str(error).splitlines() or [""])[0][:160]) from error
    for table in graph.tables:
        table.chooses |= table.weight is not None and table.weight.data_ptr() in recorded.as_saved
    return graph


class _Lowering:
    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded.graph
        self._graph = Graph(Buffer(1, Space.VALUES), Buffer(1, Space.VALUES))
        self._known: dict[Node, Any] = {}
        self._products: dict[Node, Value] = {}
        self._to = Emitter(self._graph)

    def run(self) -> Graph:
        nodes = list(self._recorded.graph.nodes)
        needed = needed_nodes(nodes)
        self._scans = scans([node for node in nodes if node in needed], _NEVER_SCANNED)
        self._fused = fused(self._scans, FUSED, {node for node in nodes if changes(node)})
        before = early_nodes(
            nodes, [node for node in nodes if node.target in (KEEP, ATTEND) or node in self._scans], VIEWS
        )
        self._choosing = {node for node in choosing(nodes, _PRODUCTS) if node.target in _PRODUCTS}
        inputs = iter((self._graph.token, self._graph.position))
        for node in nodes:
            if node.op == "placeholder":
                self._known[node] = Value(next(inputs), torch.empty(ROWS, 1, device="meta"))
        work = [node for node in nodes if node in needed and node.op in ("get_attr", "call_function")]
        self._groups = _groups(work, before, self._choosing)
        for late in (False, True):
            self._to.late = late
            if late:
                early, self._to.lines = self._to.lines, []
            for node in work:
                if node.op == "get_attr":
                    self._known[node] = getattr(self._recorded, str(node.target))
                elif (node not in before) == late:
                    self._write(node)
        self._answer(self._known[nodes[-1].args[0]])
        self._graph.lines = early + self._to.pick_lines + self._to.lines
        lay_out(self._graph)
        return self._graph

    def _write(self, node: Node) -> None:
        """Writes an operation, as one of a scan if it belongs to one."""
        written = len(self._to.lines)
        self._known[node] = self._lowered(node)
        for line in self._to.lines[written:]:
            line.scan = self._scans.get(node)

    def _answer(self, logits: object) -> None:
        if not isinstance(logits, Value) or logits.shape[:-1].numel() != ROWS or not self._to.late:
            raise refuse("its logits are not one row per token")
        size, view = logits.shape[-1], logits.view
        whole = logits.buffer.size == size and not view.storage_offset() and view.stride(-1) == 1
        if not whole or logits.buffer.space is not Space.LATE:
            logits = self._to.by_number("COPY", logits)
        logits.buffer.space = Space.LOGITS
        self._graph.vocabulary = size

    def _lowered(self, node: Node) -> object:
        if node in self._fused.values():
            return None
        args = torch.fx.node.map_arg(node.args, lambda one: self._known[one])
        kwargs = torch.fx.node.map_arg(node.kwargs, lambda one: self._known[one])
        values = [one for one in _flat((*args, *kwargs.values())) if isinstance(one, (Value, Kept, Complex, Stacked))]
        if node in self._products:
            return self._products[node]
        if node in self._fused:
            product = self._fused[node]
            factors = torch.fx.node.map_arg(product.args, lambda one: self._known[one])
            rest = [arg for arg, given in zip(args, node.args, strict=True) if given is not product]
            return FUSED[node.target](self._to, *factors, *rest)
        if not values:
            with torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        target: Any = node.target
        if target in _PRODUCTS:
            return self._multiplied(node, args)
        if target is aten.convolution.default:
            kwargs = {**kwargs, "first": first_read(node)}
        return self._emitted(target, args, kwargs, values)

    def _emitted(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], values: list[Any]) -> object:
        if is_complex(target, values):
            return emit(self._to, target, args, kwargs, lambda x, rest, more: self._viewed(target, (x, *rest), more))
        if is_stacked(target, args):
            return emit_stacked(self._to, target, args, kwargs)
        if target in VIEWS:
            return self._viewed(target, args, kwargs)
        handler = HANDLERS.get(target)
        if handler is None:
            raise refuse(f"{target}")
        return handler(self._to, *args, **kwargs)

    def _multiplied(self, node: Node, args: tuple[Any, ...]) -> Value:
        """Writes this product, and with it all others that read the same numbers."""
        source = args[_source_at(node)]
        if not isinstance(source, Value) or (node.target is not PACKED and not isinstance(args[-1], Tensor)):
            raise refuse("a product of two computed values")
        source = self._to.dense(source)
        first = True
        for other in self._groups.get(node, [node]):
            bias, table, shape = self._read(other)
            self._graph.tables[table].chooses |= other in self._choosing
            if first:
                _, (operand,) = collapsed(source.shape[1:], [ref(source, source.shape)], keep_last=True)
                self._to.lines.append(Line("READY", inputs=(operand,), table=table))
                first = False
            out = self._to.new(shape)
            sizes, (written,) = collapsed(out.shape[1:], [ref(out, out.shape)], keep_last=True)
            self._to.lines.append(Line("PRODUCT", sizes=sizes, out=written, table=table, bias=bias))
            self._products[other] = out
        return self._products[node]

    def _read(self, node: Node) -> tuple[Tensor | None, int, tuple[int, ...]]:
        """A product's bias, the table of its weight, and the shape of its result."""
        if node.target is not PACKED:
            bias, weight = self._constants(node)
            return bias, self._to.table(weight.t(), packed=True), (ROWS, weight.shape[1])
        bias = None if node.args[1] is None else self._constant(cast(Node, node.args[1]))
        layer = packed_layer(cast(int, node.args[2]))
        bias = None if bias is None else bias.detach().float().contiguous()
        return bias, self._to.packed_table(layer), tuple(node.meta["tensor_meta"].shape)

    def _constants(self, node: Node) -> tuple[Tensor | None, Tensor]:
        """A product's bias and weight `[inputs, outputs]`."""
        operands = [self._constant(one) for one in node.args if isinstance(one, Node)]
        weight = operands[-1]
        if weight is None or (len(operands) == 3 and (operands[0] is None or node.kwargs)):
            raise refuse("a product of two computed values")
        bias = operands[0] if len(operands) == 3 else None
        return (None if bias is None else bias.detach().float().contiguous()), weight

    def _constant(self, node: Node) -> Tensor | None:
        """Returns a node's value if it depends on constants alone."""
        if node not in self._known and node.op == "get_attr":
            self._known[node] = getattr(self._recorded, str(node.target))
        if (
            node not in self._known
            and node.op == "call_function"
            and all(self._constant(one) is not None for one in node.all_input_nodes)
        ):
            self._known[node] = self._lowered(node)
        value = self._known.get(node)
        return value if isinstance(value, Tensor) else None

    def _viewed(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        value = args[0]
        if isinstance(value, Kept):
            raise refuse("keys and values are looked at by more than attention")
        try:
            view = target(value.view, *args[1:], **kwargs)
        except RuntimeError:
            # The numbers cannot be viewed in this shape as they are laid out, so they are copied.
            value = self._to.by_number("COPY", value)
            view = target(value.view, *args[1:], **kwargs)
        if isinstance(view, Tensor):
            return Value(value.buffer, view)
        return [Value(value.buffer, one) for one in view]


def _flat(args: Iterable[Any]) -> Iterable[Any]:
    for one in args:
        if isinstance(one, (list, tuple)):
            yield from _flat(one)
        else:
            yield one


def _groups(nodes: list[Node], before: set[Node], choosing: set[Node]) -> dict[Node, list[Node]]:
    """For each product, the products that read the same numbers in the same form. A group is written at its first."""
    by_source: dict[tuple[Node, int, bool, bool, object], list[Node]] = {}
    for node in nodes:
        if node.target not in _PRODUCTS:
            continue
        source: Any = node.args[_source_at(node)]
        width = source.meta["tensor_meta"].shape[-1]
        while source.target in RESHAPES:
            source = source.args[0]
        form = node in before, node in choosing, _form(node)
        by_source.setdefault((source, width, *form), []).append(node)
    return {node: group for group in by_source.values() for node in group}


def _source_at(node: Node) -> int:
    """Which argument a product multiplies with its weight."""
    return 0 if node.target is PACKED else -2


def _form(node: Node) -> object:
    """What a product reads of its rows, which differs between packed weights: their inputs' order among it."""
    if node.target is not PACKED:
        return None
    return reads(packed_layer(cast(int, node.args[2])).weight_read, PLANES)
