"""Recognises a model's folder by the names of its files and their first bytes, before any library reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from baton.core.errors import LoadError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ORIGINAL = "take the original checkpoint, with .safetensors files"
_SAVE = "save the model there with save_pretrained()"
_CONVERT = "convert it once: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"

# A file that identifies the folder, what the folder then is, and what to do. The first one that exists counts.
_KINDS = (
    ("model_index.json", "a diffusers pipeline (model_index.json)", "it makes no text and is not served"),
    (
        "modules.json",
        "a sentence-transformers model (modules.json)",
        "it makes embeddings, no text, and is not served",
    ),
    (".metadata", "a distributed checkpoint (.metadata), which only pickle can read", "merge it into .safetensors"),
    ("mlc-chat-config.json", "compiled for MLC", ORIGINAL),
)
# For folders without .safetensors of transformers' names: a pattern, what such a file holds, and what to do.
_FORMATS = (
    ("*.gguf", "GGUF weights", "give the path of one .gguf file, or ID:FORM, such as ID:Q4_K_M, from the hub"),
    ("*.safetensors.gz", "packed weights", "unpack them with gunzip"),
    ("consolidated*.safetensors", "weights in Mistral's own form", "take the checkpoint in transformers' form"),
    ("consolidated*.pth", "weights in Meta's own form", "take the checkpoint in transformers' form"),
    ("params.json", "a model in its maker's own form", "take the checkpoint in transformers' form"),
    ("model.*.safetensors", "weights of a variant only", f"rename them to {WHOLE}"),
    ("pytorch_model*.bin", "PyTorch pickles (.bin), which are not read here", _CONVERT),
    ("*.bin", "PyTorch pickles (.bin), which are not read here", _CONVERT),
    ("*.pth", "PyTorch pickles (.pth), which are not read here", _CONVERT),
    ("*.pt", "PyTorch pickles (.pt), which are not read here", _CONVERT),
    ("*.ckpt", "PyTorch pickles (.ckpt), which are not read here", _CONVERT),
    ("*.distcp", "a distributed checkpoint", "merge it into .safetensors"),
    ("tf_model.h5", "TensorFlow weights, which are not read here", ORIGINAL),
    ("flax_model*.msgpack", "Flax weights, which are not read here", ORIGINAL),
    ("openvino_model*.xml", "an OpenVINO model, which is not read here", ORIGINAL),
    ("*.onnx", "an ONNX model, which is not read here", ORIGINAL),
    ("*.engine", "a TensorRT engine, which is not read here", ORIGINAL),
    ("*.nemo", "a NeMo archive, which is not read here", ORIGINAL),
    ("*.npz", "NumPy arrays, which are not read here", ORIGINAL),
)
_TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json"}
_TOKENIZERS |= {"spiece.model", "sentencepiece.bpe.model"}
_OF_TRAINING = {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt"}
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
# First bytes of files that are not what their names say.
_BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself: run `git lfs pull` there"),
    (b"\x1f\x8b", "is packed by gzip: unpack it with gunzip"),
    (b"GGUF", "is a GGUF file under another name: name it .gguf, and give its path"),
    (b"PK\x03\x04", f"is a PyTorch pickle or an archive, which is not read here: {ORIGINAL}"),
    (b"\x80\x02", f"is a pickle, which is not read here: {ORIGINAL}"),
    (b"<!", "is a web page, not the file itself: download it again"),
    (b"<h", "is a web page, not the file itself: download it again"),
)


def local(source: str) -> Path | None:
    """Returns the folder that a model is in, or None for a hub id. Raises LoadError if it is neither."""
    folder = Path(source).expanduser()
    try:
        here = folder.exists()
    except (OSError, ValueError):
        here = False
    if here and not folder.is_dir():
        raise LoadError(file_is(folder, source))
    if here:
        return folder
    if folder.suffix.lower() == ".gguf":
        raise LoadError(file_is(folder, source))
    if "://" in source:
        raise LoadError(f"{source} is an address: give the model's hub id, {'/'.join(source.split('/')[3:5])}")
    if source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source:
        raise LoadError(f"{source}: no such folder")
    return None


def file_is(path: Path, source: str) -> str:
    """Why a file is not a model's folder, and what to do."""
    if path.suffix.lower() == ".gguf":
        return f"{source}: no such file"
    return f"{source} is a file: give the folder that holds {CONFIG} and the weights"


def names_in(folder: Path, source: str) -> frozenset[str]:
    """Names of the folder's files. Raises LoadError if it cannot be read, or if a link in it points to nothing."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise LoadError(f"{source} cannot be read: {error.strerror}") from error
    for path in sorted(paths):
        if path.suffix in (".json", ".safetensors", ".model") and path.is_symlink() and not path.exists():
            raise LoadError(f"{source}: {path.name} is a link that points to nothing: download the model again")
    return frozenset(path.name for path in paths)


def check_names(names: Collection[str], source: str, folder: Path | None = None) -> None:
    """Raises LoadError if the names of a model's files show that it is not served.

    `folder`: its place, if it is local.
    """
    for name, what, todo in _KINDS:
        if name in names:
            raise LoadError(f"{source} is {what}: {todo}")
    if ADAPTER in names:
        return  # Its content says what it adapts.
    if CONFIG not in names:
        raise LoadError(_without_config(names, source, folder))
    if not _TOKENIZERS & set(names):
        raise LoadError(f"{source} has no tokenizer: save it there with tokenizer.save_pretrained()")


def _without_config(names: Collection[str], source: str, folder: Path | None) -> str:
    if not names:
        return f"{source} is empty: give the folder that holds {CONFIG} and the weights"
    if f"{CONFIG}.gz" in names:
        return f"{source}: {CONFIG}.gz is packed: unpack it with gunzip"
    inside = _models_inside(folder) if folder else []
    if inside:
        return f"{source} has no {CONFIG}, but {inside[-1]} has: give that"
    below = [name.removesuffix(f"/{CONFIG}") for name in sorted(names) if name.endswith(f"/{CONFIG}")]
    if below:
        return f"{source} has no {CONFIG}, but its folder {below[-1]} has: download that, and give the folder"
    other = _other_format(names)
    return f"{source} {other}" if other else f"{source} has no {CONFIG}: {_SAVE}"


def _models_inside(folder: Path) -> list[str]:
    """Suggests a model inside a folder of models: their folders, or the names of cached hub models."""
    try:
        cached = [path for path in folder.iterdir() if path.name.startswith("models--")]
        if cached:
            return [path.name.removeprefix("models--").replace("--", "/") for path in sorted(cached)]
        return [str(path.parent) for depth in ("*", "snapshots/*") for path in sorted(folder.glob(f"{depth}/{CONFIG}"))]
    except OSError:
        return []


def _other_format(names: Collection[str]) -> str | None:
    for pattern, what, todo in _FORMATS:
        if any(fnmatch(name, pattern) for name in set(names) - _OF_TRAINING):
            return f"holds {what}: {todo}"
    return None


def weights_in(names: Collection[str], config: dict[str, Any], source: str) -> str:
    """The file of the weights or of their index, as transformers takes them. Raises LoadError if there is none."""
    named = config.get("transformers_weights")
    if named is not None:
        if named not in names or not str(named).endswith((".safetensors", ".safetensors.index.json")):
            raise LoadError(f"{source}: {CONFIG} names {str(named)[:80]!r} as its weights, which is no such file there")
        return str(named)
    for name in (WHOLE, INDEX):
        if name in names:
            return name
    if any(_SHARD.fullmatch(name) for name in names):
        raise LoadError(f"{source} has shards of weights, but {INDEX} is missing: download the model again")
    other = _other_format(names)
    if other:
        raise LoadError(f"{source} {other}")
    loose = sorted(name for name in names if name.endswith(".safetensors"))
    if loose:
        raise LoadError(f"{source} has neither {WHOLE} nor {INDEX}, only {loose[0]}: {_SAVE}")
    raise LoadError(f"{source} has no .safetensors file: {_SAVE}")


def beginning(head: bytes) -> str | None:
    """Returns what a file really is, if its first bytes show that it is not what it should be."""
    return next((what for start, what in _BEGINNINGS if head.startswith(start)), None)


def read_json(folder: Path, name: str, source: str) -> dict[str, Any]:
    """Returns the JSON object in this file. Raises LoadError that says what the file is instead."""
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise LoadError(f"{source}: {name} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise LoadError(f"{source}: {name} is empty: download the model again")
    wrong = beginning(content)
    if wrong:
        raise LoadError(f"{source}: {name} {wrong}")
    if content.startswith(b"\xef\xbb\xbf"):
        raise LoadError(f"{source}: {name} begins with a byte-order mark: save it as UTF-8 without one")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"{source}: {name} is not JSON and could not be loaded: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{source}: {name} holds no JSON object but a {type(value).__name__}")
    return value


def check_adapter(folder: Path, names: Collection[str], source: str) -> None:
    """Raises LoadError if this is an adapter, alone or beside a model."""
    if ADAPTER not in names:
        return
    base = read_json(folder, ADAPTER, source).get("base_model_name_or_path") or "another model"
    raise LoadError(
        f"{source} is an adapter of {str(base)[:200]} ({ADAPTER}), and adapters are not served: merge it into the model"
        " with peft's merge_and_unload() and save that"
    )
