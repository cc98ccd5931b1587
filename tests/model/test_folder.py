"""Each folder that is not served is recognised, in one line that says what it is and what to do."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from baton.core.errors import LoadError
from baton.loader.packings import KEPT, METHOD, NOT_KEPT, packed_format
from baton.loader.survey import survey
from checkpoints import WEIGHTS, config_of, edited, loaded_of, refusal
from tiny_checkpoint import save_tiny

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 1234567\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


def of_files(folder: Path, **files: bytes) -> None:
    """A folder with nothing but these files."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)


def instead(folder: Path, *names: str) -> None:
    """Other files of weights than the one that is there."""
    (folder / WEIGHTS).unlink()
    for name in names:
        (folder / name).write_bytes(b"weights")


def sharded(folder: Path, *, index: Any = None, lost: str = "") -> None:
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(weights)
    halves = (names[:5], names[5:])
    for file, half in zip(SHARDS, halves, strict=True):
        save_file({name: weights[name] for name in half if name != lost}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, half in zip(SHARDS, halves, strict=True) for name in half}
    index = {"metadata": {}, "weight_map": weight_map} if index is None else index
    (folder / INDEX).write_text(json.dumps(index))


def packed(folder: Path, name: str, *, renamed: bool) -> None:
    content = gzip.compress((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / (f"{name}.gz" if renamed else name)).write_bytes(content)


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def adapted(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def dangling(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("../blobs/gone")


def below(folder: Path, inner: str) -> None:
    shutil.copytree(folder, folder / inner)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def coded(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    said = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def sentencepiece(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda f: of_files(f), "FOLDER is empty: give the folder"),
    "adapter": (
        lambda f: of_files(f, adapter_config__json=b'{"base_model_name_or_path": "org/base"}'),
        "an adapter of org/base .*merge_and_unload",
    ),
    "adapter beside a model": (adapted, "an adapter of org/base"),
    "diffusers": (lambda f: of_files(f, model_index__json=b"{}"), "a diffusers pipeline .*makes no text"),
    "sentence-transformers": (lambda f: (f / "modules.json").write_text("[]"), "makes embeddings, no text"),
    "distributed": (lambda f: (f / ".metadata").write_bytes(b"\x80\x02"), "which only pickle can read"),
    "GGUF alone": (lambda f: of_files(f, m__gguf=b"GGUF"), r"m\.gguf cannot be read"),
    "GGUF": (lambda f: instead(f, "model-q4.gguf"), "holds GGUF weights: give the path of one"),
    "GGUF under another name": (lambda f: (f / WEIGHTS).write_bytes(b"GGUF" + bytes(99)), "is a GGUF file"),
    "pickles": (lambda f: instead(f, "pytorch_model.bin"), r"pickles \(.bin\).*save_pretrained\(NEW\)"),
    "sharded pickles": (lambda f: instead(f, "pytorch_model-00001-of-00002.bin"), r"pickles \(.bin\)"),
    "pth": (lambda f: instead(f, "model.pth"), r"pickles \(.pth\)"),
    "Meta's": (lambda f: instead(f, "consolidated.00.pth", "params.json"), "Meta's own form: take"),
    "Mistral's": (lambda f: instead(f, "consolidated.safetensors", "params.json"), "Mistral's own form: take"),
    "TensorFlow": (lambda f: instead(f, "tf_model.h5"), "TensorFlow weights"),
    "Flax": (lambda f: instead(f, "flax_model.msgpack"), "Flax weights"),
    "ONNX": (lambda f: instead(f, "model.onnx"), "ONNX"),
    "OpenVINO": (lambda f: instead(f, "openvino_model.xml", "openvino_model.bin"), "OpenVINO|pickles"),
    "a variant": (lambda f: instead(f, "model.fp16.safetensors"), "variant only: rename them to model.safetensors"),
    "another name": (
        lambda f: instead(f, "weights.safetensors"),
        "neither .* nor .*weights.safetensors",
    ),
    "no weights": (lambda f: instead(f, "training_args.bin", "optimizer.pt"), "has no .safetensors file"),
    "packed weights": (lambda f: packed(f, WEIGHTS, renamed=True), "packed weights: unpack them with gunzip"),
    "packed weights as others": (lambda f: packed(f, WEIGHTS, renamed=False), "is packed by gzip"),
    "packed config": (lambda f: packed(f, "config.json", renamed=True), "config.json.gz is packed"),
    "packed config as another": (lambda f: packed(f, "config.json", renamed=False), "config.json is packed by gzip"),
    "LFS weights": (lambda f: (f / WEIGHTS).write_bytes(LFS), "model.safetensors is a Git LFS pointer.*git lfs pull"),
    "LFS config": (lambda f: (f / "config.json").write_bytes(LFS), "config.json is a Git LFS pointer"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.safetensors is empty: download"),
    "cut off": (cut, r"model.safetensors is cut off, [\d,]+ of [\d,]+ bytes: download"),
    "cut off in the header": (
        lambda f: (f / WEIGHTS).write_bytes(b"\x99\0\0\0\0\0\0\0{"),
        "is cut off or no",
    ),
    "zeros": (lambda f: (f / WEIGHTS).write_bytes(bytes(4096)), "is cut off or no"),
    "a web page": (lambda f: (f / WEIGHTS).write_bytes(b"<!DOCTYPE html>" * 9), "is a web page"),
    "no index": (lambda f: (sharded(f), (f / INDEX).unlink()), "model.safetensors.index.json is missing"),
    "a shard missing": (
        lambda f: (sharded(f), (f / SHARDS[1]).unlink()),
        "00002-of-00002.safetensors of 2 files",
    ),
    "a shard without what is in it": (
        lambda f: sharded(f, lost="lm_head.weight"),
        "lacks what .*lm_head.weight",
    ),
    "an index of nothing": (lambda f: sharded(f, index={}), "has no weight_map"),
    "an index that leads out": (lambda f: sharded(f, index={"weight_map": {"a": "../../x"}}), "'../../x', which is no"),
    "dangling weights": (lambda f: dangling(f, WEIGHTS), "is a link that points to nothing: download"),
    "dangling config": (lambda f: dangling(f, "config.json"), "config.json is a link that points to nothing"),
    "empty config": (lambda f: (f / "config.json").write_text(" \n"), "config.json is empty"),
    "config of no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object but a list"),
    "config with a mark": (
        lambda f: (f / "config.json").write_bytes(b"\xef\xbb\xbf{}"),
        "a byte-order mark",
    ),
    "config of no type": (lambda f: (f / "config.json").write_text("{}"), "names no model_type"),
    "model in a folder below": (
        lambda f: below(f, "checkpoint-500"),
        ", but FOLDER/checkpoint-500 has",
    ),
    "a cached model": (lambda f: below(f, "snapshots/" + "0" * 40), "but FOLDER/snapshots/0+ has: give that"),
    "the cache": (lambda f: below(f, "models--org--name/snapshots/0"), "but org/name has: give that"),
    "LFS tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(LFS), "tokenizer.json is a Git LFS pointer"),
    "empty tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(b""), "tokenizer.json is empty"),
    "a tokenizer of code": (coded, "its tokenizer could not be loaded: it needs .*--trust-remote-code"),
    "sentencepiece": (sentencepiece, "pip install sentencepiece|its tokenizer could not be loaded"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_is_not_served_says_what_it_is_and_what_to_do(what: str, folder: Path, tmp_path: Path) -> None:
    make, words = FOLDERS[what]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    make(copy)
    with pytest.raises(LoadError, match=words.replace("FOLDER", str(copy))) as caught:
        loaded_of(copy)
    assert "\n" not in caught.value.message


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "MLX": ({"quantization": {"group_size": 64, "bits": 4}}, "quantized for MLX"),
    "MLX twice": (
        {"quantization": {"bits": 4}, "quantization_config": {"group_size": 64, "bits": 4}},
        "quantized for MLX, which is not read here: take the original checkpoint",
    ),
    "EXL2": ({"quantization_config": {"quant_method": "exl2", "bits": 4.0}}, "quantized by 'exl2', which transformers"),
    "EXL2 in its text part": (
        {"text_config": {"quantization_config": {"quant_method": "exl2"}}},
        "quantized by 'exl2'",
    ),
    "bitsandbytes": (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "is quantized by bitsandbytes, whose form is not kept .* take one of gptq, awq, .* --quantize int4",
    ),
    "torchao": ({"quantization_config": {"quant_method": "torchao"}}, "is quantized by torchao, whose form is not"),
    "ModelOpt": ({"quantization_config": {"quant_method": "modelopt"}}, "quantized by 'modelopt'"),
    "no method": ({"quantization_config": {"group_size": 64}}, "names no quant_method"),
    "no object": ({"quantization_config": "awq"}, "is no JSON object"),
    "a rope type": ({"rope_scaling": {"type": "su", "factor": 4.0}, "rope_parameters": None}, "rope type 'su' .* yarn"),
    "code": ({"model_type": "brandnew", "auto_map": {"AutoConfig": "c.C"}}, "--trust-remote-code"),
    "a type": ({"model_type": "brandnew"}, "'brandnew' is not known to transformers .*pip install -U"),
    "weights outside": ({"transformers_weights": "../tiny/model.safetensors"}, "is no such file there"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_is_not_served_says_what_it_is_and_what_to_do(what: str, folder: Path, tmp_path: Path) -> None:
    config, words = CONFIGS[what]
    copy = edited(folder, tmp_path / "copy", **config)
    message = refusal(copy)
    with pytest.raises(LoadError, match=words) as caught:
        survey(str(copy))
    assert caught.value.message.replace(str(copy), "FOLDER") == message


def test_a_quantizer_that_is_not_installed_is_named(folder: Path, tmp_path: Path) -> None:
    method = {"quant_method": "compressed-tensors"}
    assert "install" in refusal(edited(folder, tmp_path / "copy", quantization_config=method))


METHODS = sorted({name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING})
BY_STOCK = {"gguf"}  # never in a folder of safetensors


@pytest.mark.parametrize("method", sorted({*METHODS, *NOT_KEPT, "exl2", "exl3", "modelopt"} - {METHOD}))
def test_each_way_of_quantising_is_kept_or_refused_by_name(method: str, folder: Path, tmp_path: Path) -> None:
    """All that transformers lists: what is not kept is refused before weights are read, with the way out."""
    said: dict[str, Any] = {
        "quant_method": method,
        "bits": 4,
        "group_size": 128,
        "version": "gemm",
        "format": "pack-quantized",
    }
    said["config_groups"] = {"group_0": {"weights": {"num_bits": 4}}}
    copy = edited(folder, tmp_path / "copy", quantization_config=said)
    (copy / WEIGHTS).write_bytes(b"not read")
    if method in KEPT or method in BY_STOCK:
        packed = packed_format(config_of(copy), "it")
        assert (packed is None) == (method in BY_STOCK)
        return
    message = refusal(copy)
    assert method in message and ("take one of gptq, awq, " in message or "take the original checkpoint" in message)


def test_weights_in_shards_and_in_the_makers_own_form_beside_them_are_served(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    weights = load_file(copy / WEIGHTS)
    sharded(copy)
    for name in ("consolidated.safetensors", "model.gguf", "pytorch_model.bin", "params.json"):
        (copy / name).write_bytes(b"another form")
    loaded_weights = loaded_of(copy, compile=False).model.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in loaded_weights.items())


def test_a_gguf_file_is_named_as_such(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert refusal(file).startswith("FOLDER cannot be read: ")
    file.write_bytes(b"<html>")
    assert refusal(file) == "FOLDER does not begin as a GGUF file: download it again"


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM


class OwnConfig(LlamaConfig):
    model_type = "own_kind"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_that_comes_with_a_model_runs_where_it_is_trusted_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    named = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    copy = edited(folder, tmp_path / "copy", model_type="own_kind", auto_map=named, architectures=["OwnForCausalLM"])
    (copy / "own.py").write_text(OWN)
    assert "without the Python code that comes with it" in refusal(copy)
    model = loaded_of(copy, compile=False, trust_remote_code=True).model
    assert type(model).__name__ == "OwnForCausalLM"
    (copy / WEIGHTS).unlink()
    save_file({"model.norm.weight": load_file(folder / WEIGHTS)["model.norm.weight"]}, copy / WEIGHTS)
    assert "lacks 20 tensors of OwnForCausalLM" in refusal(copy, trust_remote_code=True)
