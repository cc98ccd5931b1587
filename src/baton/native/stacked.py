"""All experts of each token in one product: `[experts x ROWS, ...]`, experts first, as some models lay tokens out.

They take each token once for each expert, times its score, which is zero for those that it did not choose, and multiply
with all experts' weights. Such a dimension is no view of a token's numbers, so it is kept as two, `[experts, ROWS]`. An
expert whose inputs are all zeros gives zeros and is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.native.emit import Emitter
from baton.native.graph import Value, refuse
from baton.native.operations import HANDLERS, RESHAPES
from baton.native.record import ROWS

aten = torch.ops.aten
_BY_NUMBER = (aten.mul.Tensor, aten._to_copy.default, aten.clone.default)


@dataclass(frozen=True, slots=True)
class Stacked:
    """`[n x ROWS, ...]`, as the value `[n, ROWS, ...]`."""

    value: Value


def is_stacked(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether an operation takes or makes such a value, or multiplies one with a weight of each of the n."""
    first = args[0] if args else None
    if any(isinstance(one, Stacked) for one in args):
        return True
    if not isinstance(first, Value):
        return False
    if target is aten.repeat.default:
        return first.shape[0] == ROWS and first.view.dim() == len(args[1])
    if target is aten.bmm.default:
        return isinstance(args[1], Tensor) and first.shape[1] == ROWS
    return target in RESHAPES and _two_in_front(first) and _reshaped(first.shape, args[1])[0] == first.shape[0] * ROWS


def emit_stacked(to: Emitter, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Stacked | Value:
    """Writes such an operation. Raises LoadError for one that is not known."""
    first = args[0]
    if target is aten.repeat.default:
        count, *rest = args[1]
        if any(one != 1 for one in rest):
            raise refuse("a token that is repeated within itself")
        return Stacked(Value(first.buffer, first.view.expand(count, *first.shape)))
    if target is aten.bmm.default:
        return _multiplied(to, first, args[1])
    if target in RESHAPES:
        return _laid_out(to, first, args[1])
    if target in _BY_NUMBER:
        return Stacked(HANDLERS[target](to, *(_inside(one) for one in args), **kwargs))
    raise refuse(f"{target} of all experts' numbers")


def _two_in_front(value: Value) -> bool:
    return value.view.dim() >= 2 and value.shape[1] == ROWS and value.shape[0] != ROWS


def _reshaped(shape: torch.Size, sizes: Any) -> torch.Size:
    return torch.empty(shape, device="meta").view(sizes).shape


def _inside(operand: Any) -> Any:
    if isinstance(operand, Stacked):
        return operand.value
    if isinstance(operand, (Value, Tensor)) and (not isinstance(operand, Tensor) or operand.dim()):
        raise refuse("all experts' numbers with others")
    return operand


def _laid_out(to: Emitter, x: Stacked | Value, sizes: Any) -> Stacked | Value:
    value = x.value if isinstance(x, Stacked) else x
    count = value.shape[0]
    whole = torch.Size((count * ROWS, *value.shape[2:])) if isinstance(x, Stacked) else value.shape
    asked = _reshaped(whole, sizes)
    if asked[0] == count * ROWS:
        return Stacked(_viewed(to, value, (count, ROWS, *asked[1:])))
    if asked[:2] == (count, ROWS):
        return _viewed(to, value, asked)
    raise refuse("all experts' numbers in another order")


def _viewed(to: Emitter, value: Value, shape: Any) -> Value:
    try:
        return Value(value.buffer, value.view.view(shape))
    except RuntimeError:
        value = to.by_number("COPY", value)
        return Value(value.buffer, value.view.view(shape))


def _multiplied(to: Emitter, x: Value, weight: Tensor) -> Value:
    """`bmm` of `[n, ROWS, inputs]` with `[n, inputs, outputs]`."""
    rows = Value(x.buffer, x.view.movedim(1, 0))
    each = torch.arange(len(weight), dtype=torch.float32)[None]
    sizes = to.over_last("SUM", to.by_number("ABS", rows), reduced=True, keep=False)
    # -1 stands for no expert; a NaN is not smaller than zero, so it goes to its expert.
    index = to.by_number("SUB", each, to.by_number("MUL", each + 1, to.by_number("AT_MOST", sizes, 0.0)))
    result = to.chosen(rows, index, weight.transpose(-1, -2))
    return Value(result.buffer, result.view.movedim(0, 1))
