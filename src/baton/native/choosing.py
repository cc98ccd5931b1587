"""Torch's operations that choose numbers, as native instructions: the largest, by an index, by a mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from baton.native.emit import Emitter
from baton.native.graph import Value, refuse


def _last(x: Value, dim: int) -> bool:
    return bool(dim % x.view.dim() == x.view.dim() - 1)


def topk(to: Emitter, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not largest or not _last(x, dim):
        raise refuse("the smallest numbers, or those of another dimension than the last")
    return to.largest(x, k)


def largest(to: Emitter, x: Value, dim: int, keepdim: bool = False) -> Any:
    """`max` over a dimension: the number, and which it is."""
    if not _last(x, dim):
        raise refuse("max over another dimension than the last")
    both = to.largest(x, 1)
    return both if keepdim else tuple(Value(one.buffer, one.view.squeeze(-1)) for one in both)


def greatest(to: Emitter, x: Value, dim: list[int], keepdim: bool = False) -> Value:
    if len(dim) != 1:
        raise refuse("a maximum over several dimensions")
    result: Value = largest(to, x, dim[0], keepdim)[0]
    return result


def gather(to: Emitter, x: Value, dim: int, index: Value) -> Value:
    if not _last(x, dim):
        raise refuse("gather over another dimension than the last")
    return to.picked(x, index)


def scatter(in_place: bool) -> Callable[..., Value]:
    def emit(to: Emitter, x: Any, dim: int, index: Value, what: Any) -> Value:
        if not isinstance(index, Value) or dim % index.view.dim() != index.view.dim() - 1:
            raise refuse("scatter over another dimension than the last")
        return to.scattered(x if in_place else to.by_number("COPY", x), index, what)

    return emit


def masked(to: Emitter, x: Any, mask: Any, value: Any) -> Value:
    return to.by_number("WHERE", mask, value, x)


def indexed(to: Emitter, table: Any, indices: list[Any]) -> Value:
    """A constant's numbers, or rows, by computed indices."""
    if not isinstance(table, Tensor) or len(indices) != 1 or not isinstance(indices[0], Value) or table.dim() > 2:
        raise refuse("an index other than the rows of a constant")
    if table.dim() == 2:
        return to.looked_up(table, indices[0])
    numbers = to.looked_up(table[:, None], indices[0])
    return Value(numbers.buffer, numbers.view.squeeze(-1))
