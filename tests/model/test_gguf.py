"""GGUF files: blocks stay as they are, and results are those of exactly the numbers that they mean."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from baton.core.errors import LoadError
from baton.core.query import SamplingParams
from baton.llm import LLM
from baton.loader.gguf_blocks import KINDS, Gguf, Kind
from baton.loader.gguf_file import folder_of
from baton.loader.gguf_rotation import rotation
from baton.loader.gguf_tokenizer import end_tokens
from baton.loader.hub import check_found
from baton.loader.selfcheck import check_texts, largest, our_logits, stock_logits
from baton.model.packed_layers import packed_layers
from baton.native import library as native
from checkpoints import loaded_of

pytest.importorskip("gguf")

import gguf
from gguf import GGMLQuantizationType as Type

import gguf_files
from gguf_files import LLAMA3, YARN, write

OF_EXPERTS = {"": Type.Q8_0, "ffn_gate": Type.MXFP4, "ffn_up": Type.MXFP4, "ffn_down": Type.MXFP4}
MIXED = {"": Type.Q4_K, "attn_v": Type.Q6_K, "ffn_down": Type.Q5_K, "token_embd": Type.Q8_0, "output": Type.Q6_K}
FILES = {
    "llama in Q8_0": ("llama", {"": Type.Q8_0}, False),
    "llama in Q4_0": ("llama", {"": Type.Q4_0, "output": Type.Q8_0}, False),
    "qwen2 in Q4_1": ("qwen2", {"": Type.Q4_1, "token_embd": Type.F16}, True),
    "qwen3 in Q4_K and others": ("qwen3", MIXED, False),
    "llama in Q4_K and others": ("llama", MIXED, False),
    "qwen3 in Q6_K, tied": ("qwen3", {"": Type.Q6_K}, True),
}
# Each with other sizes, multipliers, windows or caps than transformers takes where nothing is said.
FURTHER = {
    **{
        f: (f, {"": Type.Q8_0}, None) for f in ("smollm3", "granite", "olmo2", "phi3", "starcoder2", "gemma2", "gemma3")
    },
    "llama, rotated as in 3.1": ("llama", {"": Type.Q8_0}, LLAMA3),
    "llama, yarn": ("llama", {"": Type.F16}, YARN),
    "gemma3, linear": ("gemma3", {"": Type.BF16}, dict(rope_type="linear", factor=8.0)),
    "qwen2 in Q3_K": ("qwen2", {"": Type.Q3_K}, None),
    "qwen3moe in Q4_K and others": ("qwen3moe", MIXED, None),
    "qwen2moe in Q4_0": ("qwen2moe", {"": Type.Q4_0}, None),
    "olmoe in Q8_0": ("olmoe", {"": Type.Q8_0}, None),
    "granitemoe in Q6_K": ("granitemoe", {"": Type.Q6_K}, None),
    "mixtral in Q5_K": ("mixtral", {"": Type.Q5_K}, None),
    "gpt-oss, its experts in MXFP4": ("gpt-oss", OF_EXPERTS, None),
    "gpt-oss, yarn": ("gpt-oss", {"": Type.Q8_0}, {**YARN, "truncate": False}),
    "qwen3moe, its experts in numbers": ("qwen3moe", {"": Type.BF16}, None),
    "qwen3 in IQ4_XS": ("qwen3", {"": Type.IQ4_XS}, None),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", FILES)
def test_blocks_stay_as_they_are_and_mean_what_the_package_says(name: str, tmp_path: Path) -> None:
    family, kinds, tied = FILES[name]
    plain = write(tmp_path / "m.gguf", family, kinds, tied=tied)
    loaded = loaded_of(tmp_path / "m.gguf", dtype="float32")
    expected, layers = dict(plain.named_parameters()), packed_layers(loaded.model)
    assert len(layers) == 15 - (tied and kinds.get("token_embd") is Type.F16)
    names = {id(module): name for name, module in loaded.model.named_modules()}
    for layer in layers:
        name = names[id(layer)] if f"{names[id(layer)]}.weight" in expected else "model.embed_tokens"
        numbers = expected[f"{name}.weight"]
        assert layer.packed is not None
        assert layer.packed.unpacked(0, layer.out_features).equal(numbers), names[id(layer)]
        assert layer.packed.unpacked(3, 41).equal(numbers[3:41]), names[id(layer)]
    for name, parameter in loaded.model.named_parameters():
        # Tied embeddings are in native memory alone.
        assert parameter.equal(expected[name]) or not parameter.numel(), name
    assert "a step is one native call" in loaded.description or native.library is None
    assert "GGUF, " in loaded.description
    texts = check_texts(plain)
    right = stock_logits(plain, texts)
    in_torch = loaded_of(tmp_path / "m.gguf", dtype="float32", compile=False)
    assert largest(our_logits(in_torch.model, in_torch.forward, texts), right) < 1e-5
    # Natively, activations have 16 bits: by how much that shows, the order of sums on this processor decides.
    assert largest(our_logits(loaded.model, loaded.forward, texts), right) < 2e-3


@pytest.mark.parametrize("name", FURTHER)
def test_architectures_rotations_and_forms_give_what_stock_gives(name: str, tmp_path: Path) -> None:
    family, kinds, rope = FURTHER[name]
    plain = write(tmp_path / "m.gguf", family, kinds, tied=family in ("gemma2", "gemma3", "smollm3"), rope=rope)
    loaded = loaded_of(tmp_path / "m.gguf", dtype="float32")
    said, stock = loaded.model.config.rope_parameters, plain.config.rope_parameters
    for part in ("full_attention", "sliding_attention") if family == "gemma3" else ("",):
        for key, value in (stock[part] if part else stock).items():
            assert (said[part] if part else said)[key] == pytest.approx(value), (part, key)
    texts = check_texts(plain)
    assert largest(our_logits(loaded.model, loaded.forward, texts), stock_logits(plain, texts)) < 2e-3
    assert "a step is one native call" in loaded.description or native.library is None


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_blocks_of_every_form_mean_what_the_package_says(kind: Kind) -> None:
    dice = np.random.default_rng(1)
    form = Type[kind.name]
    assert gguf.GGML_QUANT_SIZES[form] == (kind.numbers, kind.bytes)
    data = dice.integers(0, 256, (5, 512 // kind.numbers, kind.bytes), dtype=np.uint8)
    for at in gguf_files.SCALES.get(form, (0, 2) if form in (Type.Q4_1, Type.Q5_1) else (0,)):
        data[..., at : at + 2] = dice.uniform(-2, 2, data.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
    if form is Type.MXFP4:
        data[..., 0] &= 127
    tensors = {"blocks": torch.from_numpy(data.reshape(5, -1)), "kind": torch.tensor([int(form)], dtype=torch.int32)}
    right = torch.from_numpy(gguf.dequantize(data.reshape(5, -1), form).reshape(5, 512).copy())
    assert Gguf("", "").weight(tensors, 5, 512).unpacked(0, 5).equal(right)


def test_factors_of_other_rotations_than_llamas_are_refused() -> None:
    told = {"rope.freq_base": 5e5}
    made = 1.0 + np.arange(32) / 10
    with pytest.raises(LoadError, match="rope_freqs that are not those of Llama 3"):
        rotation(told, 64, 64, made)
    for said, why in (
        ({"rope.scaling.type": "longrope"}, "of the kind 'longrope'"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0}, "yarn without"),
        ({"rope.scaling.attn_factor": 1.2}, "attn_factor 1.2"),
        ({"rope.scaling.unheard_of": 1}, "unheard_of"),
    ):
        with pytest.raises(LoadError, match=why):
            rotation({**told, **said}, 64, 64, None)


def test_texts_are_split_as_the_file_says_or_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "llama", {"": Type.Q8_0}, pre="smollm")
    folder = folder_of(tmp_path / "m.gguf")
    pieces = AutoTokenizer.from_pretrained(folder).backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 1234")
    assert [piece for piece, _ in pieces] == ["in", "Ġ", "1", "2", "3", "4"]
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [2]}
    write(tmp_path / "m.gguf", "llama", {"": Type.Q8_0}, pre="unheard-of")
    with pytest.raises(LoadError, match="splits texts in the way 'unheard-of'"):
        folder_of(tmp_path / "m.gguf")


def test_ends_of_answers_are_those_that_the_file_names_and_the_usual_ones() -> None:
    kinds = [1, 3, 3, 3, 1]
    said = {"tokenizer.ggml.tokens": ["<|im_end|>", "<|eot_id|>", "<|user|>", "x", "y"]}
    said |= {"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.eos_token_id": 3, "tokenizer.ggml.eot_token_id": 4}
    assert end_tokens(said) == [1, 3, 4]


def test_a_split_model_is_read_from_any_of_its_parts(tmp_path: Path) -> None:
    plain = write(tmp_path / "m.gguf", "qwen2", {"": Type.Q4_1})
    names = gguf_files.split(tmp_path / "m.gguf", tmp_path / "parts", 2)
    (tmp_path / "m.gguf").unlink()
    texts = check_texts(plain)
    for source in (tmp_path / "parts" / names[1], tmp_path / "parts", Path(f"{tmp_path}/parts:m")):
        loaded = loaded_of(source, dtype="float32")
        assert largest(our_logits(loaded.model, loaded.forward, texts), stock_logits(plain, texts)) < 2e-3
    (tmp_path / "parts" / names[0]).unlink()
    with pytest.raises(LoadError, match=r"m-00001-of-00002\.gguf is missing, so the model is not whole"):
        check_found(str(tmp_path / "parts" / names[1]))


def test_tokens_in_a_crowd_are_those_of_each_alone(tmp_path: Path) -> None:
    plain = write(tmp_path / "m.gguf", "llama", MIXED)
    dice = random.Random(0)
    prompts = [[dice.randrange(3, 259) for _ in range(length)] for length in (5, 31, 12, 1, 20)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with LLM(str(tmp_path), dtype="float32", max_batch_size=4, policy="baton") as llm:
        crowd = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
        assert llm.chat([[{"role": "user", "content": "hé"}]], params)[0].prompt_token_ids[0] == 1
    for prompt, tokens in zip(prompts, crowd, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        plain.generation_config.eos_token_id = None
        alone = plain.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert tokens == alone[0, len(prompt) :].tolist()


def test_a_file_is_made_into_a_folder_once(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "m.gguf"
    write(file, "qwen3", {"": Type.Q4_0}, tied=True)
    folder = folder_of(file)
    written = (folder / "config.json").stat().st_mtime_ns
    assert folder_of(file) == folder and (folder / "config.json").stat().st_mtime_ns == written
    assert [one.name for one in (cache / "baton" / "gguf").iterdir()] == [folder.name]
    # Linear layers take no more room than in the file.
    assert (
        AutoTokenizer.from_pretrained(folder)("hé!")["input_ids"]
        == AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="m.gguf")("hé!")["input_ids"]
    )
    write(file, "qwen3", {"": Type.Q8_0}, tied=True)
    assert folder_of(file) != folder


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "an architecture that is not compared": ("xverse", {}, "architecture 'xverse'"),
    "groups of experts": (
        "qwen3moe",
        {"qwen3moe.expert_group_count": 8},
        "has qwen3moe.expert_group_count",
    ),
    "windows": ("qwen2", {"qwen2.attention.sliding_window": 8}, "sliding_window"),
    "a part of each head": ("qwen3", {"qwen3.rope.dimension_count": 32}, "turns 32 of 64 numbers"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_would_be_read_in_part_is_refused_by_name(
    why: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, more, said = REFUSED[why]
    made = gguf_files.stock
    of = architecture if architecture in gguf_files.FAMILIES else "llama"
    monkeypatch.setattr(gguf_files, "stock", lambda family, **how: made(of))
    monkeypatch.setitem(gguf_files.FAMILIES, architecture, gguf_files.FAMILIES[of])
    write(tmp_path / "m.gguf", architecture, {"": Type.Q8_0}, **more)
    with pytest.raises(LoadError, match=said):
        loaded_of(tmp_path / "m.gguf")
    assert not (cache / "baton" / "gguf").exists() or not list((cache / "baton" / "gguf").iterdir())


def test_forms_that_are_not_kept_and_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "llama", {"": Type.Q8_0, "attn_v": Type.TQ2_0})
    with pytest.raises(LoadError, match=r"blk\.0\.attn_v\.weight in TQ2_0, which is not read: Q4_0"):
        loaded_of(tmp_path / "m.gguf")
    (tmp_path / "other.gguf").write_bytes(b"hello")
    for source, said in (
        (tmp_path / "other.gguf", "does not begin as a GGUF file"),
        (tmp_path, "several GGUF models: give .*:FORM with one of m.gguf, other.gguf"),
        (tmp_path / "none.gguf", "no such file"),
    ):
        with pytest.raises(LoadError, match=said):
            check_found(str(source))
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="cannot be read"):
        loaded_of(tmp_path / "m.gguf")
