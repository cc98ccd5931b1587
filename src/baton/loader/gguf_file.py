"""GGUF files: made once into a folder in transformers' form, in which linear layers keep the file's own blocks.

Names of tensors are the package gguf's, and the tokenizer is read by transformers. The folder is in the cache, so that
a second start reads it alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

from baton.core.errors import LoadError
from baton.core.files import user_cache
from baton.loader.folder import CONFIG, INDEX
from baton.loader.gguf_blocks import FORM, KINDS, METHOD
from baton.loader.gguf_config import Family, config_of, family_of
from baton.loader.gguf_experts import Experts, experts_of, name_of, router_of, rows_of
from baton.loader.gguf_tokenizer import end_tokens, tokenizer_of
from baton.loader.hub import Place, find, gguf_files

try:
    import gguf
except ImportError:  # the extra `gguf`
    gguf = None  # type: ignore[assignment]

log = logging.getLogger("baton.model")

VERSION = 2
_SHARD_BYTES = 1 << 30
_ALONE_BYTES = 16 << 20
_PIECE_NUMBERS = 1 << 20
_FACTORS = "rope_freqs.weight"
_EMBEDDING, _HEAD = "token_embd.weight", "lm_head"
# By ggml's numbers: what is kept as numbers, and how. Others are blocks, or are unpacked to float32.
_PLAIN = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}


def place_of(source: str, *, code: bool = False) -> Place:
    """As `hub.find`; also of GGUF files, which are then made into a folder. Raises LoadError."""
    files = gguf_files(source)
    return find(source, code=code) if files is None else Place(source, folder_of(*files))


def folder_of(*files: Path) -> Path:
    """The folder in the cache that was made of a file, or of a split one's parts, or is made now. Raises LoadError."""
    file, told = files[0], str(VERSION)
    for one in files:
        about = one.stat()
        told += f" {one.resolve()} {about.st_size} {about.st_mtime_ns}"
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
        _make(files, part)
        part.rename(folder)
    except LoadError as error:
        raise LoadError(f"{file} {error.message}") from error
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
    return (user_cache() or Path(tempfile.gettempdir()) / "baton") / "gguf"


def _make(files: Sequence[Path], folder: Path) -> None:
    readers = [gguf.GGUFReader(file) for file in files]
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    metadata = {key: field.contents() for key, field in readers[0].fields.items()}
    factors = next((tensor.data for tensor in tensors if tensor.name == _FACTORS), None)
    said = config_of(metadata, {one.name: tuple(map(int, one.shape)) for one in tensors}, factors)
    if len({one.name for one in tensors}) < metadata.get("split.tensors.count", 0):
        raise LoadError("is a part of a split model, and other parts are missing: give them beside it")
    config: Any = AutoConfig.for_model(**said)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    made = _Folder(folder)
    for name, tensor in _tensors(tensors, model, config, metadata["general.architecture"]):
        made.add(name, tensor)
    made.flush()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": made.shards}))
    tokenizer_of(files[0], metadata).save_pretrained(folder)
    ends = {"eos_token_id": end_tokens(metadata)}
    (folder / "generation_config.json").write_text(json.dumps({key: some for key, some in ends.items() if some}))
    _write_config(folder, config, model, made)


def _write_config(folder: Path, config: Any, model: nn.Module, made: _Folder) -> None:
    """Last, because a folder with a config is whole."""
    config.architectures = [type(model).__name__]
    # Linear layers without blocks decide; what was unpacked is bfloat16 at work, as the model's author had it.
    config.dtype = torch.float16 if made.plain[torch.float16] > sum(made.kinds.values()) else torch.bfloat16
    said = json.loads(config.to_json_string())
    if made.has_head:
        said["tie_word_embeddings"] = False
    if made.kinds:
        told = ", ".join(f"{count} layers in {kind}" for kind, count in made.kinds.most_common())
        said["quantization_config"] = {"quant_method": METHOD, "form": FORM, "kinds": told}
    (folder / CONFIG).write_text(json.dumps(said, indent=1))


class _Folder:
    """Writes tensors into shards. `kinds`: how many layers are in each form; `plain`: and in each number format."""

    def __init__(self, folder: Path) -> None:
        self.shards: dict[str, str] = {}
        self.kinds: Counter[str] = Counter()
        self.plain: Counter[torch.dtype] = Counter()
        self.has_head = False
        self._folder = folder
        self._room: dict[str, Tensor] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        # A file is mapped as long as something of it is, and blocks are for longer than numbers that are converted.
        alone = tensor.nbytes >= _ALONE_BYTES and not name.endswith(("blocks", "kind"))
        if alone:
            self.flush()
        self._room[name] = tensor
        self.has_head = self.has_head or name.startswith(f"{_HEAD}.")
        if name.endswith((".kind", "_kind")):
            self.kinds[KINDS[int(tensor.flatten()[0])].name] += 1
        elif tensor.ndim > 1 and not name.endswith(("blocks", "bias")):
            self.plain[tensor.dtype] += 1
        if alone or sum(one.nbytes for one in self._room.values()) >= _SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._room:
            name = f"model-{len(set(self.shards.values())) + 1:05}.safetensors"
            save_file(self._room, self._folder / name)
            self.shards.update(dict.fromkeys(self._room, name))
            self._room.clear()


def _tensors(tensors: Sequence[Any], model: nn.Module, config: Any, architecture: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors by the names that transformers has for them; a linear layer's blocks as they are.

    An embedding that is the head too becomes both: numbers to look up, and blocks to multiply with.
    """
    family = family_of(architecture, config.model_type)
    assert family is not None
    experts = experts_of(model)
    names = get_gguf_hf_weights_map(model, TensorProcessor(), architecture, config.num_hidden_layers)
    missing = set(model.state_dict()) - ({f"{_HEAD}.weight"} if config.tie_word_embeddings else set())
    for tensor in tensors:
        if tensor.name == _FACTORS:
            continue
        of_experts = _of_experts(tensor, experts)
        if of_experts is not None:
            missing.discard(name_of(tensor.name, experts))
            yield from of_experts
            continue
        # Numbers of attention that are no layer's weight are called so all the same.
        name = names.get(tensor.name) or names.get(tensor.name.removesuffix(".weight"))
        name = name or router_of(tensor.name, model, experts)
        if name not in missing:
            raise LoadError(f"has {tensor.name}, which {type(model).__name__} does not: it is not read")
        missing.discard(name)
        layer = name.removesuffix(".weight")
        heads = _heads(family, tensor.name, config)
        if name.endswith(".weight") and isinstance(model.get_submodule(layer), nn.Linear):
            yield from _linear(tensor, layer, heads)
            continue
        if tensor.name == _EMBEDDING and config.tie_word_embeddings and int(tensor.tensor_type) in KINDS:
            yield from _linear(tensor, _HEAD, 0)
        numbers = _numbers(tensor)
        yield name, numbers - 1 if family.norms_plus_one and "norm" in tensor.name else _in_halves(numbers, heads)
    if missing:
        raise LoadError(f"has no {', '.join(sorted(missing)[:3])}: it is not whole")


def _of_experts(tensor: Any, experts: Experts) -> Iterator[tuple[str, Tensor]] | None:
    """The tensors of experts that are whole with this one, as they are in the file; None if it is none of experts."""
    if name_of(tensor.name, experts) is None:
        return None
    kind = int(tensor.tensor_type)
    if len(tensor.shape) < 3 or kind in _PLAIN:
        return experts.take(tensor.name, None, _numbers(tensor))
    _must_be_known(tensor)
    return experts.take(tensor.name, kind, _copied(rows_of(tensor)))


def _linear(tensor: Any, layer: str, heads: int) -> Iterator[tuple[str, Tensor]]:
    kind = int(tensor.tensor_type)
    if kind in _PLAIN:
        yield f"{layer}.weight", _in_halves(_numbers(tensor), heads)
        return
    _must_be_known(tensor)
    rows = np.asarray(tensor.data).reshape(int(tensor.shape[-1]), -1)
    yield f"{layer}.blocks", _in_halves(_copied(rows), heads)
    yield f"{layer}.kind", torch.tensor([kind], dtype=torch.int32)


def _must_be_known(tensor: Any) -> None:
    if int(tensor.tensor_type) not in KINDS:
        known = ", ".join(one.name for one in KINDS.values())
        raise LoadError(f"has {tensor.name} in {tensor.tensor_type.name}, which is not read: {known} are")


def _heads(family: Family, name: str, config: Any) -> int:
    """How many heads the rows of a tensor have that are to be put in order; 0 for none."""
    of = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return int(of.get(name.split(".")[-2], 0)) if family.turned else 0


def _in_halves(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp rotates neighbours, and transformers the two halves of a head."""
    if not heads:
        return rows
    by_head: Tensor = rows.unflatten(0, (heads, -1, 2))
    return by_head.transpose(1, 2).reshape(rows.shape).contiguous()


def _numbers(tensor: Any) -> Tensor:
    kind, shape = int(tensor.tensor_type), tuple(int(size) for size in reversed(tensor.shape))
    if kind in _PLAIN:
        return _copied(tensor.data).view(_PLAIN[kind]).reshape(shape)
    # In pieces, because what an embedding is unpacked by would take several times its own room.
    rows = np.asarray(tensor.data).reshape(shape[0] if len(shape) > 1 else 1, -1)
    numbers = np.empty((len(rows), math.prod(shape) // len(rows)), np.float32)
    step = max(1, _PIECE_NUMBERS // numbers.shape[1])
    for first in range(0, len(rows), step):
        numbers[first : first + step] = gguf.dequantize(rows[first : first + step], tensor.tensor_type)
    return torch.from_numpy(numbers).reshape(shape)


def _copied(numbers: Any) -> Tensor:
    """Its own memory, because the file's is only mapped for reading."""
    return torch.from_numpy(np.array(numbers, order="C"))
