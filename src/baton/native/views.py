"""Other views of a step's values: with the rows first, one number for several, heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from baton.native.graph import Ref, Value, ref, refuse
from baton.native.record import ROWS

View = Callable[[Tensor], Tensor]


def along(operand: Any, shape: Sequence[int], view: View) -> Any:
    """A view of an operand of this shape; numbers as they are."""
    if isinstance(operand, Value):
        return Value(operand.buffer, view(operand.view.expand(shape)))
    return view(operand.expand(shape)) if isinstance(operand, Tensor) else operand


def rows_at(shape: torch.Size) -> int:
    """Which dimension is the rows', by themselves or with others behind them."""
    return 0 if shape[0] % ROWS == 0 or ROWS not in shape else shape.index(ROWS)


def rows_first(shape: torch.Size) -> tuple[View, View] | None:
    """How a view gets the rows as its first dimension, and back; None if it has them there.

    Rows may be folded with the dimension behind them, or come behind others, as several positions of each token do.
    """
    if not shape or shape[0] == ROWS:
        return None
    at = rows_at(shape)
    if shape[0] % ROWS == 0:
        return (lambda view: view.unflatten(0, (ROWS, -1))), (lambda view: view.view(-1, *view.shape[2:]))
    if ROWS not in shape:
        raise refuse("a value without rows")
    return (lambda view: view.movedim(at, 0)), (lambda view: view.movedim(0, at))


def unfold(value: Value) -> Value:
    """`[ROWS x n, ...]` as `[ROWS, n, ...]`."""
    if value.shape[0] % ROWS:
        raise refuse("a value without rows")
    return Value(value.buffer, value.view.unflatten(0, (ROWS, -1)))


def fold(value: Value) -> Value:
    """`[ROWS, n, ...]` as `[ROWS x n, ...]`."""
    return Value(value.buffer, value.view.view(-1, *value.shape[2:]))


def same_along(operands: Iterable[Any], shape: torch.Size) -> list[int]:
    """The dimensions along which all operands of an operation of this shape are the same."""
    views = [one.view if isinstance(one, Value) else one for one in operands if isinstance(one, (Value, Tensor))]
    strides = [view.expand(shape).stride() for view in views]
    return [at for at in range(1, len(shape)) if shape[at] > 1 and not any(stride[at] for stride in strides)]


def firsts(view: Tensor, dims: Iterable[int]) -> Tensor:
    """The first of each of these dimensions."""
    for dim in dims:
        view = view.narrow(dim, 0, 1)
    return view


def is_repeated(value: Value) -> bool:
    """Whether a number stands for several of the value's."""
    return any(stride == 0 and size > 1 for stride, size in zip(value.view.stride(), value.shape, strict=True))


def repeated(value: Value, times: Sequence[int]) -> Value:
    """`repeat`, where the same numbers can stand for all."""
    more = len(times) - value.view.dim()
    if any(one != 1 and size != 1 for one, size in zip(times[more:], value.shape, strict=True)):
        raise refuse("numbers that are repeated one behind the other")
    sizes = [one * size for one, size in zip(times[more:], value.shape, strict=True)]
    return Value(value.buffer, value.view.expand(*times[:more], *sizes))


def heads_of(value: Value) -> Ref:
    """`[ROWS, heads, 1, dim]` as an operand whose last two dimensions are heads and numbers."""
    if value.view.dim() != 4 or value.shape[2] != 1:
        raise refuse("keys, values or queries that are not one per token")
    operand = ref(value, value.shape)
    return Ref(operand.buffer, operand.offset, (0, 0, operand.strides[0], operand.strides[2]), operand.constant)


def flat_view(value: Value) -> Value:
    return Value(value.buffer, value.view.view(ROWS, -1))
