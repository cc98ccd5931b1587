"""Native attention against attention written out in float64; and the same bits however a token is fed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ctypes import CFUNCTYPE, POINTER, byref, c_int64, c_void_p
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import Thread

import numpy as np
import pytest

from baton.model.visibility import EVERYTHING, NOBODY, Visibility
from baton.native import library as native
from baton.native import structs

Array = np.ndarray
FLOAT32, BFLOAT16, FLOAT16 = native.FLOAT32, native.BFLOAT16, native.FLOAT16
KINDS = [FLOAT32, BFLOAT16, FLOAT16]
GUARD = 7.0


@dataclass(frozen=True)
class Text:
    """One row's queries, keys and values, by position; `[tokens, heads, dim]`, float32, exact in the cache's kind."""

    queries: Array
    keys: Array
    values: Array


@dataclass(frozen=True)
class Fed:
    """Tokens [start, stop) of a text in a row of the rectangle; padding if the row is NOBODY."""

    text: Text
    row: int
    start: int
    stop: int


@dataclass(frozen=True)
class Layer:
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    kind: int = FLOAT32
    visibility: Visibility = EVERYTHING
    ring: int = 0
    sinks: Array | None = None

    @property
    def scale(self) -> float:
        return float(np.float32(1.3 * self.key_dim**-0.5))

    def text(self, random: np.random.Generator, length: int) -> Text:
        def some(heads: int, dim: int) -> Array:
            return random.standard_normal((length, heads, dim)).astype(np.float32)

        keys, values = some(self.kv_heads, self.key_dim), some(self.kv_heads, self.value_dim)
        if self.kind == BFLOAT16:
            keys, values = wide(narrow(keys)), wide(narrow(values))
        if self.kind == FLOAT16:
            keys, values = keys.astype(np.float16).astype(np.float32), values.astype(np.float16).astype(np.float32)
        return Text(some(self.heads, self.key_dim), keys, values)


def narrow(x: Array) -> Array:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def wide(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


class Call:
    """One call of a layer's attention; the rectangle is NaN wherever no token of a span may look."""

    def __init__(self, layer: Layer, feds: Sequence[Fed], columns: int = 0, first: int = 0) -> None:
        self.layer = layer
        columns = layer.ring or columns or max(fed.stop for fed in feds)
        tokens = first + sum(fed.stop - fed.start for fed in feds)
        rows = max(fed.row for fed in feds) + 1
        self.queries = np.full((tokens, layer.heads, layer.key_dim + 3), np.nan, np.float32)
        self.out = np.full(tokens * layer.heads * layer.value_dim + 16, GUARD, np.float32)
        fresh = [np.full((tokens, layer.kv_heads, d), np.nan, np.float32) for d in (layer.key_dim, layer.value_dim)]
        kept = [
            np.full((max(rows, 1), columns, layer.kv_heads, d + 5), np.nan, np.float32)
            for d in (layer.key_dim, layer.value_dim)
        ]
        self.spans = (structs.Span * len(feds))()
        for i, fed in enumerate(feds):
            count = fed.stop - fed.start
            self.spans[i] = structs.Span(fed.row, fed.start, count, first)
            for new, old, all_of in zip(fresh, kept, (fed.text.keys, fed.text.values), strict=True):
                new[first : first + count] = all_of[fed.start : fed.stop]
                if fed.row != NOBODY:
                    before = np.arange(layer.visibility.lowest(fed.start), fed.start)
                    at = before % layer.ring if layer.ring else before
                    old[fed.row, at, :, : all_of.shape[2]] = all_of[before]
            self.queries[first : first + count, :, : layer.key_dim] = fed.text.queries[fed.start : fed.stop]
            first += count
        of_kind = {FLOAT32: lambda x: x, BFLOAT16: narrow, FLOAT16: lambda x: x.astype(np.float16)}[layer.kind]
        self.held = [of_kind(x) for x in (*kept, *fresh)]

    def struct(self) -> structs.Attention:
        layer, (keys, values, fresh_keys, fresh_values) = self.layer, self.held

        def columns(x: Array) -> structs.Columns:
            return structs.Columns(x.ctypes.data, *(stride // x.itemsize for stride in x.strides[:3]))

        return structs.Attention(
            layer.heads,
            layer.kv_heads,
            layer.key_dim,
            layer.value_dim,
            layer.scale,
            layer.visibility.softcap,
            layer.visibility.window,
            layer.visibility.chunk,
            layer.ring,
            None if layer.sinks is None else layer.sinks.ctypes.data,
            layer.kind,
            columns(keys),
            columns(values),
            fresh_keys.ctypes.data,
            fresh_values.ctypes.data,
            self.queries.ctypes.data,
            self.queries.strides[0] // 4,
            self.queries.strides[1] // 4,
            self.out.ctypes.data,
            self.spans,
            len(self.spans),
            None,
        )

    def results(self) -> list[Array]:
        """Of each span `[tokens, heads, dim]`; nothing else was written."""
        layer = self.layer
        assert (self.out[-16:] == GUARD).all()
        out = self.out[:-16].reshape(-1, layer.heads, layer.value_dim)
        assert (out[: self.spans[0].first] == GUARD).all()
        return [out[span.first : span.first + span.count].copy() for span in self.spans]


def attend(kernels: int, layer: Layer, feds: Sequence[Fed], first: int = 0) -> list[Array]:
    assert native.library is not None
    call = Call(layer, feds, first=first)
    assert native.library.baton_attend(kernels, byref(call.struct())) == 0
    return call.results()


def written_out(layer: Layer, fed: Fed) -> Array:
    """In float64."""
    group = layer.heads // layer.kv_heads
    out = np.zeros((fed.stop - fed.start, layer.heads, layer.value_dim))
    for token in range(fed.start, fed.stop) if fed.row != NOBODY else ():
        seen = slice(layer.visibility.lowest(token), token + 1)
        for head in range(layer.heads):
            keys, values = (x[seen, head // group].astype(np.float64) for x in (fed.text.keys, fed.text.values))
            scores = keys @ fed.text.queries[token, head].astype(np.float64) * layer.scale
            if layer.visibility.softcap:
                scores = layer.visibility.softcap * np.tanh(scores / layer.visibility.softcap)
            sink = [] if layer.sinks is None else [float(layer.sinks[head])]
            shares = np.exp(scores - max([scores.max(), *sink]))
            total = shares.sum() + sum(np.exp(x - max([scores.max(), *sink])) for x in sink)
            out[token - fed.start, head] = shares @ values / total
    return out


def close(kernels: int, layer: Layer, feds: Sequence[Fed], error: float = 5e-6) -> None:
    for fed, out in zip(feds, attend(kernels, layer, feds, first=2), strict=True):
        np.testing.assert_allclose(out, written_out(layer, fed), rtol=error, atol=error)


def any_layer(random: np.random.Generator, kind: int) -> Layer:
    kv_heads, group = int(random.integers(1, 4)), int(random.choice([1, 2, 3, 4, 5, 7, 8, 13]))
    key_dim = int(random.choice([8, 15, 33, 64, 80, 96, 128, 192, 257]))
    value_dim = key_dim if random.random() < 0.5 else int(random.choice([8, 17, 40, 64, 128, 256]))
    span = int(random.choice([1, 5, 32, 64, 100]))
    softcap = float(random.choice([0, 0.5, 30]))
    visibility = [Visibility(0, 0, softcap), Visibility(span, 0, softcap), Visibility(0, span, softcap)][
        random.integers(3)
    ]
    ring = visibility.window if random.random() < 0.6 else 0
    heads = kv_heads * group
    sinks = random.normal(0, 3, heads).astype(np.float32) if random.random() < 0.4 else None
    return Layer(heads, kv_heads, key_dim, value_dim, kind, visibility, ring, sinks)


def any_feds(random: np.random.Generator, layer: Layer, *, long: int = 150) -> list[Fed]:
    feds = []
    for row in random.permutation(7)[: random.integers(1, 7)]:
        start = int(random.choice([0, 1, 63, 64, int(random.integers(0, long))]))
        count = int(random.choice([1, 1, 2, 5, int(random.integers(1, 120))]))
        mine = NOBODY if row == 6 else int(row)
        feds.append(Fed(layer.text(random, start + count), mine, start, start + count))
    return feds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(16))
def test_it_is_attention_at_any_shape(kernels: int, kind: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    layer = any_layer(random, kind)
    close(kernels, layer, any_feds(random, layer))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "visibility", [Visibility(), Visibility(window=700), Visibility(chunk=600), Visibility(softcap=2.0)], ids=str
)
def test_long_rows(kernels: int, kind: int, visibility: Visibility) -> None:
    random = np.random.default_rng(5)
    layer = Layer(6, 2, 32, 48, kind, visibility, visibility.window, random.normal(0, 3, 6).astype(np.float32))
    shapes = [(1300, 1), (511, 1), (512, 1), (513, 1), (1023, 4), (600, 20), (0, 1), (1500, 1)]
    feds = [Fed(layer.text(random, start + n), row, start, start + n) for row, (start, n) in enumerate(shapes)]
    close(kernels, layer, feds)


def test_many_heads_that_share_one(kernels: int) -> None:
    random = np.random.default_rng(1)
    layer = Layer(100, 1, 576, 512, BFLOAT16)
    close(kernels, layer, [Fed(layer.text(random, 520), 0, 519, 520), Fed(layer.text(random, 9), 1, 6, 9)])


def test_extreme_scores(kernels: int) -> None:
    """The first pieces' scores are far above or below the others', and sinks far from all; so rounding is coarser."""
    random = np.random.default_rng(2)
    layer = replace(Layer(2, 1, 16, 16), sinks=np.array([-300, 300], np.float32))
    text = layer.text(random, 1200)
    for slope in (-0.05, 0.05):
        ramp = (slope * np.arange(1200))[:, None, None].astype(np.float32)
        text.keys[:] = ramp + 0.1 * text.keys
        text.queries[:] = np.abs(text.queries)
        close(kernels, layer, [Fed(text, 0, 1199, 1200), Fed(text, 1, 1100, 1200)], error=1e-4)


def test_softcap_of_small_scores(kernels: int) -> None:
    """tanh is near its argument: differences of scores survive, by a factor that makes them matter."""
    layer = Layer(1, 1, 8, 8, visibility=Visibility(softcap=1e4))
    text = layer.text(np.random.default_rng(3), 40)
    text.queries[:] *= 20
    close(kernels, layer, [Fed(text, 0, 39, 40)])


def test_a_minus_infinite_score_has_no_share(kernels: int) -> None:
    layer = Layer(1, 1, 8, 8)
    text = layer.text(np.random.default_rng(4), 70)
    text.queries[:, :, 0] = 1
    text.keys[:66, :, 0] = -np.inf
    text.keys[67, :, 0] = -np.inf
    out = attend(kernels, layer, [Fed(text, 0, 69, 70)])[0]
    kept = [66, 68, 69]
    fewer = Text(text.queries[kept], text.keys[kept], text.values[kept])
    np.testing.assert_allclose(out, written_out(layer, Fed(fewer, 0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_a_rows_own_nan_stays_and_reaches_no_other(kernels: int) -> None:
    random = np.random.default_rng(6)
    layer = Layer(3, 1, 16, 16)
    sick, sound = layer.text(random, 100), layer.text(random, 100)
    sick.values[50] = np.nan
    feds = [Fed(sick, 0, 99, 100), Fed(sound, 1, 99, 100), Fed(sick, 2, 0, 40)]
    out = attend(kernels, layer, feds)
    assert np.isnan(out[0]).all()
    close(kernels, layer, feds[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(100, 108))
def test_a_span_alone_gives_the_same_bits(kernels: int, kind: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    layer = any_layer(random, kind)
    feds = any_feds(random, layer, long=1200)
    for fed, out in zip(feds, attend(kernels, layer, feds), strict=True):
        alone = replace(fed, row=min(fed.row, 0))
        assert same(out, attend(kernels, layer, [alone], first=1)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(200, 208))
def test_a_prompt_cut_anyhow_gives_the_same_bits(kernels: int, kind: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    layer = any_layer(random, kind)
    length = int(random.choice([70, 200, 600, 1100]))
    text = layer.text(random, length)
    whole = attend(kernels, layer, [Fed(text, 0, 0, length)])[0]
    cuts = sorted({0, length, *random.integers(0, length, 3).tolist(), length - 1})
    single = [Fed(text, 0, at, at + 1) for at in (0, 17, 63, 64, length // 2, length - 1)]
    for fed in [*(Fed(text, 0, a, b) for a, b in pairwise(cuts)), *single]:
        assert same(whole[fed.start : fed.stop], attend(kernels, layer, [fed])[0]), fed.start


@pytest.mark.parametrize("kind", KINDS)
def test_threads_in_any_order_give_the_same_bits(kernels: int, kind: int) -> None:
    random = np.random.default_rng(9)
    layer = Layer(9, 3, 64, 64, kind)
    feds = [Fed(layer.text(random, stop), row, start, stop) for row, (start, stop) in enumerate(SHARED_OUT)]
    expected = attend(kernels, layer, feds)
    call = Call(layer, feds)
    in_threads(kernels, call, threads=3)
    assert all(same(a, b) for a, b in zip(expected, call.results(), strict=True))


SHARED_OUT = [(1900, 1901), (0, 100), (600, 610), (30, 31), (700, 900)]
COUNT = CFUNCTYPE(c_int64, POINTER(structs.Attention))
ATTEND = CFUNCTYPE(None, POINTER(structs.Attention), c_int64, c_void_p)
MERGE = CFUNCTYPE(None, POINTER(structs.Attention), c_int64)
TASKS, ATTEND_AT, MERGES, MERGE_AT, PARTIAL, SCRATCH = range(9, 15)  # in struct Kernels of source/kernels.h


def in_threads(kernels: int, call: Call, threads: int) -> None:
    """As the engine does it: tasks shared out, here from the last to the first, then merges."""
    table = (c_void_p * 16).from_address(kernels)
    struct = call.struct()
    count = {at: COUNT(table[at] or 0)(byref(struct)) for at in (TASKS, MERGES, PARTIAL, SCRATCH)}
    assert count[MERGES] > 0
    partial = np.full(count[PARTIAL], np.nan, np.float32)
    struct.partial = partial.ctypes.data
    attend_task, merge = ATTEND(table[ATTEND_AT] or 0), MERGE(table[MERGE_AT] or 0)

    def tasks(thread: int) -> None:
        scratch = np.full(count[SCRATCH], np.nan, np.float32)
        for task in reversed(range(thread, count[TASKS], threads)):
            attend_task(byref(struct), task, scratch.ctypes.data)

    def merges(thread: int) -> None:
        for i in reversed(range(thread, count[MERGES], threads)):
            merge(byref(struct), i)

    for work in (tasks, merges):
        run(Thread(target=work, args=(thread,)) for thread in range(threads))


def run(threads: Iterable[Thread]) -> None:
    started = list(threads)
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())
