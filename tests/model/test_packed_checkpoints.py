"""Checkpoints that are packed stay packed: codes as the file has them, results as of the numbers that they mean."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from baton.cli.info import run_info
from baton.core.config import Config
from baton.core.errors import SettingError
from baton.core.query import SamplingParams
from baton.llm import LLM
from baton.loader import choose as choose_module
from baton.loader import structure as structure_module
from baton.loader.loaded import Loaded
from baton.loader.selfcheck import check_texts, largest, our_logits, stock_logits
from baton.model.packed import PackedWeight
from baton.model.packed_layers import packed_layers
from baton.model.packed_linear import not_computed
from baton.native import library as native
from checkpoints import edited, loaded_of, refusal
from packed_checkpoints import Format, awq, compressed, float8, gptq, numbers_of, save_packed

FORMATS: dict[str, Format] = {
    "gptq": gptq(),
    "gptq of 64": gptq(group=64, sym=True),
    "gptq of 128": gptq(group=128),
    "gptq of a row": gptq(group=-1),
    "gptq v2": gptq(less_one=False),
    "gptq in order of activations": gptq(group=64, ordered=True),
    "gptq in 8 bits": gptq(8, sym=True),
    "gptq in 8 bits, in order of activations": gptq(8, ordered=True),
    "awq": awq(),
    "awq of 128": awq(128),
    "compressed": compressed(),
    "compressed with zeros": compressed(sym=False),
    "compressed of 128, in order of activations": compressed(group=128, ordered=True),
    "compressed of a row": compressed(group=-1),
    "compressed in 8 bits, with zeros": compressed(8, sym=False),
    "compressed in whole bytes": compressed(8, -1, words=False, rounded=8),
    "compressed in whole bytes, with zeros": compressed(8, -1, words=False, sym=False),
    "fp8": float8(),
    "fp8 in other blocks": float8((48, 32)),
    "fp8 of a layer": float8(None),
    "fbgemm": float8(None, of="fbgemm_fp8"),
    "compressed fp8": float8(None, of="channel"),
    "compressed fp8 of a layer": float8(None, of="tensor"),
    "compressed fp8 in blocks": float8((64, 128), of="block"),
}


@pytest.fixture(scope="module", params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_packed(folder, FORMATS[request.param])
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return loaded_of(folder / "packed", dtype="float32")


def _plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)


def test_codes_mean_what_the_file_says_to_the_bit(folder: Path, loaded: Loaded) -> None:
    expected = numbers_of(folder)
    layers = {name: layer for name, layer in loaded.model.named_modules() if layer in packed_layers(loaded.model)}
    assert len(layers) == sum(name.endswith("proj.weight") for name in expected) == 14
    for name, layer in layers.items():
        numbers = layer.packed.unpacked(0, layer.out_features)
        assert numbers.equal(expected[f"{name}.weight"]), name
        # A piece that begins and ends inside a word.
        assert layer.packed.unpacked(3, 41).equal(expected[f"{name}.weight"][3:41]), name


def test_steps_are_native(loaded: Loaded) -> None:
    assert "a step is one native call" in loaded.description or native.library is None


def test_only_what_is_compared_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recording and probing unpack no weight: in a large model each pass over all of them takes seconds."""
    save_packed(tmp_path, gptq())
    passes: dict[str, int] = dict.fromkeys(("record", "probe"), 0)
    unpacked, runs_now = PackedWeight.unpacked, list[str]()

    def counted(self: PackedWeight, first: int, last: int) -> torch.Tensor:
        for name in runs_now:
            passes[name] += 1
        return unpacked(self, first, last)

    def during(name: str, run: Any) -> Any:
        def told(*args: Any, **more: Any) -> Any:
            runs_now.append(name)
            try:
                return run(*args, **more)
            finally:
                runs_now.pop()

        return told

    monkeypatch.setattr(PackedWeight, "unpacked", counted)
    monkeypatch.setattr("baton.loader.choose.record", during("record", choose_module.record))
    monkeypatch.setattr("baton.loader.structure.probe", during("probe", structure_module.probe))
    loaded = loaded_of(tmp_path / "packed")
    assert passes == {"record": 0, "probe": 0}
    layer = packed_layers(loaded.model)[0]
    x = torch.ones(1, layer.in_features)
    with not_computed():
        assert not layer(x).any()
    assert layer(x).any()


def test_logits_are_those_of_the_numbers_that_codes_mean(folder: Path, loaded: Loaded) -> None:
    plain = _plain(folder)
    texts = check_texts(plain)
    ours = our_logits(loaded.model, loaded.forward, texts)
    assert largest(ours, stock_logits(plain, texts)) < 1e-4


def test_tokens_in_a_crowd_are_those_of_each_alone(folder: Path) -> None:
    dice = random.Random(0)
    prompts = [[dice.randrange(3, 259) for _ in range(length)] for length in (5, 31, 12, 1, 20)]
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    with LLM(str(folder / "packed"), dtype="float32", max_batch_size=4, policy="baton") as llm:
        crowd = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    plain = _plain(folder)
    plain.generation_config.eos_token_id = None
    for prompt, tokens in zip(prompts, crowd, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        alone = plain.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert tokens == alone[0, len(prompt) :].tolist()


def test_it_is_told_what_stays_packed_and_what_is_rounded(tmp_path: Path) -> None:
    save_packed(tmp_path, gptq())
    exact = loaded_of(tmp_path / "packed", dtype="float32")
    # 4 bits a number, and for each 32 of them a scale in 16 bits and a zero in 4; an int32 for each input.
    numbers = 2 * (128 * (128 + 64 + 64 + 128) + 3 * 128 * 256)
    size = numbers / 2 + numbers / 32 * 2.5 + 2 * 4 * (6 * 128 + 256)
    assert sum(layer.packed.bytes for layer in packed_layers(exact.model)) == size
    assert exact.description.startswith(
        f"linear layers stay packed as they are: GPTQ, 4 bits, groups of 32 ({size / 2**20:.1f} MiB); "
    )
    assert exact.parameters == sum(tensor.numel() for tensor in numbers_of(tmp_path).values())
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    half = edited(tmp_path / "packed", tmp_path / "half", **{**config, "dtype": "float16"})
    assert "MiB), other weights in bfloat16, rounded from float16; " in loaded_of(half, dtype="bfloat16").description
    kept = loaded_of(half)
    assert kept.dtype is torch.float16 and "MiB); " in kept.description
    assert "a step is one native call" in kept.description or native.library is None


def test_info_tells_the_format_and_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = save_packed(tmp_path, awq())
    run_info(Config(model=str(packed), device="cpu"), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts["packed"] == "AWQ, 4 bits, groups of 32" and "weight_bytes_int4" not in facts
    (kept,) = facts["most_tokens_per_second_of_a_row"]
    read = facts["weight_bytes"] - 4 * 259 * 128  # without the embedding
    assert kept == facts["packed"] and facts["memory_bytes_per_second"] > 0
    most = facts["memory_bytes_per_second"] / read
    assert abs(facts["most_tokens_per_second_of_a_row"][kept] - most) < 1
    assert 0 < (packed / "model.safetensors").stat().st_size - facts["weight_bytes"] < 20_000  # the file's header


def test_what_is_packed_is_not_rounded_again(tmp_path: Path) -> None:
    save_packed(tmp_path, gptq())
    with pytest.raises(SettingError, match=r"is packed already \(GPTQ, 4 bits, groups of 32\).*lose a second time"):
        loaded_of(tmp_path / "packed", quantize="int4")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "3 bits": ({"bits": 3}, "FOLDER is GPTQ in 3 bits: take one in 4 or 8 bits, or the model that is not packed"),
    "another form": ({"checkpoint_format": "marlin"}, "FOLDER is GPTQ in the form 'marlin': take one in the form gptq"),
    "a group": ({"group_size": "many"}, "has a group_size of 'many'"),
    "other groups": ({"group_size": 64}, "q_proj does not fit GPTQ, 4 bits, groups of 64: scales is"),
    "other bits": ({"bits": 8}, "q_proj does not fit GPTQ, 8 bits, groups of 32: qweight is"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_kept_is_refused_by_name(what: str, tmp_path: Path) -> None:
    changed, words = REFUSED[what]
    assert words in refusal(save_packed(tmp_path, gptq(), **changed))


def test_a_missing_part_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    packed = save_packed(tmp_path, gptq())
    name = "model.layers.1.mlp.up_proj."

    def without(part: str) -> Any:
        return lambda weights: {key: tensor for key, tensor in weights.items() if key != name + part}

    message = refusal(edited(packed, tmp_path / "no zeros", without("qzeros")))
    assert "up_proj does not fit GPTQ, 4 bits, groups of 32: qzeros is missing" in message
    message = refusal(edited(packed, tmp_path / "another", quantization_config=awq().said | {"quant_method": "awq"}))
    assert "q_proj does not fit AWQ, 4 bits, groups of 32" in message
    message = refusal(edited(packed, tmp_path / "no codes", without("qweight")))
    assert "lacks 1 tensor" in message and "up_proj.weight" in message
    message = refusal(
        edited(packed, tmp_path / "cut", lambda weights: {**weights, "lm_head.weight": weights["lm_head.weight"][:9]})
    )
    assert "lm_head.weight is [9, 128] and should be [259, 128]" in message


def test_a_format_without_a_packed_layer_is_refused(tmp_path: Path) -> None:
    save_packed(tmp_path, gptq())
    plain = edited(tmp_path / "plain", tmp_path / "none", quantization_config=dict(awq().said))
    assert "says AWQ, 4 bits, groups of 32, but no layer has a qweight" in refusal(plain)


def test_groups_of_other_sizes_are_refused(tmp_path: Path) -> None:
    packed = save_packed(tmp_path, gptq(ordered=True))
    name = "model.layers.0.mlp.down_proj.g_idx"

    def uneven(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        index = weights[name].clone()
        index[0] = (index[0] + 1) % 8
        return {**weights, name: index}

    assert "down_proj does not fit" in refusal(edited(packed, tmp_path / "uneven", uneven))


REFUSED_OTHERS: dict[str, tuple[Format, dict[str, Any], str]] = {
    "awq gemv": (awq(), {"version": "gemv"}, "FOLDER is AWQ gemv in 4 bits: take one of version gemm in 4 bits"),
    "turned": (compressed(), {"transform_config": {"R1": {}}}, "turns its activations"),
    "sparse": (compressed(), {"sparsity_config": {"format": "sparse-24-bitmask"}}, "is sparse as well"),
    "other groups": (awq(64), {"group_size": 32}, "q_proj does not fit AWQ, 4 bits, groups of 32: qzeros is"),
}


@pytest.mark.parametrize("what", REFUSED_OTHERS)
def test_other_formats_are_refused_by_name(what: str, tmp_path: Path) -> None:
    format, changed, words = REFUSED_OTHERS[what]
    assert words in refusal(save_packed(tmp_path, format, **changed))


def test_packed_experts_are_refused(tmp_path: Path) -> None:
    packed = save_packed(tmp_path, gptq())
    name = "model.layers.0.mlp.up_proj"

    def as_expert(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key.replace(name, "model.layers.0.mlp.experts.0.up_proj"): tensor for key, tensor in weights.items()}

    assert "such are not kept packed" in refusal(edited(packed, tmp_path / "experts", as_expert))
