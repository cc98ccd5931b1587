"""Experts that are packed in their checkpoint stay packed: results are those of the numbers that their codes mean."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from baton.core.query import SamplingParams
from baton.llm import LLM
from baton.loader.loaded import Loaded
from baton.loader.selfcheck import check_texts, largest, our_logits, stock_logits
from baton.model.packed_layers import count_weights, named_packed
from baton.native import library as native
from checkpoints import edited, loaded_of, refusal
from packed_experts import save_mxfp4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    save_mxfp4(folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return loaded_of(folder / "packed", dtype="float32")


def test_codes_of_each_expert_mean_what_the_file_says(loaded: Loaded, plain: PreTrainedModel) -> None:
    layers = named_packed(loaded.model)
    right = {name: weight for name, weight in plain.named_parameters() if weight.dim() == 3}
    assert layers.keys() == right.keys() and len(layers) == 4
    for name, layer in layers.items():
        for packed, numbers in zip(layer.weights, right[name], strict=True):
            assert packed.unpacked(0, packed.outputs).equal(numbers.t()), name
            assert packed.unpacked(3, 41).equal(numbers.t()[3:41]), name
    assert loaded.parameters == count_weights(plain)


def test_steps_are_native_and_logits_those_of_the_numbers(loaded: Loaded, plain: PreTrainedModel, folder: Path) -> None:
    assert "a step is one native call" in loaded.description or native.library is None
    assert loaded.description.startswith("experts stay packed as they are: MXFP4, 4 bits, groups of 32 (0.1 MiB); ")
    texts = check_texts(plain)
    right = stock_logits(plain, texts)
    # Natively, activations have 16 bits.
    assert largest(our_logits(loaded.model, loaded.forward, texts), right) < 1e-3
    in_torch = loaded_of(folder / "packed", dtype="float32", compile=False)
    assert largest(our_logits(in_torch.model, in_torch.forward, texts), right) < 1e-5


def test_tokens_in_a_crowd_are_those_of_each_alone(folder: Path, plain: PreTrainedModel) -> None:
    dice = random.Random(0)
    prompts = [[dice.randrange(3, 259) for _ in range(length)] for length in (5, 31, 12, 1, 20)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with LLM(str(folder / "packed"), dtype="float32", max_batch_size=4, policy="baton") as llm:
        crowd = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    plain.generation_config.eos_token_id = None
    for prompt, tokens in zip(prompts, crowd, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        alone = plain.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert tokens == alone[0, len(prompt) :].tolist()


def test_in_bfloat16_they_stay_packed_too(folder: Path) -> None:
    loaded = loaded_of(folder / "packed", dtype="bfloat16")
    assert "a step is one native call" in loaded.description or native.library is None


def test_what_does_not_fit_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.down_proj"

    def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
        return lambda weights: {key: tensor for key, tensor in weights.items() if key != f"{name}_{part}"}

    message = refusal(edited(folder / "packed", tmp_path / "no scales", without("scales")))
    assert "experts.down_proj does not fit MXFP4, 4 bits, groups of 32: scales is missing" in message
    message = refusal(edited(folder / "packed", tmp_path / "no blocks", without("blocks")))
    assert "packs some weights of model.layers.1.mlp.experts and not down_proj" in message

    def cut(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**weights, f"{name}_scales": weights[f"{name}_scales"][:, :-1]}

    message = refusal(edited(folder / "packed", tmp_path / "cut", cut))
    assert "experts.down_proj does not fit" in message and "scales is [95, 2] and should be [96, 2]" in message
