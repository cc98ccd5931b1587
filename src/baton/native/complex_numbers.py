"""Complex numbers of a step, such as rotations that are written as products: two values, real and imaginary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from baton.native.emit import Emitter
from baton.native.graph import Value, refuse
from baton.native.operations import VIEWS

aten = torch.ops.aten
View = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Carries out an operation that only looks at a value otherwise."""


@dataclass(frozen=True, slots=True)
class Complex:
    """A complex value, as two values of the same shape."""

    real: Value
    imaginary: Value


def is_complex(target: object, operands: list[Any]) -> bool:
    """Whether an operation makes or takes complex numbers."""
    return target in _MADE or any(isinstance(one, Complex) for one in operands)


def emit(to: Emitter, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], view: View) -> Any:
    """Writes such an operation. Raises LoadError for one that is not known."""
    if target in _MADE:
        return _MADE[target](to, *args)
    first = args[0]
    if target is aten.view_as_real.default and isinstance(first, Complex):
        return to.joined([_with_last(first.real), _with_last(first.imaginary)], -1)
    if target in VIEWS and isinstance(first, Complex):
        return Complex(view(first.real, args[1:], kwargs), view(first.imaginary, args[1:], kwargs))
    if target is aten.mul.Tensor:
        return _product(to, *args)
    if target in (aten._to_copy.default, aten.clone.default) and isinstance(first, Complex):
        return first
    raise refuse(f"{target} of complex numbers")


def _polar(to: Emitter, length: Any, angle: Value) -> Complex:
    return Complex(*(to.by_number("MUL", length, to.by_number(code, angle)) for code in ("COS", "SIN")))


def _parts(to: Emitter, x: Value) -> Complex:
    return Complex(*(Value(x.buffer, x.view.select(-1, at)) for at in (0, 1)))


_MADE: dict[Any, Callable[..., Complex]] = {aten.polar.default: _polar, aten.view_as_complex.default: _parts}


def _product(to: Emitter, x: Any, y: Any) -> Complex:
    if not isinstance(x, Complex):
        x, y = y, x
    if isinstance(y, Tensor) and y.is_complex():
        raise refuse("a product with complex constants")
    if not isinstance(y, Complex):
        return Complex(to.by_number("MUL", x.real, y), to.by_number("MUL", x.imaginary, y))
    real = to.by_number("SUB", to.by_number("MUL", x.real, y.real), to.by_number("MUL", x.imaginary, y.imaginary))
    return Complex(
        real, to.by_number("ADD", to.by_number("MUL", x.real, y.imaginary), to.by_number("MUL", x.imaginary, y.real))
    )


def _with_last(x: Value) -> Value:
    return Value(x.buffer, x.view.unsqueeze(-1))
