"""What a model asks its cache is answered for each row, whatever the rectangle's size, or the way is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.loader.cache_length import length_matters
from baton.loader.choose import choose
from baton.loader.selfcheck import check_texts, self_check, stock_logits, whatever_the_size
from baton.model.execution import AttentionBackend
from families import Family, bare_model, model_of

WIDE = 131072
LAYER = 1


def temperature(positions: Tensor, floor: int) -> Tensor:
    return torch.log1p(torch.floor((positions.float() + 1) / floor)) + 1


def by_column(cache: Any, hidden: Tensor, floor: int) -> Tensor:
    """As one that takes all rows to be equally long, `[1, T, 1]`."""
    positions = torch.arange(hidden.shape[1]) + cache.get_seq_length(LAYER)
    return temperature(positions, floor).view(1, -1, 1)


def by_query(cache: Any, hidden: Tensor, floor: int) -> Tensor:
    positions = torch.arange(hidden.shape[1]) + cache.get_query_offset(LAYER)
    return temperature(positions, floor).view(1, -1, 1)


def by_width(cache: Any, hidden: Tensor, floor: int) -> Tensor:
    before = cache.get_mask_sizes(hidden.shape[1], LAYER)[0] - hidden.shape[1]
    return temperature(torch.arange(hidden.shape[1]) + before, floor).view(1, -1, 1)


def by_longest(cache: Any, hidden: Tensor, floor: int) -> Tensor:
    return temperature(torch.tensor(max(0, cache.get_max_length()) + floor), floor)


def whether_begun(cache: Any, hidden: Tensor, floor: int) -> Tensor:
    return torch.tensor(2.0 if cache.get_seq_length(LAYER) > 0 else 1.0)


def asking(name: str, ask: Callable[[Any, Tensor, int], Tensor], floor: int) -> PreTrainedModel:
    """A model of which one layer scales what it is given by what it hears from the cache."""
    model = model_of(name)
    layers = model.model.layers if hasattr(model, "model") else model.transformer.h
    stock = layers[LAYER].forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
        return stock(hidden * ask(cache, hidden, floor).to(hidden), *args, **kwargs)

    layers[LAYER].forward = forward
    return model


@pytest.mark.parametrize("floor", [5, 8192])
@pytest.mark.parametrize(
    ("name", "ask", "way"),
    [
        ("llama", by_column, AttentionBackend.FLAT),
        ("gemma3", by_column, AttentionBackend.FLAT),
        ("llama", by_query, AttentionBackend.FLAT),
        ("llama", by_longest, AttentionBackend.RAGGED),
        ("llama", by_width, AttentionBackend.PER_ROW),
        ("falcon_alibi", by_column, AttentionBackend.PER_ROW),
        ("bloom", by_query, AttentionBackend.PER_ROW),
    ],
)
def test_each_row_has_its_own_answer(name: str, ask: Callable[..., Tensor], way: AttentionBackend, floor: int) -> None:
    model = asking(name, ask, floor)
    texts = check_texts(model)
    expected = stock_logits(model, texts)
    forward = choose(model, columns=WIDE).forward
    assert forward.backend is way
    for columns in (64, floor, WIDE):
        assert self_check(model, forward, texts, expected, columns=columns) < 1e-5


@pytest.mark.parametrize("floor", [3, 8192])
@pytest.mark.parametrize("columns", [512, 8191, 8192, WIDE])
def test_llama4_is_exact_in_a_rectangle_of_any_size(floor: int, columns: int) -> None:
    experts = {"num_hidden_layers": 4, "head_dim": 16, "num_local_experts": 2, "attention_chunk_size": 12}
    model = bare_model(Family("llama4", "llama4_text", {**experts, "floor_scale": floor}))
    texts = check_texts(model)
    expected = stock_logits(model, texts)
    forward = choose(model, columns=columns).forward
    assert forward.backend is AttentionBackend.FLAT
    assert self_check(model, forward, texts, expected, columns=columns) < 1e-5


@pytest.mark.parametrize(
    ("name", "ask", "matters"),
    [
        ("llama", None, False),
        ("gemma3", None, False),
        ("mpt", None, False),
        ("bloom", None, False),
        ("gptj", None, False),
        ("llama4", None, False),
        ("llama4_temperature", None, True),
        ("llama", by_column, True),
        ("llama", by_query, True),
        ("llama", by_width, True),
        ("llama", whether_begun, True),
        ("llama", by_longest, False),
    ],
)
def test_whether_a_models_own_code_uses_the_length_is_found(name: str, ask: Any, matters: bool) -> None:
    assert length_matters(asking(name, ask, 8192) if ask else model_of(name)) == matters


def test_what_depends_on_the_rectangles_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = asking("llama", by_longest, 8192)
    texts = check_texts(model)
    forward = choose(model, native=False).forward
    whatever_the_size(model, forward, texts, 8192)
    columns = property(lambda layer: layer._current.step.rectangle.columns, lambda layer, value: None)
    monkeypatch.setattr("baton.model.cache.RectangleLayer._longest", columns, raising=False)
    whatever_the_size(model, forward, texts, 8192)
    with pytest.raises(LoadError, match="how many columns"):
        whatever_the_size(model, forward, texts, 8192 - 64)


def test_a_model_that_asks_whether_a_prompt_has_begun_is_refused() -> None:
    with pytest.raises(LoadError, match="ambiguous"):
        choose(asking("llama", whether_begun, 5))


def test_a_layer_that_has_been_given_its_tokens_holds_them() -> None:
    """Stock counts them from then on."""

    def after(cache: Any, hidden: Tensor, floor: int) -> Tensor:
        positions = torch.arange(hidden.shape[1]) + cache.get_seq_length(LAYER - 1) - hidden.shape[1]
        return temperature(positions, floor).view(1, -1, 1)

    model = asking("llama", after, 5)
    texts = check_texts(model)
    expected = stock_logits(model, texts)
    forward = choose(model).forward
    assert forward.backend is AttentionBackend.FLAT
    assert self_check(model, forward, texts, expected) < 1e-5
