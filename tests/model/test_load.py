"""A checkpoint folder is loaded and checked, and each thing that can be wrong with it is said in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from baton.core.config import Config
from baton.core.errors import LoadError, SettingError
from baton.core.settings import load_settings
from baton.kv.rectangle import footprint
from baton.loader.load import choose, context_of, load
from baton.loader.loaded import Loaded
from baton.loader.survey import survey
from baton.model.device import Device
from checkpoints import config_of
from families import FAMILIES, REFUSED, bare_model
from tiny_checkpoint import CONTEXT, VOCABULARY, save_tiny, save_tokenizer

PER_TOKEN = 2 * 1 * (16 + 16)  # layers, key/value heads, head dimension of keys and of values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def loaded_of(folder: Path, **settings: object) -> Loaded:
    return load(load_settings(Config(device="cpu", **settings), str(folder), "tiny"))  # type: ignore[arg-type]


def test_a_folder_is_loaded_with_what_it_says_of_itself(folder: Path) -> None:
    told: list[str] = []
    loaded = load(
        load_settings(Config(device="cpu"), str(folder), "tiny"), on_phase=lambda phase, seconds: told.append(phase)
    )
    assert told == ["tokenizer", "weights", "self-check"]
    assert (loaded.name, loaded.context_tokens, loaded.end_ids) == ("tiny", CONTEXT, (2,))
    assert loaded.tokenizer.vocabulary == VOCABULARY
    assert (loaded.dtype, loaded.device.type) == (torch.float32, "cpu")
    assert loaded.parameters == sum(
        parameter.numel() for parameter in loaded_of(folder, compile=False).model.parameters()
    )
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_a_stamp_does_not_hang_on_the_name_of_a_model(folder: Path) -> None:
    other = load(load_settings(Config(device="cpu"), str(folder), "other"))
    assert other.name == "other" and other.stamp == loaded_of(folder).stamp


def test_a_dtype_that_was_asked_for_holds(folder: Path) -> None:
    assert loaded_of(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_all_tokens_that_end_a_text_are_found(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [7, 5]}))
    assert loaded_of(copy).end_ids == (2, 5, 7)


def without(folder: Path, tmp_path: Path, *patterns: str) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    for pattern in patterns:
        for path in copy.glob(pattern):
            path.unlink()
    return copy


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["config.json"], "no config.json"),
        (["*.safetensors"], "no .safetensors file"),
        (["tokenizer*"], "no tokenizer"),
    ],
)
def test_a_folder_that_lacks_something_is_refused_with_what_to_do(
    patterns: list[str], words: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        loaded_of(without(folder, tmp_path, *patterns))
    assert "\n" not in caught.value.message
    assert "save_pretrained" in caught.value.message
    assert caught.value.exit_status == 1


def test_a_folder_that_is_not_there_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="no such folder"):
        loaded_of(tmp_path / "nowhere")
    file = tmp_path / "model.bin"
    file.write_text("")
    with pytest.raises(LoadError, match="is a file"):
        loaded_of(file)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", "this is no safetensors file", "model.safetensors is cut off or no safetensors file"),
        ("config.json", "{", "could not be loaded"),
        ("config.json", '{"model_type": "no_such_family"}', "could not be loaded"),
        ("tokenizer.json", "{}", "its tokenizer could not be loaded"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    name: str, content: str, words: str, folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).write_text(content)
    with pytest.raises(LoadError, match=words) as caught:
        loaded_of(copy)
    assert "\n" not in caught.value.message


def test_what_is_left_to_us_is_computed_in_16_bits_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.loader.load.device_of", lambda device: Device("cuda", (9, 0)))
    assert loaded_of(folder).dtype == torch.bfloat16
    assert loaded_of(folder, dtype="float32").dtype == torch.float32
    monkeypatch.setattr("baton.loader.load.device_of", lambda device: Device("cuda", (7, 5)))
    assert loaded_of(folder).dtype == torch.float16
    with pytest.raises(SettingError, match="take float16 or float32"):
        loaded_of(folder, dtype="bfloat16")


def test_float8_is_for_gpus_that_have_it_and_computes_in_bfloat16(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingError, match="--quantize float8 needs an NVIDIA GPU"):
        loaded_of(folder, quantize="float8")
    # On a CPU that is taken for such a GPU: the product is the same.
    monkeypatch.setattr("baton.loader.load.device_of", lambda device: Device("cuda", (9, 0)))
    loaded = loaded_of(folder, quantize="float8")
    assert (loaded.dtype, loaded.format.rounded_bits) == (torch.bfloat16, 8)
    assert "linear layers in float8" in loaded.description
    with pytest.raises(LoadError, match="computes in bfloat16"):
        loaded_of(folder, quantize="float8", dtype="float32")


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("cpu", {}, "on CUDA, not on cpu"),
        ("mps", {}, "on CUDA, not on mps"),
        ("cuda", {"compile": False}, "without --no-compile"),
        ("cuda", {"shaping": "aligned"}, "aligned rows"),
        ("cuda", {"deterministic": True}, "--deterministic fixes"),
    ],
)
def test_a_compiler_of_steps_that_are_not_compiled_is_refused(
    kind: str, settings: dict[str, object], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.loader.load.device_of", lambda device: Device(kind, (9, 0)))
    with pytest.raises(SettingError, match=f"--step-compiler inductor: .*{words}") as caught:
        loaded_of(folder, step_compiler="inductor", **settings)
    assert caught.value.param == "step_compiler"


def test_a_device_that_is_not_there_is_a_bad_setting(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SettingError, match="--device cuda"):
        load(load_settings(Config(device="cuda"), str(folder), "tiny"))


def test_a_kind_that_is_not_batched_is_refused_by_name_at_load(tmp_path: Path) -> None:
    family, reason = REFUSED["bert"]
    model = bare_model(family)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(LoadError, match=f"tiny cannot be batched exactly: .*{reason}"):
        loaded_of(tmp_path)


def test_the_context_is_read_from_whichever_name_a_family_gives_it(folder: Path) -> None:
    assert context_of(config_of(folder)) == CONTEXT
    assert context_of(GPTJ) == 192


def test_a_survey_knows_rings_states_and_attention_of_the_models_own(tmp_path: Path) -> None:
    for name in ("gemma3", "jamba", "bloom"):
        family = next(family for family in FAMILIES if family.name == name)
        folder = tmp_path / name
        model = bare_model(family)
        model.save_pretrained(folder)
        save_tokenizer(folder)
        surveyed = survey(str(folder))
        assert surveyed.refused is None
        assert surveyed.geometry is not None
        loaded = footprint(
            choose(model).forward.geometry.shapes, surveyed.context_tokens, torch.float32, torch.device("cpu")
        )
        assert surveyed.footprint(torch.float32) == loaded


GPTJ = bare_model(next(family for family in FAMILIES if family.name == "gptj")).config


def test_a_survey_needs_no_weights_and_says_what_loading_would(folder: Path) -> None:
    surveyed, loaded = survey(str(folder)), loaded_of(folder)
    assert (surveyed.parameters, surveyed.context_tokens, surveyed.refused) == (loaded.parameters, CONTEXT, None)
    assert surveyed.geometry is not None
    assert surveyed.geometry.shapes == loaded.geometry.shapes
    assert surveyed.footprint(torch.float32).token_bytes == PER_TOKEN * 4
    assert (surveyed.family, surveyed.layers, surveyed.vocabulary, surveyed.saved_dtype) == (
        "llama",
        2,
        VOCABULARY,
        "float32",
    )


def test_a_survey_says_why_a_kind_is_not_batched(tmp_path: Path) -> None:
    family, reason = REFUSED["deepseek_v4"]
    model = bare_model(family)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    surveyed = survey(str(tmp_path))
    assert reason in (surveyed.refused or "")
    assert surveyed.geometry is None
    assert surveyed.footprint(torch.float32).of(1) == 0
