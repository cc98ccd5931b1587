"""A graph as plain data and tensors, to be kept in a file: what its recording and lowering gave, without the weights.

Weights are named: the parameter or buffer of the model, and the part of it that a table reads. Packed layers are named
by their module. Everything else that a graph refers to are small constants, which go along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from baton.model.packed_layers import named_packed
from baton.native.graph import Buffer, Graph, Line, Ref, Space, TableSpec, VisibilitySpec

MOST_CONSTANT_BYTES = 64 << 20
"""Graphs with more numbers of their own, such as absorbed latents, are not written: recording them is as fast."""

SMALL_NUMBERS = 1 << 16
"""A weight that a table reads is too large to be made a constant as well, unless it has at most so many numbers."""

Plain = dict[str, Any]


@dataclass(slots=True)
class Written:
    """`plain` is JSON, and `tensors` are named by it."""

    plain: Plain
    tensors: dict[str, Tensor] = field(default_factory=dict)


def write(graph: Graph, model: nn.Module) -> Written | None:
    """Returns the graph as data; None if it has many numbers of its own. Call it before a `Program` takes its weights.

    `model`: whose weights it reads.
    """
    return _Writer(model).graph(graph)


def read(written: Written, model: nn.Module) -> Graph:
    """Returns the graph again. Raises KeyError, ValueError, TypeError or RuntimeError if it is not of this model."""
    return _Reader(written, model).graph()


def folded(written: Written, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The weights, by name, of which the graph's constants may have been made: all that no table reads as they are."""
    named, layers = _named(model), named_packed(model)
    tables = written.plain["tables"]
    direct = {named[table["weight"]].data_ptr() for table in tables if "weight" in table}
    for table in tables:
        if "layer" in table:
            direct |= {tensor.data_ptr() for tensor in layers[table["layer"]].tensors.values()}
    for name, tensor in sorted(named.items()):
        if tensor.numel() <= SMALL_NUMBERS or tensor.data_ptr() not in direct:
            yield name, tensor.detach()


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


class _Writer:
    def __init__(self, model: nn.Module) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._constants: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
        self._buffers: dict[int, int] = {}
        self._order: list[Buffer] = []
        self._weights = sorted(
            (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, name, tensor)
            for name, tensor in _named(model).items()
            if tensor.nbytes
        )
        self._layers = {id(layer): name for name, layer in named_packed(model).items()}

    def graph(self, graph: Graph) -> Written | None:
        plain: Plain = {
            "token": self._buffer(graph.token),
            "position": self._buffer(graph.position),
            "states": [[*key, self._buffer(buffer)] for key, buffer in graph.states.items()],
            "lines": [self._line(line) for line in graph.lines],
            "tables": [self._table(table) for table in graph.tables],
            "visibilities": [
                [one.module, one.layer, one.heads, one.scale, self._constant(one.sinks)] for one in graph.visibilities
            ],
            "layers": [[at, *sizes] for at, sizes in graph.layers.items()],
            "floats": [graph.row_floats, graph.late_floats, graph.attended_floats, graph.scratch_floats],
            "vocabulary": graph.vocabulary,
        }
        plain["buffers"] = [[one.size, one.space.name, one.offset] for one in self._order]
        if sum(tensor.nbytes for tensor in self._tensors.values()) > MOST_CONSTANT_BYTES:
            return None
        return Written(plain, self._tensors)

    def _buffer(self, buffer: Buffer) -> int:
        if id(buffer) not in self._buffers:
            self._buffers[id(buffer)] = len(self._order)
            self._order.append(buffer)
        return self._buffers[id(buffer)]

    def _constant(self, tensor: Tensor | None) -> str | None:
        if tensor is None:
            return None
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if key not in self._constants:
            name = f"constant{len(self._constants)}"
            self._constants[key], self._tensors[name] = name, tensor.detach().contiguous()
        return self._constants[key]

    def _ref(self, ref: Ref | None) -> list[Any] | None:
        if ref is None:
            return None
        buffer = None if ref.buffer is None else self._buffer(ref.buffer)
        return [buffer, ref.offset, list(ref.strides), self._constant(ref.constant), ref.before]

    def _line(self, line: Line) -> Plain:
        return {
            "does": line.does,
            "code": line.code,
            "sizes": list(line.sizes),
            "out": self._ref(line.out),
            "inputs": [self._ref(one) for one in line.inputs],
            # JSON has neither infinities nor exact floats of 32 bits as such; hexadecimal has all.
            "numbers": [float(number).hex() for number in line.numbers],
            "at": [line.table, line.layer, line.visibility, line.scan],
            "bias": self._constant(line.bias),
            "by_number": line.by_number,
            "steps": list(line.steps),
        }

    def _table(self, table: TableSpec) -> Plain:
        plain: Plain = {"packed": table.packed, "chooses": table.chooses}
        if table.layer is not None:
            return plain | {"layer": self._layers[id(table.layer)]}
        assert table.weight is not None
        weight = table.weight
        return plain | {
            "shape": list(weight.shape),
            "stride": list(weight.stride()),
            **(self._part(weight) or {"constant": self._constant(weight)}),
        }

    def _part(self, weight: Tensor) -> Plain | None:
        """Which part of a weight of the model it is; None if it was computed from some."""
        start = weight.data_ptr()
        for first, last, name, tensor in self._weights:
            if first <= start < last and tensor.dtype == weight.dtype:
                return {"weight": name, "offset": (start - first) // weight.element_size()}
        return None


class _Reader:
    def __init__(self, written: Written, model: nn.Module) -> None:
        self._plain, self._tensors = written.plain, written.tensors
        self._weights, self._layers = _named(model), named_packed(model)
        self._buffers = [Buffer(size, Space[space], offset) for size, space, offset in self._plain["buffers"]]

    def graph(self) -> Graph:
        plain = self._plain
        row, late, attended, scratch = plain["floats"]
        return Graph(
            token=self._buffers[plain["token"]],
            position=self._buffers[plain["position"]],
            lines=[self._line(line) for line in plain["lines"]],
            tables=[self._table(table) for table in plain["tables"]],
            visibilities=[
                VisibilitySpec(module, layer, heads, scale, self._constant(sinks))
                for module, layer, heads, scale, sinks in plain["visibilities"]
            ],
            layers={at: (heads, keys, values) for at, heads, keys, values in plain["layers"]},
            states={(layer, at): self._buffers[buffer] for layer, at, buffer in plain["states"]},
            row_floats=row,
            late_floats=late,
            attended_floats=attended,
            scratch_floats=scratch,
            vocabulary=plain["vocabulary"],
        )

    def _constant(self, name: str | None) -> Tensor | None:
        return None if name is None else self._tensors[name]

    def _ref(self, plain: Sequence[Any]) -> Ref:
        buffer, offset, strides, constant, before = plain
        return Ref(
            None if buffer is None else self._buffers[buffer], offset, tuple(strides), self._constant(constant), before
        )

    def _line(self, plain: Mapping[str, Any]) -> Line:
        table, layer, visibility, scan = plain["at"]
        return Line(
            does=plain["does"],
            code=plain["code"],
            sizes=tuple(plain["sizes"]),
            out=None if plain["out"] is None else self._ref(plain["out"]),
            inputs=tuple(self._ref(one) for one in plain["inputs"]),
            numbers=tuple(float.fromhex(number) for number in plain["numbers"]),
            table=table,
            layer=layer,
            visibility=visibility,
            bias=self._constant(plain["bias"]),
            by_number=plain["by_number"],
            scan=scan,
            steps=tuple(plain["steps"]),
        )

    def _table(self, plain: Mapping[str, Any]) -> TableSpec:
        if "layer" in plain:
            return TableSpec(None, plain["packed"], self._layers[plain["layer"]], plain["chooses"])
        return TableSpec(self._weight(plain), plain["packed"], None, plain["chooses"])

    def _weight(self, plain: Mapping[str, Any]) -> Tensor:
        shape, stride = plain["shape"], plain["stride"]
        if "constant" in plain:
            constant = self._tensors[plain["constant"]]
            if list(constant.shape) != shape:
                raise ValueError("a weight of another shape")
            return (
                constant
                if list(constant.stride()) == stride
                else constant.new_empty_strided(shape, stride).copy_(constant)
            )
        whole = self._weights[plain["weight"]].detach()
        reached = plain["offset"] + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if not 0 <= reached < whole.numel() or not _lies_whole(whole):
            raise ValueError(f"{plain['weight']} is of another shape")
        return torch.as_strided(whole, shape, stride, whole.storage_offset() + plain["offset"])


def _lies_whole(tensor: Tensor) -> bool:
    """Whether its numbers lie without gaps, in whatever order of dimensions."""
    order: Iterable[tuple[int, int]] = sorted(zip(tensor.stride(), tensor.shape, strict=True))
    sizes = [(stride, size) for stride, size in order if size != 1]
    return all(stride == math.prod(size for _, size in sizes[:at]) for at, (stride, _) in enumerate(sizes))
