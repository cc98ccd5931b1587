"""A checkpoint in float16 is computed natively with its own numbers: none becomes bfloat16."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from baton.core.query import SamplingParams
from baton.llm import LLM
from baton.loader.loaded import Loaded
from baton.loader.selfcheck import check_texts, largest, our_logits, stock_logits
from baton.native import library as native
from checkpoints import edited, loaded_of
from tiny_checkpoint import save_tiny


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half")
    save_tiny(folder / "plain")

    def halved(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.half() for name, tensor in weights.items()}

    return edited(folder / "plain", folder / "half", halved, dtype="float16")


@pytest.fixture(scope="module")
def loaded(half: Path) -> Loaded:
    return loaded_of(half)


@pytest.mark.skipif(native.library is None, reason="torch computes without a native library")
def test_steps_are_native_and_logits_those_of_its_numbers(half: Path, loaded: Loaded) -> None:
    assert loaded.dtype is torch.float16 and "a step is one native call" in loaded.description
    exact = AutoModelForCausalLM.from_pretrained(half, dtype=torch.float32)
    texts = check_texts(exact)
    # Weights and activations are exact; keys and values are float16, which has 8 times the digits of bfloat16.
    error = largest(our_logits(loaded.model, loaded.forward, texts), stock_logits(exact, texts))
    assert 0 < error < 3e-3


def test_a_crowd_gets_what_each_gets_alone(half: Path) -> None:
    dice = random.Random(0)
    prompts = [[dice.randrange(3, 259) for _ in range(length)] for length in (5, 31, 12, 1, 20)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True, logprobs=1)
    with LLM(str(half), max_batch_size=4, policy="baton") as llm:
        crowd = [output.outputs[0] for output in llm.generate(prompts, params, use_tqdm=False)]
        for prompt, output in zip(prompts, crowd, strict=True):
            alone = llm.generate([prompt], params, use_tqdm=False)[0].outputs[0]
            assert alone.token_ids == output.token_ids and alone.logprobs == output.logprobs


def test_weights_may_be_rounded_from_float16(half: Path) -> None:
    if native.library is None:
        pytest.skip("no native library")
    assert "linear layers in int8" in loaded_of(half, quantize="int8").description
