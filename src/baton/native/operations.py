"""Torch's basic operations as native instructions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baton.native.emit import Emitter
from baton.native.graph import Value, refuse
from baton.native.record import ATTEND, KEEP

aten = torch.ops.aten

RESHAPES = (aten.view.default, aten._unsafe_view.default, aten.alias.default, aten.reshape.default)


def _unary(code: str) -> Callable[..., Value]:
    return lambda to, x: to.by_number(code, x)


def _binary(code: str) -> Callable[..., Value]:
    def emit(to: Emitter, x: Any, y: Any, *, alpha: float = 1) -> Value:
        return to.by_number(code, x, y if alpha == 1 else to.by_number("MUL", y, float(alpha)))

    return emit


def _in_place(code: str) -> Callable[..., Value]:
    def emit(to: Emitter, x: Value, y: Any, *, alpha: float = 1) -> Value:
        if alpha != 1:
            raise refuse("a scaled sum in place")
        return to.by_number(code, x, y, out=x)

    return emit


def _division(to: Emitter, x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
    quotient = to.by_number("DIV", x, y)
    if rounding_mode is None:
        return quotient
    return to.by_number({"floor": "FLOOR", "trunc": "TRUNCATE"}[rounding_mode], quotient)


def _power(to: Emitter, x: Value, exponent: float) -> Value:
    codes = {2: "SQUARE", 3: "CUBE", 0.5: "SQRT", -0.5: "RSQRT", -1: "RECIPROCAL"}
    if exponent in codes:
        return to.by_number(codes[exponent], x)
    return to.by_number("POWER", x, numbers=(float(exponent),))


def _reduction(code: str) -> Callable[..., Value]:
    def emit(to: Emitter, x: Value, dim: list[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Value:
        if dim is None or len(dim) != 1 or dim[0] % x.view.dim() != x.view.dim() - 1:
            raise refuse(f"{code.lower()} over other dimensions than the last")
        return to.over_last(code, x, reduced=True, keep=keepdim)

    return emit


def _softmax(to: Emitter, x: Value, dim: int, *args: object, **kwargs: object) -> Value:
    if dim % x.view.dim() != x.view.dim() - 1:
        raise refuse("softmax over another dimension than the last")
    return to.over_last("SOFTMAX", x, reduced=False)


def _layer_norm(
    to: Emitter, x: Value, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Value]:
    if len(shape) != 1:
        raise refuse("a norm over several dimensions")
    more = (torch.ones(shape) if weight is None else weight, torch.zeros(shape) if bias is None else bias)
    return [to.over_last("LAYER_NORM", x, *more, numbers=(eps,), reduced=False)]


def _gelu(to: Emitter, x: Value, *, approximate: str = "none") -> Value:
    return to.by_number("GELU" if approximate == "none" else "GELU_TANH", x)


def _clamp(to: Emitter, x: Value, low: float | None = None, high: float | None = None, **named: Any) -> Value:
    low, high = named.get("min", low), named.get("max", high)
    infinity = float("inf")
    return to.by_number("CLAMP", x, numbers=(-infinity if low is None else low, infinity if high is None else high))


def _converted(to: Emitter, x: Value, *, dtype: torch.dtype | None = None, **kwargs: object) -> Value:
    whole = dtype is not None and not dtype.is_floating_point and dtype is not torch.bool
    return to.by_number("TRUNCATE", x) if whole else x


def _softplus(to: Emitter, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    if beta != 1 or threshold != 20:
        raise refuse("a softplus of another shape")
    return to.by_number("SOFTPLUS", x)


VIEWS = {
    *RESHAPES,
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

HANDLERS: dict[Any, Callable[..., Any]] = {
    operator.getitem: lambda to, x, at: x[at],
    KEEP: Emitter.kept,
    ATTEND: Emitter.attended,
    aten.embedding.default: Emitter.looked_up,
    aten.cat.default: Emitter.joined,
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
