"""Each C entry of the kernels with shapes drawn by a seed: right ones against numpy, wrong ones refused.

Under `scripts/sanitize address` whatever reads or writes beside its memory ends this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from ctypes import byref
from typing import Any

import numpy as np
import pytest

from baton.native import library as native
from baton.native.library import BFLOAT16, FLOAT16, FLOAT32, INT4, INT8
from baton.native.structs import Attention, Columns, Span, Weight

SECONDS = float(os.environ.get("BATON_FUZZ_SECONDS", "0"))
ROUNDS = 40  # and more while there is time
SIZES = (1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 130)
Array = np.ndarray
library = native.library
pytestmark = pytest.mark.skipif(library is None, reason=native.describe())


def rounds(seed: int) -> Iterator[np.random.Generator]:
    """At least as many as everywhere, then as many as there is time for."""
    end = time.monotonic() + SECONDS
    for number in range(10**9):
        if number >= ROUNDS and time.monotonic() > end:
            return
        yield np.random.default_rng([seed, number])


def room(count: int, dtype: type, dice: np.random.Generator) -> Array:
    """Memory of exactly so many numbers, which begins anywhere, from the allocator that a sanitizer watches."""
    size = np.dtype(dtype).itemsize
    shift = int(dice.integers(0, 3)) * size
    return np.full(count * size + shift, 0xFF, np.uint8)[shift:].view(dtype)


def drawn(shape: tuple[int, ...], dice: np.random.Generator) -> Array:
    array = room(int(np.prod(shape)), np.float32, dice).reshape(shape)
    array[...] = dice.standard_normal(shape, np.float32)
    return array


def narrow(x: Array) -> Array:
    whole = np.ascontiguousarray(x).view(np.uint32)
    return ((whole + 0x7FFF + (whole >> 16 & 1)) >> 16).astype(np.uint16)


def wide(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


def packed(kernels: int, kind: int, weight: Array, dice: np.random.Generator) -> tuple[Weight, list[Array]]:
    assert library is not None
    outputs, inputs = weight.shape
    data = room(library.baton_weight_bytes(kernels, kind, outputs, inputs) // 4, np.float32, dice)
    group = 64 if kind == INT8 else 32 * int(dice.integers(1, 5))
    scales = room(library.baton_scale_bytes(kernels, kind, group, outputs, inputs) // 4, np.float32, dice)
    struct = Weight(kind, outputs, inputs, data.ctypes.data, scales.ctypes.data if len(scales) else None)
    struct.group, struct.planes, struct.power = group, int(dice.integers(1, 3)), 2.0**-12
    struct.wide, struct.zero = int(kind == INT8), 8 if kind == INT4 else 0
    cut = int(dice.integers(0, outputs + 1))
    for first, end in ((0, cut), (cut, outputs)):
        piece = drawn((end - first, inputs), dice)
        piece[...] = weight[first:end]
        library.baton_pack(kernels, struct, first, end - first, piece.ctypes.data, FLOAT32)
    return struct, [data, scales]


@pytest.mark.parametrize(
    "kind", [FLOAT32, BFLOAT16, FLOAT16, INT8, INT4], ids=["float32", "bfloat16", "float16", "int8", "int4"]
)
def test_products_of_any_shape(kernels: int, kind: int) -> None:
    assert library is not None
    for dice in rounds(kind):
        rows, outputs, inputs = (int(dice.choice(SIZES)) for _ in range(3))
        rows = 0 if dice.random() < 0.05 else rows
        weight, x, bias = drawn((outputs, inputs), dice), drawn((rows, inputs), dice), drawn((outputs,), dice)
        struct, held = packed(kernels, kind, weight, dice)
        back = room(outputs * inputs, np.float32, dice).reshape(outputs, inputs)
        library.baton_unpack(kernels, struct, 0, outputs, back.ctypes.data)
        y = room(rows * outputs, np.float32, dice).reshape(rows, outputs)
        library.baton_product(kernels, struct, x.ctypes.data, rows, bias.ctypes.data, y.ctypes.data)
        # Of what was packed; activations of the products in 16 bits are rounded, too.
        size = np.abs(x) @ np.abs(back).T + np.abs(x).max(initial=0) * np.abs(back).sum(axis=1) / 200 + 1e-3
        assert (np.abs(y - (x @ back.T + bias)) <= 0.01 * size).all(), (kind, rows, outputs, inputs)
        rounded = 0.13 if kind == INT4 else 0.005
        assert (np.abs(back - weight) <= rounded * np.abs(weight).max(axis=1, keepdims=True)).all()
        assert held


def seen(position: int, window: int, chunk: int) -> int:
    if chunk:
        return position // chunk * chunk
    return max(0, position + 1 - window) if window else 0


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16, FLOAT16], ids=["float32", "bfloat16", "float16"])
def test_attention_of_any_shape(kernels: int, kind: int) -> None:
    assert library is not None
    for dice in rounds(10 + kind):
        kv_heads, group = int(dice.integers(1, 5)), int(dice.choice([1, 2, 3, 7, 50]))
        heads, key_dim, value_dim = kv_heads * group, int(dice.choice(SIZES)), int(dice.choice(SIZES))
        window = int(dice.choice([0, 0, 1, 5, 64, 300]))
        chunk = int(dice.choice([0, 0, 0, 1, 7, 64]))
        ring = window + int(dice.integers(0, 3)) if window and not chunk and dice.random() < 0.5 else 0
        columns = ring or int(dice.integers(1, 700))
        softcap = float(dice.choice([0, 0, 5]))
        rows = int(dice.integers(1, 4))
        spans: list[Span] = []
        tokens = 0
        for row in [*dice.permutation(rows)[: int(dice.integers(1, rows + 1))], -1]:
            most = 900 if ring else columns
            start = int(dice.integers(0, most))
            count = int(min(dice.choice([0, 1, 1, 2, 13]), most - start))
            spans.append(Span(int(row), start, count, tokens))
            tokens += count
        number = {FLOAT32: np.float32, BFLOAT16: np.uint16, FLOAT16: np.float16}[kind]

        def stored(*shape: int, dice: np.random.Generator = dice, number: type = number) -> tuple[Array, Array]:
            """Numbers as they lie there, and their values."""
            values = drawn(shape, dice)
            array = room(int(np.prod(shape)), number, dice).reshape(shape)
            array[...] = narrow(values) if number is np.uint16 else values
            return array, wide(array) if number is np.uint16 else array.astype(np.float32)

        keys, key_of = stored(rows, columns, kv_heads, key_dim)
        values, value_of = stored(rows, columns, kv_heads, value_dim)
        new_keys, new_key_of = stored(tokens, kv_heads, key_dim)
        new_values, new_value_of = stored(tokens, kv_heads, value_dim)
        queries, sinks = drawn((tokens, heads, key_dim), dice), drawn((heads,), dice)
        with_sinks = dice.random() < 0.3
        out = room(tokens * heads * value_dim, np.float32, dice).reshape(tokens, heads, value_dim)
        call = Attention(
            *(heads, kv_heads, key_dim, value_dim, 0.3, softcap, window, chunk, ring),
            *(sinks.ctypes.data if with_sinks else None, kind),
            Columns(keys.ctypes.data, columns * kv_heads * key_dim, kv_heads * key_dim, key_dim),
            Columns(values.ctypes.data, columns * kv_heads * value_dim, kv_heads * value_dim, value_dim),
            *(new_keys.ctypes.data, new_values.ctypes.data, queries.ctypes.data, heads * key_dim, key_dim),
            *(out.ctypes.data, (Span * len(spans))(*spans), len(spans), None),
        )
        library.baton_attend(kernels, byref(call))
        for span in spans:
            for token in range(span.count):
                position, at = span.start + token, span.first + token
                if span.row < 0:
                    assert not out[at].any()
                    continue
                low = seen(position, window, chunk)
                old = np.arange(low, max(low, span.start))
                old = old % ring if ring else old
                fresh = np.arange(span.first + max(low - span.start, 0), at + 1)
                for head in range(heads):
                    kv = head // group
                    k = np.concatenate([key_of[span.row, old, kv], new_key_of[fresh, kv]])
                    v = np.concatenate([value_of[span.row, old, kv], new_value_of[fresh, kv]])
                    score = (k @ queries[at, head]) * np.float32(0.3)
                    score = np.tanh(score / softcap) * softcap if softcap else score
                    whole = np.append(score, sinks[head]) if with_sinks else score
                    share = np.exp(score - whole.max()) / np.exp(whole - whole.max()).sum()
                    assert np.allclose(out[at, head], share @ v, rtol=1e-3, atol=2e-4)


WRONG = (0, -1, -(2**31), -(2**63), 2**43, 2**62, 2**63 - 1)


def refused(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="refuse"):
        call()


def test_wrong_shapes_of_weights_are_refused(kernels: int) -> None:
    assert library is not None
    dice = np.random.default_rng(1)
    struct, held = packed(kernels, FLOAT32, drawn((33, 17), dice), dice)
    place = room(33 * 17, np.float32, dice)
    address = place.ctypes.data
    for bad in WRONG:
        refused(lambda bad=bad: library.baton_weight_bytes(kernels, FLOAT32, bad, 17))
        refused(lambda bad=bad: library.baton_scale_bytes(kernels, INT8, 32, 33, bad))
        refused(lambda bad=bad: library.baton_scale_bytes(kernels, INT4, bad, 33, 17))
        for name in ("outputs", "inputs"):
            wrong = Weight(FLOAT32, 33, 17, struct.data, None)
            setattr(wrong, name, bad)
            refused(lambda wrong=wrong: library.baton_pack(kernels, wrong, 0, 1, address, FLOAT32))
            refused(lambda wrong=wrong: library.baton_unpack(kernels, wrong, 0, 1, address))
            refused(lambda wrong=wrong: library.baton_product(kernels, wrong, address, 1, None, address))
        if bad:
            refused(lambda bad=bad: library.baton_product(kernels, struct, address, bad, None, address))
            refused(lambda bad=bad: library.baton_unpack(kernels, struct, bad, 1, address))
            refused(lambda bad=bad: library.baton_unpack(kernels, struct, 1, bad, address))
            refused(lambda bad=bad: library.baton_pack(kernels, struct, 1, bad, address, FLOAT32))
    refused(lambda: library.baton_unpack(kernels, struct, 30, 4, address))
    refused(lambda: library.baton_weight_bytes(kernels, FLOAT32, 2**30, 2**30))
    for kind in (-1, 6, 2**31 - 1):
        refused(lambda kind=kind: library.baton_weight_bytes(kernels, kind, 33, 17))
        refused(lambda kind=kind: library.baton_pack(kernels, struct, 0, 1, address, kind))
    refused(lambda: library.baton_product(kernels, Weight(FLOAT32, 33, 17, None, None), address, 1, None, address))
    refused(lambda: library.baton_product(kernels, Weight(INT8, 33, 17, struct.data, None), address, 1, None, address))
    for shape in ((0, 1, 1.0), (33, 1, 1.0), (32, 0, 1.0), (32, 3, 1.0), (32, 1, 0.0), (32, 1, -1.0)):
        four = Weight(INT4, 33, 17, struct.data, struct.data, *shape)
        refused(lambda four=four: library.baton_product(kernels, four, address, 1, None, address))
    refused(lambda: library.baton_product(kernels, struct, None, 1, None, address))
    assert held


def test_wrong_shapes_of_attention_are_refused(kernels: int) -> None:
    assert library is not None
    place = np.zeros(4096, np.float32)
    address = place.ctypes.data

    def call(span: tuple[int, ...] = (0, 3, 1, 0), **changed: Any) -> None:
        columns = Columns(address, 256, 16, 16)
        attention = Attention(1, 1, 16, 16, 1.0, 0.0, 0, 0, 0, None, FLOAT32, columns, columns)
        attention.fresh_keys = attention.fresh_values = attention.queries = attention.out = address
        attention.spans, attention.span_count = (Span * 1)(Span(*span)), 1
        for name, value in changed.items():
            setattr(attention, name, value)
        library.baton_attend(kernels, byref(attention))

    call()
    for name in ("heads", "kv_heads", "key_dim", "value_dim", "window", "chunk", "ring", "span_count"):
        for bad in WRONG:
            if bad or name not in ("window", "chunk", "ring", "span_count"):
                refused(lambda name=name, bad=bad: call(**{name: bad}))
    refused(lambda: call(heads=3, kv_heads=2))
    refused(lambda: call(kind=2))
    for name in ("queries", "out", "fresh_keys", "fresh_values"):
        refused(lambda name=name: call(**{name: None}))  # type: ignore[arg-type]
    refused(lambda: call(keys=Columns(None, 1, 1, 1)))
    for at in range(4):
        for bad in (-2, -(2**63), 2**62, 2**63 - 1):
            span = [0, 3, 1, 0]
            span[at] = bad
            refused(lambda span=span: call(tuple(span)))
