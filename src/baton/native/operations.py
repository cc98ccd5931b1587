"""Torch's basic operations as native instructions."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from baton.model.packed_experts import PACKED_EXPERT
from baton.model.packed_linear import packed_layer
from baton.native.choosing import gather, greatest, indexed, largest, masked, scatter, topk
from baton.native.emit import Emitter
from baton.native.graph import Value, refuse
from baton.native.record import ATTEND, EXPERT, KEEP, KEEP_STATE, ROWS, STATE
from baton.native.views import along, fold, repeated, rows_at, unfold

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
        dims, rows = x.view.dim(), rows_at(x.shape)
        if dim is None or len(dim) != 1 or dim[0] % dims == rows:
            raise refuse(f"{code.lower()} over other dimensions than one of a token's")
        at = dim[0] % dims
        if rows:
            first = Value(x.buffer, x.view.movedim(rows, 0))
            done = emit(to, first, [at + (at < rows)], True)
            view = done.view.movedim(0, rows)
            return Value(done.buffer, view if keepdim else view.squeeze(at))
        if at == dims - 1:
            return to.over_last(code, x, reduced=True, keep=keepdim)
        if code == "SUM" and x.shape[at] <= _MOST_PARTS:
            return _sum_of_parts(to, x, at, keepdim)
        result = to.over_last(code, Value(x.buffer, x.view.transpose(at, -1)), reduced=True, keep=True)
        view = result.view.transpose(at, -1)
        return Value(result.buffer, view if keepdim else view.squeeze(at))

    return emit


# A sum of so many parts adds whole parts, number by number, which is faster than to walk across them.
_MOST_PARTS = 16


def _sum_of_parts(to: Emitter, x: Value, dim: int, keep: bool) -> Value:
    x = to.here(x)
    parts = [Value(x.buffer, x.view.narrow(dim, at, 1)) for at in range(x.shape[dim])]
    total = to.by_number("ADD", *parts[:2]) if len(parts) > 1 else to.by_number("COPY", parts[0])
    for part in parts[2:]:
        to.by_number("ADD", total, part, out=total)
    return total if keep else Value(total.buffer, total.view.squeeze(dim))


def _dot(to: Emitter, x: Any, y: Any, dim: list[int], keepdim: bool = False) -> Value:
    """The sum of a product over one dimension."""
    shape = torch.broadcast_shapes(*(one.shape for one in (x, y) if isinstance(one, (Value, Tensor))))
    dims = len(shape)
    if len(dim) != 1 or dim[0] % dims == 0:
        raise refuse("a sum over other dimensions than one of a token's")
    factors = [
        along(one if isinstance(one, Value) else torch.as_tensor(one), shape, lambda view: view) for one in (x, y)
    ]
    result = to.dotted(factors[0], factors[1], dim[0] % dims)
    return result if keepdim else Value(result.buffer, result.view.squeeze(dim[0] % dims))


def _multiplied(to: Emitter, x: Value, y: Value) -> Value:
    """`bmm`: a matrix and a vector, or a few, for each of `[ROWS x n]`."""
    if not isinstance(x, Value) or not isinstance(y, Value) or y.shape[-1] > _MOST_PARTS:
        raise refuse("a product of two computed values")
    matrix, vectors = unfold(x), unfold(y)
    out = to.new((*matrix.shape[:3], y.shape[-1]))
    for at in range(y.shape[-1]):
        vector = vectors.view[..., at : at + 1].transpose(-1, -2).expand(matrix.shape)
        to.dotted(matrix, Value(y.buffer, vector), 3, out=Value(out.buffer, out.view[..., at : at + 1]))
    return fold(out)


def _convolution(
    to: Emitter,
    x: Value,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    *,
    first: int = 0,
) -> Value:
    """A depthwise convolution over the last dimension, from output `first` on; the ones before it are left out."""
    channels, _, width = weight.shape
    plain = stride == [1] and padding == [0] and dilation == [1] and not transposed and groups == channels
    if not plain or not isinstance(weight, Tensor) or x.shape[1] != channels:
        raise refuse("a convolution other than by channel")
    count = x.shape[-1] - width + 1
    out = to.new((ROWS, channels, count))
    for at in range(first, count):
        part = Value(out.buffer, out.view[..., at : at + 1])
        to.dotted(Value(x.buffer, x.view[..., at : at + width]), weight[:, 0][None], 2, out=part)
        if bias is not None:
            to.by_number("ADD", part, bias[:, None], out=part)
    return out


def _filled(number: float) -> Callable[..., Value]:
    return lambda to, x, **kwargs: to.by_number("COPY", torch.full((ROWS, *x.shape[1:]), number))


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


def _clamp_to(to: Emitter, x: Value, low: Any = None, high: Any = None, **named: Any) -> Value:
    low, high = named.get("min", low), named.get("max", high)
    x = x if low is None else to.by_number("LARGER", x, low)
    return x if high is None else to.by_number("SMALLER", x, high)


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
    EXPERT: Emitter.chosen,
    PACKED_EXPERT: lambda to, x, index, layer: to.chosen(x, index, packed_layer(layer)),
    STATE: Emitter.state,
    KEEP_STATE: Emitter.kept_state,
    aten.bmm.default: _multiplied,
    aten.convolution.default: _convolution,
    aten.topk.default: topk,
    aten.max.dim: largest,
    aten.amax.default: greatest,
    aten.gather.default: gather,
    aten.index.Tensor: indexed,
    aten.repeat.default: lambda to, x, times: repeated(x, times),
    aten.masked_fill.Scalar: masked,
    aten.full_like.default: lambda to, x, number, **kwargs: _filled(number)(to, x),
    aten.zeros_like.default: _filled(0.0),
    aten.ones_like.default: _filled(1.0),
    aten.clamp.Tensor: _clamp_to,
    aten.logical_not.default: lambda to, x: to.by_number("SUB", 1.0, x),
    aten.bitwise_not.default: lambda to, x: to.by_number("SUB", 1.0, x),
    **{
        overload: scatter(in_place)
        for name, in_place in (("scatter", False), ("scatter_", True))
        for overload in (getattr(aten, name).value, getattr(aten, name).src)
    },
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
            "expm1",
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


FUSED: dict[Any, Callable[..., Any]] = {
    aten.sum.dim_IntList: _dot,
    aten.add.Tensor: lambda to, x, y, z: to.by_number("MUL_ADD", x, y, z),
}
"""Operations on a product number by number, which comes as its two factors."""


def _stacked(value: Any, dim: int) -> Any:
    if isinstance(value, Tensor):
        return value.unsqueeze(dim)
    return Value(value.buffer, value.view.unsqueeze(dim))
