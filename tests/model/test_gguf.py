"""GGUF files: blocks stay as they are, and results are those of exactly the numbers that they mean."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from baton.core.errors import LoadError
from baton.core.query import SamplingParams
from baton.llm import LLM
from baton.loader.gguf_file import folder_of
from baton.loader.hub import check_found
from baton.loader.selfcheck import check_texts, largest, our_logits, stock_logits
from baton.model.packed_linear import packed_layers
from baton.native import library as native
from checkpoints import loaded_of

pytest.importorskip("gguf")

from gguf import GGMLQuantizationType as Type

import gguf_files
from gguf_files import write

MIXED = {"": Type.Q4_K, "attn_v": Type.Q6_K, "ffn_down": Type.Q5_K, "token_embd": Type.Q8_0, "output": Type.Q6_K}
FILES = {
    "llama in Q8_0": ("llama", {"": Type.Q8_0}, False),
    "llama in Q4_0": ("llama", {"": Type.Q4_0, "output": Type.Q8_0}, False),
    "qwen2 in Q4_1": ("qwen2", {"": Type.Q4_1, "token_embd": Type.F16}, True),
    "qwen3 in Q4_K and others": ("qwen3", MIXED, False),
    "llama in Q4_K and others": ("llama", MIXED, False),
    "qwen3 in Q6_K, tied": ("qwen3", {"": Type.Q6_K}, True),
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
    assert len(layers) == 14 + (not tied)
    names = {id(module): name for name, module in loaded.model.named_modules()}
    for layer in layers:
        numbers = expected[f"{names[id(layer)]}.weight"]
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


REFUSED = {
    "an architecture that is not compared": ("qwen2moe", {}, "architecture 'qwen2moe'"),
    "a scaled rotation": ("llama", {"llama.rope.scaling.original_context_length": 8}, "rope.scaling"),
    "windows": ("qwen2", {"qwen2.attention.sliding_window": 8}, "sliding_window"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_would_be_read_in_part_is_refused_by_name(
    why: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, more, said = REFUSED[why]
    made = gguf_files.stock
    monkeypatch.setattr(gguf_files, "stock", lambda family, tied: made("llama"))
    write(tmp_path / "m.gguf", architecture, {"": Type.Q8_0}, **more)
    with pytest.raises(LoadError, match=said):
        loaded_of(tmp_path / "m.gguf")
    assert not (cache / "baton" / "gguf").exists() or not list((cache / "baton" / "gguf").iterdir())


def test_forms_that_are_not_kept_and_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", "llama", {"": Type.Q8_0, "attn_v": Type.Q5_0})
    with pytest.raises(LoadError, match=r"blk\.0\.attn_v\.weight in Q5_0, which is not read: Q4_0"):
        loaded_of(tmp_path / "m.gguf")
    (tmp_path / "other.gguf").write_bytes(b"hello")
    for source, said in (
        (tmp_path / "other.gguf", "does not begin as a GGUF file"),
        (tmp_path, "several GGUF files"),
        (tmp_path / "none.gguf", "no such file"),
    ):
        with pytest.raises(LoadError, match=said):
            check_found(str(source))
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match="cannot be read"):
        loaded_of(tmp_path / "m.gguf")
