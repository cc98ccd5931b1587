"""The longest text: what the config says in any of its spellings, stretched as its rope does, or a stated default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from baton import LLM, SamplingParams
from baton.core.config import Config
from baton.core.errors import SettingError
from baton.core.settings import load_settings
from baton.loader.context import DEFAULT_TOKENS, context
from baton.loader.load import load
from checkpoints import config_of
from families import Family, bare_model
from random_batch import alone, query_of
from tiny_checkpoint import VOCABULARY, save_tiny, save_tokenizer

BOUND = 64
YARN = {"factor": 4.0, "original_max_position_embeddings": BOUND}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def saved(folder: Path, model_type: str = "llama", **given: Any) -> Path:
    """A config alone, as a model's card would have it written."""
    folder.mkdir(exist_ok=True)
    plain = {"hidden_size": 64, "num_attention_heads": 4, "vocab_size": VOCABULARY}
    plain |= {"num_heads": 8, "head_dim": 16} if model_type == "mamba2" else {}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, **plain, **given}))
    for name in ("model.safetensors", "tokenizer.json"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("rope", "bound", "tokens"),
    [
        ({}, BOUND, BOUND),
        ({"rope_type": "yarn", **YARN}, BOUND, 256),
        # The card's number: what the checkpoint was saved with is between the original context and the longest.
        ({"rope_type": "yarn", **YARN}, 80, 256),
        ({"rope_type": "yarn", **YARN}, 256, 256),
        ({"rope_type": "yarn", **YARN}, 512, 512),
        ({"rope_type": "yarn", "factor": 4.0}, BOUND, 256),
        ({"rope_type": "linear", "factor": 2.0}, BOUND, 128),
        ({"rope_type": "dynamic", "factor": 1.5}, BOUND, 96),
        ({"rope_type": "dynamic", **YARN}, 256, 256),
        # These say the longer context in max_position_embeddings.
        ({"rope_type": "longrope", **YARN, **FACTORS}, 512, 512),
        ({"rope_type": "llama3", **YARN, **LLAMA3}, 512, 512),
    ],
)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_the_context_is_as_long_as_the_rope_makes_it(
    tmp_path: Path, rope: dict[str, Any], bound: int, tokens: int, spelling: str, name: str
) -> None:
    written = {name if key == "rope_type" else key: value for key, value in rope.items()}
    more: dict[str, Any] = {spelling: written} if rope else {}
    folder = saved(tmp_path, max_position_embeddings=bound, rope_theta=10000.0, **more)
    assert context(config_of(folder)).tokens == tokens


@pytest.mark.parametrize(
    ("full", "tokens"),
    [
        ({"rope_type": "yarn", **YARN}, 256),
        ({"rope_type": "linear", **YARN}, 256),
        # Gemma 3 says the longer context in max_position_embeddings.
        ({"rope_type": "linear", "factor": 4.0}, BOUND),
    ],
)
def test_rope_by_layer_type_counts_where_it_says_the_original_context(
    tmp_path: Path, full: dict[str, Any], tokens: int
) -> None:
    rope = {"full_attention": {"rope_theta": 1e4, **full}, "sliding_attention": {"rope_type": "default"}}
    folder = saved(tmp_path, "gemma3_text", max_position_embeddings=BOUND, rope_parameters=rope)
    assert context(config_of(folder)).tokens == tokens


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("llama", "max_position_embeddings"), ("gpt2", "n_positions"), ("mpt", "max_seq_len"), ("bloom", "seq_length")],
)
def test_each_name_that_families_have_for_it_is_known_and_told(tmp_path: Path, model_type: str, name: str) -> None:
    limits = context(config_of(saved(tmp_path, model_type, **{name: 96})))
    assert (limits.tokens, limits.bounded) == (96, True)
    assert "96" in str(limits.tokens) and "in its config" in limits.source
    assert limits.asked(500) == 96


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "falcon_mamba", "bloom"])
def test_without_a_number_there_is_a_default_that_may_be_raised(tmp_path: Path, model_type: str) -> None:
    limits = context(config_of(saved(tmp_path, model_type)))
    assert (limits.tokens, limits.bounded) == (DEFAULT_TOKENS, False)
    assert "--max-model-len" in limits.source
    assert (limits.asked(0), limits.asked(100), limits.asked(9000)) == (DEFAULT_TOKENS, DEFAULT_TOKENS, 9000)


def test_a_longer_text_than_the_config_names_gives_what_it_gives_alone(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written |= {"max_position_embeddings": BOUND, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, **YARN}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    prompt = [3 + 7 * i % (VOCABULARY - 3) for i in range(3 * BOUND)]
    expected = alone(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), query_of("q", prompt, 12))[0]
    with LLM(str(tmp_path), device="cpu", threads=1) as llm:
        assert llm.client.settings.max_model_len == 4 * BOUND
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        assert list(llm.generate({"prompt_token_ids": prompt}, params)[0].outputs[0].token_ids) == expected
    with pytest.raises(SettingError, match=r"context of 256 tokens \(rope yarn: 4 times 64 tokens\): lower it, or put"):
        LLM(str(tmp_path), device="cpu", threads=1, max_model_len=257)


@pytest.mark.parametrize("model_type", ["mamba2", "bloom"])
def test_a_context_without_a_number_is_as_long_as_it_is_asked_to_be(tmp_path: Path, model_type: str) -> None:
    sizes = {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "n_head": 4, "n_layer": 1}
    model = bare_model(Family(model_type, model_type, {"num_hidden_layers": 1, **sizes}))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written.pop("max_position_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(written))
    save_tokenizer(tmp_path)
    loaded = load(load_settings(Config(device="cpu", max_model_len="5000"), str(tmp_path), "tiny"))
    assert loaded.context_tokens == 5000
    assert load(load_settings(Config(device="cpu"), str(tmp_path), "tiny")).context_tokens == DEFAULT_TOKENS
    with LLM(str(tmp_path), device="cpu", threads=1, max_model_len=5000) as llm:
        assert llm.client.settings.max_model_len == 5000
