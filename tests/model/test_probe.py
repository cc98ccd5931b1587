"""A model's geometry is found by running it once, and a model that cannot be hooked is refused with its reason."""

from __future__ import annotations

from dataclasses import replace
from inspect import Parameter, Signature
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.kv.rectangle import LayerShape
from baton.loader.choose import choose
from baton.loader.selfcheck import check_texts, self_check, stock_logits
from baton.model.attention import Decode, Visibility
from baton.model.execution import AttentionBackend
from baton.model.forward import TorchForward
from baton.model.probe import probe
from families import WINDOW, Family, bare_model, model_of

ALL = Visibility()
NEAR = Visibility(window=WINDOW)


@pytest.mark.parametrize(
    ("name", "visibilities"),
    [
        ("llama", [ALL] * 3),
        ("mistral_window", [NEAR] * 3),
        ("gemma3", [NEAR] * 5 + [ALL]),
        ("qwen2_window", [ALL] + [NEAR] * 2),
        ("llama4", [Visibility(chunk=WINDOW)] * 3 + [ALL]),
        (
            "gemma2",
            [
                Visibility(window=WINDOW, softcap=50.0),
                Visibility(softcap=50.0),
                Visibility(window=WINDOW, softcap=50.0),
            ],
        ),
    ],
)
def test_which_columns_each_layers_tokens_see_is_found(name: str, visibilities: list[Visibility]) -> None:
    seen = probe(model_of(name)).visibilities
    assert [seen[layer] for layer in range(len(visibilities))] == visibilities
    assert len(seen) == len(visibilities)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("llama", LayerShape(2, 16, 16)), ("gpt2", LayerShape(4, 16, 16)), ("gpt_bigcode", LayerShape(1, 16, 16))],
)
def test_what_each_layer_keeps_per_token_is_found(name: str, shape: LayerShape) -> None:
    assert probe(model_of(name)).shapes == (shape,) * 3


@pytest.mark.parametrize(
    ("name", "way", "whole"),
    [
        ("llama", AttentionBackend.RAGGED, False),
        ("deepseek_v3", AttentionBackend.MLA, False),
        ("bloom", AttentionBackend.MASKED, False),
        ("falcon_alibi", AttentionBackend.MASKED, False),
        ("gpt_neo", AttentionBackend.PER_ROW, False),
        ("mamba2", AttentionBackend.RAGGED, False),
        ("mamba", AttentionBackend.RAGGED, True),
        ("jamba", AttentionBackend.RAGGED, True),
    ],
)
def test_each_kind_is_run_in_the_first_way_that_is_exact(name: str, way: AttentionBackend, whole: bool) -> None:
    forward = choose(model_of(name), native=False).forward
    assert (forward.backend, forward.whole_prompts) == (way, whole)


def test_windows_are_rings_latents_are_small_and_recurrent_layers_keep_states() -> None:
    assert [shape.window for shape in probe(model_of("gemma3")).shapes] == [WINDOW] * 5 + [0]
    assert probe(model_of("deepseek_v3")).shapes[0] == LayerShape(1, 16, 8)
    kinds = [(bool(shape.heads), bool(shape.states)) for shape in probe(model_of("jamba")).shapes]
    assert kinds == [(False, True), (True, False)] * 2
    assert all(shape.heads and shape.states for shape in probe(model_of("falcon_h1")).shapes)
    shared = probe(model_of("gemma3n")).shapes[-2:]
    assert shared == (LayerShape(), LayerShape()), "layers that use another's keys and values keep none"


def test_a_length_of_the_config_beyond_what_was_checked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family("mistral", "mistral", {"sliding_window": 100})
    checked = choose(bare_model(family))
    assert (checked.checked_tokens > 100, "not checked" in checked.description) == (True, False)
    monkeypatch.setattr("baton.loader.selfcheck.MOST_OPERATIONS", 1)
    monkeypatch.setattr("baton.loader.structure.MOST_OPERATIONS", 1)
    told = choose(bare_model(family)).description
    assert "not checked beyond 28 tokens: sliding_window 100 (baton check does)" in told


def test_layers_may_keep_different_shapes() -> None:
    """Gemma 4's layers without a window have heads of another size."""
    shapes = probe(model_of("gemma4")).shapes
    assert len(shapes) == 6
    assert shapes[0] == LayerShape(2, 16, 16, window=WINDOW)
    assert shapes[5].key_dim > 16


def test_a_model_without_causal_attention_is_refused() -> None:
    model = bare_model(Family("gemma3", "gemma3_text", {"head_dim": 16, "use_bidirectional_attention": True}))
    with pytest.raises(LoadError):
        choose(model)


def test_a_model_whose_own_code_fails_with_our_cache_is_refused_in_one_line() -> None:
    model = model_of("llama")

    def fails(*args: Any, **kwargs: Any) -> None:
        raise IndexError("something of its own\nin many lines")

    model.model.layers[1].forward = fails
    with pytest.raises(LoadError) as caught:
        choose(model)
    assert "IndexError: something of its own" in caught.value.message
    assert "\n" not in caught.value.message


def test_the_self_check_passes_and_gives_the_model_our_attention() -> None:
    model = model_of("mistral_window")
    texts = check_texts(model)
    assert max(len(text) for text in texts) > WINDOW
    expected = stock_logits(model, texts)
    forward = choose(model).forward
    assert model.config._attn_implementation.startswith("baton_")
    assert forward.geometry.visibilities[0] == NEAR
    assert self_check(model, forward, texts, expected) < 1e-5


@pytest.mark.parametrize("visibility", [ALL, Visibility(window=WINDOW - 1), Visibility(window=WINDOW + 1)])
def test_the_self_check_refuses_a_window_that_is_wrong(visibility: Visibility) -> None:
    model = model_of("mistral_window")
    texts = check_texts(model)
    expected = stock_logits(model, texts)
    geometry = probe(model)
    geometry.visibilities[1] = visibility
    shapes = tuple(replace(shape, window=0) for shape in geometry.shapes)
    forward = TorchForward(model, replace(geometry, shapes=shapes))
    with pytest.raises(LoadError, match="differ from those of the model alone"):
        self_check(model, forward, texts, expected)


def test_the_self_check_refuses_a_decode_step_that_sees_one_column_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Decode._mask

    def fewer(self: Decode, *args: Any) -> torch.Tensor:
        seen = right(self, *args).clone()
        seen[..., 0] = False
        return seen

    model = model_of("llama")
    texts = check_texts(model)
    expected = stock_logits(model, texts)
    forward = choose(model, native=False).forward
    monkeypatch.setattr(Decode, "_mask", fewer)
    with pytest.raises(LoadError, match="differ from those of the model alone"):
        self_check(model, forward, texts, expected)


def test_two_engines_in_a_process_have_each_their_own_steps() -> None:
    models = [model_of("llama"), model_of("gpt2")]
    texts = [check_texts(model) for model in models]
    expected = [stock_logits(model, some) for model, some in zip(models, texts, strict=True)]
    forwards = [choose(model).forward for model in models]
    for model, forward, some, right in zip(models, forwards, texts, expected, strict=True):
        assert self_check(model, forward, some, right) < 1e-5


def renamed(name: str, *, swallowed: bool = False) -> PreTrainedModel:
    """A stock model whose cache is handed in under another name, or swallowed."""
    model = model_of("llama")
    stock = model.forward

    def forward(**given: Any) -> Any:
        cache = given.pop(name)
        return stock(**given) if swallowed else stock(past_key_values=cache, **given)

    taken = ("input_ids", "position_ids", "use_cache", name)
    forward.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(one, Parameter.KEYWORD_ONLY) for one in taken]
    )
    model.forward = forward
    return model


@pytest.mark.parametrize("name", ["past_key_values", "cache_params", "cache"])
def test_the_cache_is_handed_in_under_the_name_that_the_models_forward_has(name: str) -> None:
    geometry = probe(renamed(name))
    assert all(shape.heads for shape in geometry.shapes)


def test_a_cache_that_is_swallowed_is_noticed() -> None:
    with pytest.raises(LoadError, match="takes a cache and keeps nothing in it"):
        choose(renamed("cache", swallowed=True))
