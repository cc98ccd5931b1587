"""Which way is exact is asked in float32, and of texts beyond each length that a config names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from baton.core.errors import LoadError
from baton.loader import structure as structure_module
from baton.loader.choose import choose
from baton.loader.lengths import lengths_of
from baton.loader.selfcheck import TOLERANCE, check_texts, stock_logits, tolerance_of
from baton.loader.structure import structure
from baton.loader.upcast import can_be_lifted, kept_to, layers_of_all_kinds, lifted
from baton.model.execution import AttentionBackend
from baton.native.forward import NativeForward
from families import Family, bare_model, model_from, model_of

HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_whole_prompts_are_wanted_in_every_number_format(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = bare_model(Family(kind, kind, {"state_size": 16}))
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "A_log" not in name:
            torch.nn.init.normal_(weight, std=0.5 if "embed" in name else 0.18)
    assert choose(model.to(dtype), native=False).forward.whole_prompts  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_a_model_that_sees_what_comes_is_refused_in_every_number_format(dtype: torch.dtype) -> None:
    with pytest.raises(LoadError):
        choose(bare_model(Family("bert", "bert")).to(dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    "name", ["llama", "gemma3", "opt", "deepseek_v3", "mamba2", "jamba", "bloom", "llama4_temperature"]
)
def test_a_way_does_not_depend_on_the_number_format(name: str, dtype: torch.dtype) -> None:
    exact, rounded = choose(model_of(name)).forward, choose(model_of(name).to(dtype)).forward  # type: ignore[arg-type]
    # Native steps may cut any prompt.
    whole = exact.whole_prompts or (name == "jamba" and not isinstance(rounded, NativeForward))
    assert (exact.backend, whole) == (rounded.backend, rounded.whole_prompts)
    assert isinstance(rounded, NativeForward) == isinstance(exact, NativeForward)


def test_a_model_without_attention_needs_no_number_of_heads() -> None:
    """Families under test are given one; Mamba 2's own config has none, and names a length."""
    sizes = {"hidden_size": 64, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 64}
    config = AutoConfig.for_model("mamba2", num_hidden_layers=1, vocab_size=160, **sizes)
    assert not hasattr(config, "num_attention_heads")
    assert choose(AutoModelForCausalLM.from_config(config).eval()).forward.geometry.shapes[0].states


def doge(keep: int) -> PreTrainedModel:
    model = bare_model(Family("doge", "doge", {"keep_window_size": keep}))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model


def test_what_begins_beyond_a_length_of_the_config_is_seen() -> None:
    """Of equals, a top-k over columns takes others if there are more columns."""
    assert choose(doge(keep=40)).forward.backend is AttentionBackend.PER_ROW
    assert choose(doge(keep=2048)).forward.backend is AttentionBackend.MASKED


def test_lengths_that_cost_too_much_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.loader.structure.MOST_OPERATIONS", 1)
    choice = choose(doge(keep=40))
    assert choice.unchecked == ("keep_window_size 40",)
    assert "not checked beyond 28 tokens: keep_window_size 40 (baton check does)" in choice.description


@pytest.mark.parametrize(
    ("kind", "more", "lengths"),
    [
        ("doge", {"max_position_embeddings": 8192}, {"keep_window_size": 2048}),
        ("gemma3_text", {}, {"sliding_window": 4096}),
        ("mistral", {}, {"sliding_window": 4096}),
        ("llama4_text", {"floor_scale": 4096}, {"attention_chunk_size": 8192, "floor_scale": 4096}),
        ("mamba2", {}, {"chunk_size": 256}),
        ("gpt_neo", {}, {"window_size": 256}),
        ("deepseek_v3", {}, {}),
        ("llama", {}, {}),
        ("qwen3_moe", {}, {}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2222}},
            {"original_max_position_embeddings": 2222},
        ),
    ],
)
def test_the_lengths_of_a_config_are_found(kind: str, more: dict[str, Any], lengths: dict[str, int]) -> None:
    config = AutoConfig.for_model(kind, **more)
    lengths_found = {name: n for n, name in lengths_of(config, above=28, below=131072).items()}
    lengths_found.pop("max_position_embeddings", None)
    assert lengths_found == lengths


class Spy:
    """Calls another function, and keeps the number format of the model that it was called with."""

    def __init__(self, other: Any) -> None:
        self._other = other
        self.dtypes: list[torch.dtype] = []

    def __call__(self, model: Any, *args: Any) -> Any:
        self.dtypes.append(model.dtype)
        return self._other(model, *args)


def test_a_model_is_as_before_once_it_was_lifted() -> None:
    model = model_of("gemma3").to(torch.bfloat16)  # type: ignore[arg-type]
    texts = check_texts(model)
    before = stock_logits(model, texts)
    assert layers_of_all_kinds(model) == (6, 6)
    assert layers_of_all_kinds(model_of("llama")) == (2, 3)
    assert can_be_lifted(model, 2)
    with lifted(model, 2):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert len(model.model.layers) == 2
        assert not torch.equal(stock_logits(model, texts)[0], before[0])
    with pytest.raises(ZeroDivisionError), lifted(model, 2):
        _ = 1 / 0
    with kept_to(model, 1):
        assert len(model.model.layers) == 1
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(stock_logits(model, texts), before, strict=True))


@pytest.mark.parametrize("tied", [False, True])
def test_a_large_vocabulary_is_lifted_in_part(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_from(Family("other", "llama", {"tie_word_embeddings": tied, "pad_token_id": 150})).to(torch.bfloat16)  # type: ignore[arg-type]
    whole, ways = check_texts(model), structure(model, 0)
    before = stock_logits(model, whole)
    monkeypatch.setattr("baton.loader.upcast.MOST_TOKENS", 40)
    texts = check_texts(model)
    assert 40 > max(int(text.max()) for text in texts) > 20
    with lifted(model, 3):
        assert {len(p) for p in (model.model.embed_tokens.weight, model.lm_head.weight)} == {40}
        assert [one.shape[1] for one in stock_logits(model, texts)] == [40, 40]
    assert model.model.embed_tokens.padding_idx == 150
    assert all(torch.equal(a, b) for a, b in zip(stock_logits(model, whole), before, strict=True))
    prompts = [len(text) - 4 for text in texts]
    assert tolerance_of(model, texts, prompts, stock_logits(model, texts)) is not None
    monkeypatch.setattr("baton.loader.structure._first_exact", first_exact := Spy(structure_module._first_exact))
    assert structure(model, 0).backends == ways.backends
    assert first_exact.dtypes == [torch.float32], "it was not lifted"


def test_noise_is_measured_and_a_few_times_of_it_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    texts = check_texts(model)
    expected = stock_logits(model, texts)
    prompts = [len(text) - 4 for text in texts]
    whole = tolerance_of(model, texts, prompts, expected)
    assert whole is not None
    assert 2 * torch.finfo(torch.bfloat16).eps <= whole < TOLERANCE[torch.bfloat16]
    monkeypatch.setattr("baton.loader.selfcheck.can_be_lifted", lambda model, layers: layers < 3)
    some = tolerance_of(model, texts, prompts, expected)
    assert some is not None
    assert 0.3 * whole < some < 3 * whole


def test_what_cannot_be_lifted_is_compared_in_its_own_number_format(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama").to(torch.bfloat16)  # type: ignore[arg-type]
    monkeypatch.setattr("baton.loader.upcast.MOST_LIFTED_BYTES", 0)
    assert not can_be_lifted(model, 3)
    monkeypatch.setattr("baton.loader.structure.can_be_lifted", lambda model, layers: False)
    assert structure(model, 0).backends[0] == (AttentionBackend.RAGGED, False)
