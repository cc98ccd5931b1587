"""GGUF files: made once into a folder in transformers' form, in which linear layers keep the file's own blocks.

Config, tokenizer and the names of tensors are read by transformers and the package gguf. The folder is in the cache, so
a second start reads it alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from baton.core.errors import LoadError
from baton.loader.folder import CONFIG, INDEX, gguf_of
from baton.loader.gguf_blocks import FORM, KINDS, METHOD
from baton.loader.hub import Place, find

try:
    import gguf
except ImportError:  # the extra `gguf`
    gguf = None  # type: ignore[assignment]

log = logging.getLogger("baton.model")

VERSION = 1
ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What is compared with transformers' own reading. Others may need more of the file than transformers reads."""
_ORIGINAL = "take the original checkpoint, with --quantize int4"
_SHARD_BYTES = 1 << 30
# What would change a model's results, and transformers does not read.
_NOT_READ = ("rope.scaling.", "attention.sliding_window")


def place_of(source: str, *, code: bool = False) -> Place:
    """As `hub.find`; also of a GGUF file, which is then made into a folder. Raises LoadError."""
    file = gguf_of(source)
    return find(source, code=code) if file is None else Place(source, folder_of(file))


def folder_of(file: Path) -> Path:
    """The folder in the cache that was made of this file, or is made now. Raises LoadError."""
    about = file.stat()
    told = f"{VERSION} {file.resolve()} {about.st_size} {about.st_mtime_ns}"
    digest = hashlib.blake2b(told.encode(errors="surrogateescape"), digest_size=8).hexdigest()
    folder = _cache() / f"{file.stem}-{digest}"
    if (folder / CONFIG).exists():
        return folder
    if gguf is None:
        raise LoadError(f"{file} is a GGUF file, which needs: pip install gguf")
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    log.warning("%s is made into %s, once", file.name, folder)
    try:
        part.mkdir(parents=True)
        _make(file, part)
        part.rename(folder)
    except LoadError:
        raise
    except OSError as error:
        if not (folder / CONFIG).exists():  # else another process was faster
            raise LoadError(f"{file} cannot be made into {folder}: {error.strerror or error}") from error
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise LoadError(f"{file} cannot be read: {type(error).__name__}: {why}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton" / "gguf"


def _make(file: Path, folder: Path) -> None:
    reader = gguf.GGUFReader(file)
    architecture = _architecture(reader)
    _check(reader, architecture, file)
    config: Any = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    if config.model_type != architecture:
        raise LoadError(f"{file} is read as {config.model_type} and says {architecture}: {_ORIGINAL}")
    config.dtype = torch.bfloat16
    if (dim := _number(reader, f"{architecture}.attention.key_length")) is not None:
        config.head_dim = dim  # transformers takes the family's default
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kinds: Counter[str] = Counter()
    shards: dict[str, str] = {}
    room: dict[str, Tensor] = {}

    def flush() -> None:
        if room:
            name = f"model-{len(set(shards.values())) + 1:05}.safetensors"
            save_file(room, folder / name)
            shards.update(dict.fromkeys(room, name))
            room.clear()

    for name, tensor in _tensors(reader, model, config, file):
        room[name] = tensor
        if name.endswith(".kind"):
            kinds[KINDS[int(tensor)].name] += 1
        if sum(one.nbytes for one in room.values()) >= _SHARD_BYTES:
            flush()
    flush()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).save_pretrained(folder)
    config.architectures = [type(model).__name__]
    said = json.loads(config.to_json_string())
    if kinds:
        told = ", ".join(f"{count} layers in {kind}" for kind, count in kinds.most_common())
        said["quantization_config"] = {"quant_method": METHOD, "form": FORM, "kinds": told}
    (folder / CONFIG).write_text(json.dumps(said, indent=1))


def _number(reader: Any, key: str) -> int | None:
    field = reader.fields.get(key)
    return None if field is None else int(field.parts[field.data[0]][0])


def _architecture(reader: Any) -> str:
    field = reader.fields.get("general.architecture")
    return "" if field is None else str(bytes(field.parts[field.data[0]]), "utf-8", "replace")


def _check(reader: Any, architecture: str, file: Path) -> None:
    """Raises LoadError for a file of which more matters than is read."""
    if architecture not in ARCHITECTURES:
        raise LoadError(
            f"{file} is GGUF of the architecture {architecture[:40]!r}, and read are {', '.join(ARCHITECTURES)}:"
            f" {_ORIGINAL}"
        )
    odd = [key for key in reader.fields if key.startswith(tuple(f"{architecture}.{part}" for part in _NOT_READ))]
    odd += [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_freqs")]
    if odd:
        raise LoadError(
            f"{file} has {', '.join(odd[:3])}, which {architecture} needs and transformers does not read: {_ORIGINAL}"
        )


def _tensors(reader: Any, model: nn.Module, config: Any, file: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors by the names that transformers has for them; a linear layer's blocks as they are."""
    processor = TENSOR_PROCESSORS.get(config.model_type, TensorProcessor)(config=config.to_dict())  # type: ignore[no-untyped-call]
    names = get_gguf_hf_weights_map(model, processor)
    missing = set(model.state_dict()) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name not in missing:
            raise LoadError(f"{file} has {tensor.name}, which {type(model).__name__} does not: it is not read")
        missing.discard(name)
        kind, layer = int(tensor.tensor_type), name.removesuffix(".weight")
        if name.endswith(".weight") and isinstance(model.get_submodule(layer), nn.Linear) and kind not in _PLAIN:
            if kind not in KINDS:
                known = ", ".join(one.name for one in KINDS.values())
                raise LoadError(
                    f"{file} has {tensor.name} in {tensor.tensor_type.name}, which is not read: {known} are"
                )
            rows = np.asarray(tensor.data).reshape(int(tensor.shape[-1]), -1)
            yield f"{layer}.blocks", _copied(processor.process(rows, tensor.name).weights)
            yield f"{layer}.kind", torch.tensor([kind], dtype=torch.int32)
            continue
        numbers = tensor.data if kind in (0, 1) else gguf.dequantize(tensor.data, tensor.tensor_type)
        yield name, _copied(processor.process(numbers, tensor.name).weights)
    if missing:
        raise LoadError(f"{file} has no {', '.join(sorted(missing)[:3])}: it is not whole")


# F32, F16 and BF16.
_PLAIN = (0, 1, 30)


def _copied(numbers: Any) -> Tensor:
    """Its own memory, because the file's is only mapped for reading."""
    return torch.from_numpy(np.array(numbers, order="C"))
