"""Weights that are missing, renamed, left over or of another model are refused by name: nothing is served at random."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from baton import LLM
from baton.core.errors import InvalidValue, LoadError
from baton.loader.survey import survey
from checkpoints import WEIGHTS, Weights, edited, loaded_of, refusal
from tiny_checkpoint import VOCABULARY, save_tiny, save_tokenizer

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def without(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if name not in names}


def behind(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def beside(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: torch.zeros(*shape, dtype=dtype)}


def in_dtype(part: str, dtype: torch.dtype) -> Callable[[Weights], Weights]:
    return lambda weights: {name: t.to(dtype) if part in name else t for name, t in weights.items()}


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (without(HEAD), {}, "lacks 1 tensor of LlamaForCausalLM, lm_head.weight: a model without a head"),
        (without("model.norm.weight"), {}, "lacks 1 tensor of .*, model.norm.weight: download the model again"),
        (without(EMBEDDING, HEAD), {"tie_word_embeddings": True}, "lacks . tensors?.*embed_tokens"),
        (None, {"num_hidden_layers": 3}, "lacks 9 tensors .*model.layers.2.*and 6 more"),
        (None, {"num_hidden_layers": 1}, "9 tensors have no place in LlamaForCausalLM, model.layers.1.*and 6 more"),
        (behind("_orig_mod."), {}, "'_orig_mod.', left by torch.compile"),
        (behind("module."), {}, "'module.', left by a wrapper for training in parallel"),
        (behind("base_model.model."), {}, "begin with 'base_model.model.': save the model itself"),
        (behind("policy."), {}, "begin with 'policy.': save the model itself"),
        (
            None,
            {"vocab_size": 320},
            r"shapes of 2 tensors .*lm_head.weight is \[259, 32\] and should be \[320",
        ),
        (None, {"intermediate_size": 64}, r"shapes of 6 tensors .*down_proj.weight is \[32, 48\] .* and 4 more"),
        (beside("model.layers.0.self_attn.q_proj.bias", 32), {}, "no place in .*q_proj.bias"),
        (beside("model.layers.0.mlp.up_proj.weight_scale", 1), {}, "no place in .*weight_scale"),
        (beside("score.weight", 1, 32), {"architectures": None}, "no place in .*score.weight"),
        (in_dtype("mlp", torch.int8), {}, "down_proj.weight.* hold I8 numbers, and config.json has no quantization"),
        (in_dtype("q_proj", torch.float8_e4m3fn), {}, "hold F8_E4M3 numbers"),
        (
            in_dtype("norm", torch.float32),
            {"architectures": ["LlamaForSequenceClassification"]},
            "holds the weights of",
        ),
    ],
)
def test_weights_that_are_not_the_models_own_are_refused_by_name(
    change: Callable[[Weights], Weights] | None, config: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=words):
        loaded_of(edited(folder, tmp_path / "copy", change, **config))


@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        (without(HEAD), {"tie_word_embeddings": True}, None),
        (lambda weights: {**weights, HEAD: weights[EMBEDDING].clone()}, {"tie_word_embeddings": True}, None),
        (None, {"tie_word_embeddings": True}, "both are there and differ"),
        (lambda weights: {name.removeprefix("model."): tensor for name, tensor in weights.items()}, {}, None),
        (None, {"architectures": None}, None),
        (None, {"architectures": ["LLaMAForCausalLM"]}, None),
        (None, {"architectures": ["LlamaModel"]}, None),
        (beside("model.layers.0.self_attn.rotary_emb.inv_freq", 8), {}, None),
        (beside("model.layers.0.self_attn.bias", 1, 1, 4, 4), {}, None),
        (beside("v_head.summary.weight", 1, 32), {}, "1 tensors are left over and not used: v_head.summary.weight"),
        (beside("model.layers.2.mlp.up_proj.weight", 48, 32), {"num_nextn_predict_layers": 1}, "left over"),
        (beside("mtp.layers.0.mlp.up_proj.weight", 48, 32), {}, "left over"),
    ],
)
def test_weights_that_are_whole_are_served_and_what_is_left_over_is_told(
    change: Callable[[Weights], Weights] | None,
    config: dict[str, Any],
    told: str | None,
    folder: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "baton.model"):
        copy = edited(folder, tmp_path / "copy", change, **config)
        loaded_weights = loaded_of(copy, compile=False).model.state_dict()
    stored = {name if name in loaded_weights else f"model.{name}": t for name, t in load_file(copy / WEIGHTS).items()}
    assert all(tensor.equal(stored[name]) for name, tensor in loaded_weights.items() if name in stored)
    assert set(loaded_weights) - set(stored) <= {HEAD}
    assert caplog.text == "" if told is None else told in caplog.text


@pytest.mark.parametrize("said", ["LlamaForCausalLM", [1, None], {"a": 1}, []])
def test_a_class_that_is_said_oddly_breaks_nothing(said: object, folder: Path, tmp_path: Path) -> None:
    # Some versions of transformers take only a list of names.
    with contextlib.suppress(LoadError):
        loaded_of(edited(folder, tmp_path / "copy", architectures=said), compile=False)


def test_weights_that_are_not_finite_are_named(folder: Path, tmp_path: Path) -> None:
    def spoil(weights: Weights) -> Weights:
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
        return weights

    assert "NaN or infinite, model.layers.1.mlp.up_proj.weight" in refusal(edited(folder, tmp_path / "copy", spoil))


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 96,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
PAIR: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
IMAGES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LLAMA4_IMAGES = {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, "n_positions": 96}


def save(kind: str, config: PreTrainedConfig, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = getattr(transformers, kind)(config)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (
            without("model.layers.1.mlp.experts.2.up_proj.weight"),
            {},
            r"layers\.1\.mlp\.experts\.2\.up_proj.* is missing",
        ),
        (
            lambda w: {n: t[:8] if n == "model.layers.1.mlp.experts.2.up_proj.weight" else t for n, t in w.items()},
            {},
            r"experts\.2\.up_proj\.weight is \[8, 32\] and others are \[16, 32\]",
        ),
        (lambda w: {n: t for n, t in w.items() if "experts.3." not in n}, {}, r"is \[3, 32, 16\] and should be \[4,"),
        (None, {"num_experts": 8, "num_local_experts": 8}, "shapes of|lacks"),
    ],
)
def test_experts_that_are_missing_or_misshapen_are_named(
    change: Callable[[Weights], Weights] | None, config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    experts: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "head_dim": 16}
    folder = save("Qwen3MoeForCausalLM", transformers.Qwen3MoeConfig(**{**SMALL, **experts}), tmp_path / "model")
    with pytest.raises(LoadError, match=words):
        loaded_of(edited(folder, tmp_path / "copy", change, **config))


OTHERS: dict[str, tuple[Callable[[], PreTrainedConfig], str]] = {
    "BartForConditionalGeneration": (lambda: transformers.BartConfig(**PAIR), "is an encoder-decoder"),
    "WhisperForConditionalGeneration": (lambda: transformers.WhisperConfig(**PAIR), "is an encoder-decoder"),
    "T5ForConditionalGeneration": (
        lambda: transformers.T5Config(d_model=32, d_ff=48, d_kv=16, num_layers=1, num_heads=2, vocab_size=VOCABULARY),
        "is an encoder-decoder",
    ),
    "Qwen2ForSequenceClassification": (
        lambda: transformers.Qwen2Config(**{**SMALL, "tie_word_embeddings": True, "num_labels": 1}),
        "holds the weights of Qwen2ForSequenceClassification, not of Qwen2ForCausalLM",
    ),
    "Qwen2ForTokenClassification": (lambda: transformers.Qwen2Config(**SMALL), "TokenClassification, not of"),
    "BertForMaskedLM": (
        lambda: transformers.BertConfig(**{n: v for n, v in SMALL.items() if n != "num_key_value_heads"}),
        "holds the weights of BertForMaskedLM",
    ),
    "GPT2DoubleHeadsModel": (lambda: transformers.GPT2Config(**{**GPT2, "num_labels": 1}), "GPT2DoubleHeadsModel"),
    "MistralModel": (lambda: transformers.MistralConfig(**SMALL, head_dim=16), "a model without a head"),
    "CLIPModel": (
        lambda: transformers.CLIPConfig(text_config={**SMALL, "vocab_size": VOCABULARY}, vision_config=IMAGES),
        "takes images or sound beside text|is no causal language model",
    ),
    "LlavaForConditionalGeneration": (
        lambda: transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**SMALL), vision_config=transformers.CLIPVisionConfig(**IMAGES)
        ),
        "llava .*takes images or sound beside text",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_model_is_refused_by_its_name(kind: str, tmp_path: Path) -> None:
    config, words = OTHERS[kind]
    folder = save(kind, config(), tmp_path / "model")
    with pytest.raises(LoadError, match=words):
        loaded_of(folder)


@pytest.mark.parametrize("kind", ["BartForConditionalGeneration", "Qwen2ForSequenceClassification"])
def test_another_kind_is_refused_where_its_config_does_not_name_it(kind: str, tmp_path: Path) -> None:
    folder = edited(save(kind, OTHERS[kind][0](), tmp_path / "model"), tmp_path / "copy", architectures=None)
    with pytest.raises(LoadError, match=r"is an encoder-decoder|no place in Qwen2ForCausalLM, score\.weight"):
        loaded_of(folder)


def test_a_survey_refuses_other_kinds_in_the_same_words(tmp_path: Path) -> None:
    folder = save("T5ForConditionalGeneration", OTHERS["T5ForConditionalGeneration"][0](), tmp_path / "model")
    with pytest.raises(LoadError) as caught:
        survey(str(folder))
    assert caught.value.message.replace(str(folder), "FOLDER") == refusal(folder)


def test_what_the_tokenizer_knows_beyond_the_model_is_told_and_refused(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def shorter(weights: Weights) -> Weights:
        return {n: t[:200] if n in (HEAD, EMBEDDING) else t for n, t in weights.items()}

    with caplog.at_level(logging.WARNING, "baton.model"):
        copy = edited(folder, tmp_path / "copy", shorter, vocab_size=200)
        with LLM(str(copy), device="cpu", threads=1) as llm:
            assert "its tokenizer has 59 tokens beyond the model's 200" in caplog.text
            with pytest.raises(InvalidValue):
                llm.generate({"prompt_token_ids": [5, 200]})


def test_a_bare_model_whose_embedding_is_its_head_is_whole(tmp_path: Path) -> None:
    folder = save("GPT2Model", transformers.GPT2Config(**GPT2), tmp_path / "model")
    loaded_of(folder)


def test_the_text_part_of_a_model_that_takes_images_is_served_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = transformers.Llama4Config(
        text_config={**SMALL, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 48},
        vision_config={**IMAGES, **LLAMA4_IMAGES},
    )
    folder = save("Llama4ForConditionalGeneration", config, tmp_path / "model")
    with caplog.at_level(logging.WARNING, "baton.model"):
        model = loaded_of(folder, compile=False).model
    assert type(model).__name__ == "Llama4ForCausalLM"
    assert "its text part is served, images and sound are not" in caplog.text
    stored = load_file(folder / WEIGHTS)
    of_text = {name.removeprefix("language_model."): t for name, t in stored.items() if "language_model" in name}
    assert model.lm_head.weight.equal(of_text[HEAD])
    assert model.model.norm.weight.equal(of_text["model.norm.weight"])


EVIL = "evil-org/evil-kernel"


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": EVIL},
        {"_attn_implementation": EVIL, "attn_implementation": EVIL},
        {"attn_implementation": {"": EVIL}, "experts_implementation": "sonicmoe"},
        {"_experts_implementation": EVIL, "use_kernels": True, "kernel_config": {"RMSNorm": EVIL}},
        {"fusion_config": {"patch_embeddings": True}},
    ],
)
def test_a_folder_chooses_no_code_of_the_hub(
    config: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = edited(folder, tmp_path / "copy", **config)
    asked: list[str] = []
    hub = "transformers.integrations.hub_kernels.load_and_register_attn_kernel"
    monkeypatch.setattr(hub, lambda name, *rest, **more: asked.append(name))
    model = loaded_of(copy, compile=False).model
    assert survey(str(copy)).refused is None
    assert not asked
    assert EVIL not in str(model.config.to_dict().get("_attn_implementation"))
    assert getattr(model.config, "fusion_config", None) is None


def test_parts_of_a_model_choose_no_code_of_the_hub_either(tmp_path: Path) -> None:
    config = transformers.Gemma3Config(
        text_config={**SMALL, "head_dim": 16, "sliding_window": 16},
        vision_config=IMAGES,
        mm_tokens_per_image=4,
    )
    folder = save("Gemma3ForConditionalGeneration", config, tmp_path / "model")
    parts = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        parts[part] |= {"_attn_implementation": EVIL, "attn_implementation": EVIL}
    model = loaded_of(edited(folder, tmp_path / "copy", **parts)).model
    assert EVIL not in (model.config.text_config._attn_implementation, model.config.vision_config._attn_implementation)
