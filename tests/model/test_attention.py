"""Attention over rows of different lengths equals a plain float64 reference, however a step is shaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.kv.rectangle import LayerShape, Rectangle
from baton.model import attention, sdpa
from baton.model.attention import Decode, Layout, Span, Visibility
from baton.model.padded import padded

COLUMNS = 24
CAPACITY = 5
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A rectangle full of numbers, also where no row has a token, and the fed tokens."""

    spans: list[Span]
    heads: int
    group: int
    dim: int
    value_dim: int
    visibility: Visibility
    scale: float | None
    seed: int
    sinks: Tensor | None = None

    @property
    def rectangle(self) -> Rectangle:
        shape = LayerShape(self.heads, self.dim, self.value_dim)
        rectangle = Rectangle(
            [shape], capacity=CAPACITY, columns=COLUMNS, dtype=torch.float32, device=torch.device("cpu")
        )
        generator = torch.Generator().manual_seed(self.seed)
        rectangle.keys[0].copy_(torch.randn(rectangle.keys[0].shape, generator=generator))
        rectangle.values[0].copy_(torch.randn(rectangle.values[0].shape, generator=generator))
        return rectangle

    def queries(self, *shape: int) -> Tensor:
        """`[..., Hq, T, D]`."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(shape[0], self.heads * self.group, shape[1], self.dim, generator=generator)

    def reference(self, q: Tensor, row: int, column: int, rectangle: Rectangle) -> Tensor:
        """One token of one row, q `[Hq, D]` -> `[Hq, Dv]`: softmax over what it sees, in float64, head by head."""
        low = 0
        if self.visibility.window:
            low = max(0, column - self.visibility.window + 1)
        if self.visibility.chunk:
            low = column - column % self.visibility.chunk
        k = rectangle.keys[0][row, low : column + 1].double()
        v = rectangle.values[0][row, low : column + 1].double()
        scale = 1 / math.sqrt(self.dim) if self.scale is None else self.scale
        out = []
        for head in range(self.heads * self.group):
            scores = k[:, head // self.group] @ q[head].double() * scale
            if self.visibility.softcap:
                scores = self.visibility.softcap * (scores / self.visibility.softcap).tanh()
            if self.sinks is not None:
                scores = torch.cat([scores, self.sinks[head : head + 1].double()])
            out.append(scores.softmax(0)[: column + 1 - low] @ v[:, head // self.group])
        return torch.stack(out)


@st.composite
def cases(draw: st.DrawFn, *, ones: bool = False) -> Case:
    rows = draw(st.lists(st.integers(0, CAPACITY - 1), min_size=1, max_size=CAPACITY, unique=True))
    spans = []
    for row in sorted(rows):
        start = draw(st.integers(0, COLUMNS - 1))
        spans.append(Span(row, start, 1 if ones else draw(st.integers(1, COLUMNS - start))))
    dim = draw(st.sampled_from([4, 8]))
    heads, group = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    size = draw(st.sampled_from([1, 3, 7, COLUMNS]))
    kind = draw(st.sampled_from([Visibility(), Visibility(window=size), Visibility(chunk=size)]))
    sinks = torch.linspace(-2, 2, heads * group) if draw(st.booleans()) else None
    return Case(
        spans=spans,
        heads=heads,
        group=group,
        dim=dim,
        value_dim=dim,
        visibility=replace(kind, softcap=draw(st.sampled_from([0.0, 0.0, 2.0]))),
        sinks=sinks,
        scale=draw(st.sampled_from([None, 0.7])),
        seed=draw(st.integers(0, 1000)),
    )


def check_fill(case: Case) -> None:
    rectangle = case.rectangle
    shape = attention.fill(case.spans, rectangle)
    q = case.queries(1, sum(span.count for span in case.spans))
    out = shape.attend(q, rectangle.keys[0], rectangle.values[0], case.scale, case.visibility, case.sinks)
    expected = [
        case.reference(q[0, :, at], int(row), int(column), rectangle)
        for at, (row, column) in enumerate(zip(shape.rows, shape.cols, strict=True))
    ]
    assert out.shape == (1, q.shape[2], q.shape[1], case.value_dim)
    torch.testing.assert_close(out[0].double(), torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE)


def check_decode(case: Case, together: bool) -> None:
    rectangle = case.rectangle
    shape = attention.decode(case.spans, rectangle)
    shape.together = together
    q = case.queries(len(case.spans), 1)
    out = shape.attend(q, rectangle.keys[0], rectangle.values[0], case.scale, case.visibility, case.sinks)
    expected = [case.reference(q[i, :, 0], s.row, s.start, rectangle) for i, s in enumerate(case.spans)]
    assert out.shape == (len(case.spans), 1, q.shape[1], case.value_dim)
    torch.testing.assert_close(out[:, 0].double(), torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE)


def check_padded(case: Case) -> None:
    rectangle = case.rectangle
    shape = padded(case.spans, rectangle)
    longest = max(span.count for span in case.spans)
    q = case.queries(len(case.spans), longest)
    out = shape.attend(q, rectangle.keys[0], rectangle.values[0], case.scale, case.visibility, case.sinks)
    assert out.shape == (len(case.spans), longest, q.shape[1], case.value_dim)
    assert bool(out.isfinite().all()), "a padding slot must not breed NaN"
    flat = out.flatten(0, 1)[shape.kept]
    expected = [
        case.reference(q[i, :, j], span.row, span.start + j, rectangle)
        for i, span in enumerate(case.spans)
        for j in range(span.count)
    ]
    torch.testing.assert_close(flat.double(), torch.stack(expected), atol=TOLERANCE, rtol=TOLERANCE)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_a_flat_fill_equals_the_reference(case: Case) -> None:
    check_fill(case)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases(ones=True))
def test_a_decode_step_attended_together_equals_the_reference(case: Case) -> None:
    check_decode(case, together=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(cases(ones=True))
def test_a_decode_step_attended_row_by_row_equals_the_reference(case: Case) -> None:
    check_decode(case, together=False)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
def test_padded_rows_equal_the_reference(case: Case) -> None:
    check_padded(case)


@pytest.mark.parametrize(
    "visibility", [Visibility(window=3), Visibility(window=3, softcap=2.0), Visibility(chunk=4, softcap=2.0)]
)
def test_a_padding_slot_that_would_see_nothing_breeds_no_nan(visibility: Visibility) -> None:
    """Row 0's token is in column 10; beside row 1's twelve, its last padding slot is at column 21."""
    check_padded(replace(plain([Span(0, 10, 1), Span(1, 0, 12)]), visibility=visibility))


def plain(spans: Sequence[Span], window: int = 0) -> Case:
    return Case(
        list(spans), heads=2, group=2, dim=4, value_dim=4, visibility=Visibility(window=window), scale=None, seed=1
    )


@pytest.mark.parametrize(
    ("check", "spans"),
    [
        (check_fill, [Span(0, 3, 7), Span(2, 0, 9)]),
        (check_padded, [Span(0, 3, 7), Span(2, 0, 9)]),
        (partial(check_decode, together=True), [Span(0, 9, 1), Span(2, 5, 1)]),
        (partial(check_decode, together=False), [Span(0, 9, 1), Span(2, 5, 1)]),
    ],
)
def test_the_comparison_notices_a_window_that_is_wrong_by_one(
    check: Callable[[Case], None], spans: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(plain(spans, window=4))
    right = Case.reference
    wider = plain([], window=5)
    monkeypatch.setattr(Case, "reference", lambda self, *args: right(wider, *args))
    with pytest.raises(AssertionError, match="not close"):
        check(plain(spans, window=4))


@pytest.mark.parametrize(("softcap", "sinks"), [(0.0, None), (3.0, None), (0.0, torch.tensor([0.5, -1.0, 2.0, 0.0]))])
def test_causal_queries_are_the_last_of_all_tokens(softcap: float, sinks: Tensor | None) -> None:
    """As chunks of a prompt are attended on CUDA, where a mask would cost the fast kernel."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, count, 8, generator=generator) for heads, count in ((4, 5), (2, 12), (2, 12)))
    mask = torch.arange(12) <= torch.arange(7, 12)[:, None]
    out = sdpa.attention(q, k, v, causal=True, softcap=softcap, sinks=sinks)
    expected = sdpa.attention(q, k, v, mask=mask, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


def test_a_neighbours_nan_stays_in_its_row() -> None:
    case = plain([Span(0, 5, 1), Span(1, 7, 1), Span(3, 2, 1)])
    rectangle = case.rectangle
    shape = attention.decode(case.spans, rectangle)
    shape.together = True
    q = case.queries(3, 1)
    right = shape.attend(q, rectangle.keys[0], rectangle.values[0], None, Visibility())
    rectangle.keys[0][1] = torch.nan
    rectangle.values[0][1] = torch.nan
    out = shape.attend(q, rectangle.keys[0], rectangle.values[0], None, Visibility())
    assert torch.equal(out[[0, 2]], right[[0, 2]])
    assert bool(out[1].isnan().all())


FEEDS = st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    FEEDS,
    st.sampled_from([Visibility(window=5), Visibility(chunk=5), Visibility(window=5, softcap=3.0)]),
    st.booleans(),
    st.booleans(),
)
def test_a_ring_gives_what_a_layer_that_keeps_everything_gives(
    feeds: list[list[int]], visibility: Visibility, aligned: bool, together: bool
) -> None:
    """Three rows are fed random numbers of tokens; each feed is made twice, as if it had failed the first time."""
    layers = [LayerShape(2, 4, 4, window=5), LayerShape(2, 4, 4)]
    rectangle = Rectangle(layers, capacity=3, columns=64, dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    for feed in feeds:
        spans = [Span(row, rectangle.lens[row], count) for row, count in enumerate(feed) if count]
        if not spans:
            continue
        for _ in ("fails", "goes well"):
            shape = _shape_of(spans, rectangle, aligned)
            if isinstance(shape, Decode):
                shape.together = together
            size = shape.by_place(torch.zeros(sum(span.count for span in spans), dtype=torch.bool)).shape
            q = torch.randn(size[0], 4, size[1], 4, generator=generator)
            new = torch.randn(2, size[0], 2, size[1], 4, generator=generator)
            ring, whole = (shape.attend(q, *shape.keep(layer, *new), None, visibility) for layer in (0, 1))
            torch.testing.assert_close(_real(shape, ring), _real(shape, whole), atol=TOLERANCE, rtol=TOLERANCE)
        shape.commit()
        for span in spans:
            rectangle.lens[span.row] = span.stop


def _shape_of(spans: list[Span], rectangle: Rectangle, aligned: bool) -> Layout:
    if all(span.count == 1 for span in spans):
        return attention.decode(spans, rectangle)
    return (padded if aligned else attention.fill)(spans, rectangle)


def _real(shape: Layout, out: Tensor) -> Tensor:
    return shape.by_token(out.transpose(1, 2))


def test_a_decode_step_reads_together_only_where_padding_costs_less_than_calls() -> None:
    shape = LayerShape(8, 64, 64)  # 4 KiB a column
    rectangle = Rectangle([shape], capacity=4, columns=4096, dtype=torch.float32, device=torch.device("cpu"))
    even = attention.decode([Span(row, 100, 1) for row in range(4)], rectangle)
    assert (even.together, even.columns_read) == (True, 4 * 101)
    uneven = attention.decode([Span(0, 4000, 1), Span(1, 9, 1)], rectangle)
    assert (uneven.together, uneven.columns_read) == (False, 4001 + 10)
    hole = attention.decode([Span(0, 9, 1), Span(3, 9, 1)], rectangle)
    assert (hole.together, hole.columns_read) == (True, 4 * 10)
    alone = attention.decode([Span(0, 4000, 1)], rectangle)
    assert (alone.together, alone.columns_read) == (True, 4001)


def test_fills_read_what_rows_hold_and_padded_rows_the_longest() -> None:
    case = plain([Span(0, 3, 7), Span(2, 0, 9)])
    assert attention.fill(case.spans, case.rectangle).columns_read == 10 + 9
    assert padded(case.spans, case.rectangle).columns_read == 2 * 10
