"""Prompts attended in one call per layer give what they give request by request, out of the rectangle as it lies."""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baton.core.errors import LoadError
from baton.cuda import varlen_prefill as packed
from baton.cuda.varlen_prefill import Packed, Varlen, bounds, of_torch, one_behind_the_other
from baton.kv.rectangle import LayerShape, Rectangle
from baton.loader.choose import choose
from baton.loader.device_steps import with_packed_prompts
from baton.loader.proof import proof_of
from baton.model import attention
from baton.model.forward import TorchForward
from baton.model.port import Forward
from baton.model.visibility import Span, Visibility
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from families import model_of
from random_batch import Shaken, alone, random_batch, some_queries
from varlen import varlen_attn

ROWS, COLUMNS = 5, 24
CPU = torch.device("cpu")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def rectangle_of(
    heads: int, dim: int, dtype: torch.dtype = torch.float32, device: torch.device = CPU, columns: int = COLUMNS
) -> Rectangle:
    return Rectangle([LayerShape(heads, dim, dim)], capacity=ROWS, columns=columns, dtype=dtype, device=device)


def filled(rectangle: Rectangle, spans: Sequence[Span], seed: int) -> None:
    """What rows hold; everything that no row holds is not a number."""
    generator = torch.Generator().manual_seed(seed)
    for buffer in (rectangle.keys[0], rectangle.values[0]):
        whole = buffer.as_strided((ROWS * buffer.stride(0) // buffer.stride(1), *buffer.shape[2:]), buffer.stride()[1:])
        whole.fill_(torch.nan)
        for span in spans:
            new = torch.randn(span.stop, *buffer.shape[2:], generator=generator)
            buffer[span.row, : span.stop] = new.to(buffer)


@st.composite
def some_spans(draw: st.DrawFn) -> list[Span]:
    spans = []
    for row in sorted(draw(st.sets(st.integers(0, ROWS - 1), min_size=1))):
        start = draw(st.integers(0, COLUMNS - 1))
        spans.append(Span(row, start, draw(st.one_of(st.just(1), st.integers(1, COLUMNS - start)))))
    return spans


def test_rows_in_any_order_are_copied_out() -> None:
    spans = [Span(2, 0, 6), Span(0, 3, 4)]
    rectangle, varlen = rectangle_of(2, 8), Varlen(varlen_attn)
    filled(rectangle, spans, seed=0)
    q = torch.randn(1, 2, 10, 8)
    layer = (rectangle.keys[0], rectangle.values[0], None, Visibility(window=4))
    out = packed.packed(spans, rectangle, varlen).attend(q, *layer)
    torch.testing.assert_close(out, attention.fill(spans, rectangle).attend(q, *layer), atol=1e-5, rtol=1e-5)
    assert varlen.calls == 1


FEEDS = st.lists(st.lists(st.integers(0, 7), min_size=3, max_size=3).filter(any), min_size=1, max_size=8)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(FEEDS)
def test_rings_are_attended_in_the_order_of_the_text(feeds: list[list[int]]) -> None:
    layers = [LayerShape(2, 8, 8, window=5), LayerShape(2, 8, 8)]
    rectangle = Rectangle(layers, capacity=3, columns=64, dtype=torch.float32, device=CPU)
    visibility, varlen = Visibility(window=5), Varlen(varlen_attn)
    for feed in feeds:
        spans = [Span(row, rectangle.lens[row], count) for row, count in enumerate(feed) if count]
        shape = packed.packed(spans, rectangle, varlen)
        q = torch.randn(1, 4, len(shape.rows), 8)
        new = torch.randn(2, 1, 2, len(shape.rows), 8)
        kept = [shape.keep(layer, *new) for layer in (0, 1)]
        ring, whole = (shape.attend(q, *buffers, None, visibility) for buffers in kept)
        expected = attention.fill(spans, rectangle).attend(q, *kept[1], None, visibility)
        for out in (ring, whole):
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
        shape.commit()
        for span in spans:
            rectangle.lens[span.row] = span.stop
    assert varlen.calls == 2 * len(feeds)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(some_spans(), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 3, COLUMNS]), st.booleans())
def test_one_call_gives_what_calls_request_by_request_give(
    spans: list[Span], heads: int, group: int, window: int, scaled: bool
) -> None:
    rectangle, visibility = rectangle_of(heads, 8), Visibility(window=window)
    filled(rectangle, spans, seed=window)
    layer = (rectangle.keys[0], rectangle.values[0], 0.7 if scaled else None, visibility)
    # As a model hands them on: by token, then by head.
    q = torch.randn(1, sum(span.count for span in spans), heads * group, 8).transpose(1, 2)
    varlen = Varlen(varlen_attn)
    out = packed.packed(spans, rectangle, varlen).attend(q, *layer)
    expected = attention.fill(spans, rectangle).attend(q, *layer)
    assert varlen.calls == 1
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_rows_are_padded_to_pages_and_sequences_begin_where_rows_do() -> None:
    rectangle = rectangle_of(3, 8)
    keys = rectangle.keys[0]
    pitch = keys.stride(0) // keys.stride(1)
    assert pitch > COLUMNS
    spans = [Span(0, 0, 4), Span(1, 3, 1), Span(4, 2, 5)]
    queries, begun = bounds(spans, pitch)
    assert queries == [0, 0, 4, 4, 5, 5, 10]
    assert begun == [0, 0, 4, pitch, pitch + 4, 4 * pitch, 4 * pitch + 7]
    flat = one_behind_the_other(keys)
    assert flat.data_ptr() == keys.data_ptr()
    for row in range(ROWS):
        assert flat[row * pitch : row * pitch + COLUMNS].data_ptr() == keys[row].data_ptr()
    assert len(flat) == 4 * pitch + COLUMNS


@pytest.mark.parametrize(
    ("visibility", "sinks", "dim", "rows"),
    [
        (Visibility(softcap=2.0), None, 8, (0, 2)),
        (Visibility(chunk=4), None, 8, (0, 2)),
        (Visibility(), torch.tensor([0.5, -1.0]), 8, (0, 2)),
        (Visibility(), None, 4, (0, 2)),
    ],
)
def test_what_the_kernel_cannot_do_goes_request_by_request(
    visibility: Visibility, sinks: Tensor | None, dim: int, rows: tuple[int, int]
) -> None:
    spans = [Span(rows[0], 0, 6), Span(rows[1], 3, 4)]
    rectangle, varlen = rectangle_of(2, dim), Varlen(varlen_attn)
    filled(rectangle, spans, seed=0)
    q = torch.randn(1, 2, 10, dim)
    layer = (rectangle.keys[0], rectangle.values[0], None, visibility, sinks)
    out = packed.packed(spans, rectangle, varlen).attend(q, *layer)
    assert varlen.calls == 0
    assert torch.equal(out, attention.fill(spans, rectangle).attend(q, *layer))


def packed_forward(family: str, varlen: Varlen) -> tuple[Forward, str]:
    """The forward, and why it is not packed."""
    model = model_of(family)
    proof, plain = proof_of(model), choose(model, native=False).forward
    assert isinstance(plain, TorchForward)
    forward, reasons = with_packed_prompts(proof, plain, varlen)
    return forward, "; ".join(map(str, reasons))


# Rings in the third and fifth, states in the last.
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window", "gpt2", "gemma3", "qwen3_moe", "falcon_h1"])
def test_a_model_is_taken_so_where_it_is_exact(family: str) -> None:
    varlen = Varlen(varlen_attn)
    forward, why_not = packed_forward(family, varlen)
    assert "prompts' attention in one call per layer" in forward.parts()
    assert not why_not
    assert not varlen.proving


def test_a_model_of_softcaps_stays_as_it_was_and_says_why() -> None:
    forward, why_not = packed_forward("gemma2", Varlen(varlen_attn))
    assert why_not == "not prompts' attention in one call per layer: none of its layers can be attended so"
    assert isinstance(forward, TorchForward)


def wider(*args: object, window_size: tuple[int, int], **more: object) -> Tensor:
    """A token sees one more than it may."""
    return varlen_attn(*args, window_size=(window_size[0] + 1, 0), **more)  # type: ignore[arg-type]


def shifted(query: Tensor, key: Tensor, *args: object, **more: object) -> Tensor:
    """Keys are read from the row before."""
    return varlen_attn(query, key.roll(1, 0), *args, **more)  # type: ignore[arg-type]


def raising(*args: object, **more: object) -> Tensor:
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize(("broken", "why"), [(wider, "differs"), (shifted, "differs"), (raising, "no kernel image")])
def test_a_kernel_that_is_wrong_is_not_taken(broken: object, why: str) -> None:
    family = "mistral_window" if broken is wider else "llama"
    forward, why_not = packed_forward(family, Varlen(broken))  # type: ignore[arg-type]
    assert why in why_not
    assert isinstance(forward, TorchForward)
    spans = [Span(0, 0, 5)]
    logits, _ = forward.fill(whole(forward), spans, range(3, 8))
    assert bool(logits.isfinite().all())


def whole(forward: Forward) -> Rectangle:
    return Rectangle(forward.geometry.shapes, capacity=2, columns=COLUMNS, dtype=torch.float32, device=CPU)


def test_torchs_own_is_not_for_the_cpu() -> None:
    with pytest.raises(LoadError, match="half precision on CUDA"):
        of_torch(CPU, torch.bfloat16)
    with pytest.raises(LoadError, match="half precision on CUDA"):
        of_torch(torch.device("cuda"), torch.float32)


def test_torchs_own_is_called_as_it_is_declared() -> None:
    """On the meta device, where the real operator has a stand-in of its own: shapes, and no argument unknown."""
    varlen = of_torch(torch.device("cuda"), torch.bfloat16)
    meta = torch.device("meta")
    spans = [Span(0, 0, 6), Span(3, 3, 1)]
    rectangle = rectangle_of(2, 8, torch.bfloat16, meta)
    q = torch.empty(1, 8, 7, 8, dtype=torch.bfloat16, device=meta)
    shape = Packed(spans, rectangle, torch.empty(7), torch.empty(7), 0, varlen=varlen)
    out = shape.attend(q, rectangle.keys[0], rectangle.values[0], None, Visibility(window=3))
    assert (out.shape, out.device, varlen.calls) == ((1, 7, 8, 8), meta, 1)


def test_an_older_torch_whose_own_knows_no_windows_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packed, "_varlen_attn", lambda: lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: query
    )
    with pytest.raises(LoadError, match="none that knows windows"):
        of_torch(torch.device("cuda"), torch.float16)
    # 2.11's: no word of grouped queries.
    monkeypatch.setattr(packed, "_varlen_attn", lambda: varlen_attn)
    function = of_torch(torch.device("cuda"), torch.float16).function
    assert isinstance(function, partial) and not function.keywords
    assert "enable_gqa" not in inspect.signature(varlen_attn).parameters


@pytest.mark.parametrize("policy", [Baton, Orca])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_shaken_batch_gives_what_each_query_gives_alone(family: str, policy: type[Policy]) -> None:
    """Without steps of constant shape, so that rows that decode are in the same flat forward as prompts."""
    queries = some_queries(14, random.Random(3))
    model = model_of(family)
    expected = {query.id: alone(model, query)[0] for query in queries}
    dice, varlen = random.Random(1), Varlen(varlen_attn)
    batch = random_batch(model, Shaken(policy(), dice), native=False, varlen=varlen)
    batch.run(queries, dice)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert varlen.calls > 100


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("heads", "group", "dim"), [(8, 4, 128), (8, 2, 128), (2, 1, 64), (1, 8, 256)])
@pytest.mark.parametrize("window", [0, 1, 100])
@pytest.mark.parametrize(
    "lengths",
    [((0, 300), (0, 1), (0, 77)), ((250, 130), (600, 1), (0, 513)), ((3, 1), (700, 1), (64, 1))],
    ids=["prompts", "chunks", "single tokens"],
)
def test_torchs_own_gives_what_float64_gives(
    dtype: torch.dtype, heads: int, group: int, dim: int, window: int, lengths: tuple[tuple[int, int], ...]
) -> None:
    device = torch.device("cuda")
    spans = [Span(row, start, count) for row, (start, count) in zip((0, 2, 3), lengths, strict=True)]
    rectangle = rectangle_of(heads, dim, dtype, device, columns=800)
    filled(rectangle, spans, seed=1)
    q = torch.randn(1, sum(span.count for span in spans), heads * group, dim, device=device, dtype=dtype)
    shape = packed.packed(spans, rectangle, of_torch(device, dtype))
    out = shape.attend(q.transpose(1, 2), rectangle.keys[0], rectangle.values[0], None, Visibility(window=window))
    on_host = [some.cpu() for some in (q[0], one_behind_the_other(rectangle.keys[0]))]
    values = one_behind_the_other(rectangle.values[0]).cpu()
    pitch = rectangle.keys[0].stride(0) // rectangle.keys[0].stride(1)
    numbers = [torch.tensor(some, dtype=torch.int32) for some in bounds(spans, pitch)]
    attend: Any = varlen_attn
    expected = attend(on_host[0].double(), on_host[1], values, *numbers, 1000, 1000, window_size=(window - 1, 0))
    torch.testing.assert_close(out[0].cpu().double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe"])
def test_first_lights_families_take_it_in_bfloat16(family: str) -> None:
    """The self-check holds it against the model alone, and each call against attention request by request."""
    forward = choose(copy.deepcopy(model_of(family)).to("cuda", torch.bfloat16)).forward  # type: ignore[arg-type]
    assert "prompts' attention in one call per layer" in forward.parts()
