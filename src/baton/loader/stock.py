"""A stock model from its folder: config, tokenizer and weights, or in one line why it is not served.

Nothing is served at random: weights that are missing or of other shapes, and leftovers that show another model, are
refused by name. The folder's config does not choose code: attention and experts are computed in our ways.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from baton.core.errors import LoadError
from baton.loader.checkpoint import Stored, few, shards, stored, uneven
from baton.loader.folder import CONFIG, check_adapter, check_names, read_json, weights_in
from baton.loader.hub import Place
from baton.loader.kind import LIBRARY, TRUST, check_class, check_quantized, check_type
from baton.loader.packed_format import PackedFormat
from baton.loader.quantizer import PackedConfig
from baton.loader.whole import check_left_over, check_numbers, check_whole, tell_of_ties

log = logging.getLogger("baton.model")

_OF_TOKENIZERS = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}
# Packages that read a SentencePiece model, and the names under which they are imported.
_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}


def read_config(place: Place, *, trust_remote_code: bool) -> Any:
    """Returns a model's stock config. Raises LoadError if its folder or its config shows that it is not served."""
    with _in_one_line(place, "its config"):
        names, source = place.names, place.source
        check_names(names, source, place.folder)
        check_adapter(place.folder, names, source)
        said = read_json(place.folder, CONFIG, source)
        code = trust_remote_code and "auto_map" in said
        if not code:
            check_type(said, source)
        for part in (said, said.get("text_config")):
            if isinstance(part, dict):
                check_quantized(part, source)
        weights_in(names, said, source)
        config = AutoConfig.from_pretrained(str(place.folder), trust_remote_code=trust_remote_code)
        # Otherwise a folder could make transformers fetch code from the hub and run it.
        config._attn_implementation = None
        config._experts_implementation = None
        if getattr(config, "fusion_config", None) is not None:
            config.fusion_config = None
        if not code:
            check_class(config, source)
        return config


def read_tokenizer(place: Place, *, trust_remote_code: bool) -> Any:
    """A model's stock tokenizer. Raises LoadError."""
    with _in_one_line(place, "its tokenizer"):
        try:
            return AutoTokenizer.from_pretrained(str(place.folder), trust_remote_code=trust_remote_code)
        except Exception as error:
            names = place.names
            for name in sorted(names & _OF_TOKENIZERS):
                read_json(place.folder, name, place.source)
            needed = [name for name, module in _SENTENCEPIECE.items() if not _installed(module)]
            of_code = "trust_remote_code" in str(error)
            if needed and not of_code and "tokenizer.json" not in names and any(n.endswith(".model") for n in names):
                raise LoadError(
                    f"{place.source} has its tokenizer as a SentencePiece model without tokenizer.json, which needs:"
                    f" pip install {' '.join(needed)}"
                ) from error
            raise


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def read_model(
    place: Place, config: Any, *, dtype: str, trust_remote_code: bool, packed: PackedFormat | None = None
) -> PreTrainedModel:
    """Returns a model with all its weights. Raises LoadError if weights are missing or belong to another model.

    `packed`: the format in which its linear layers stay packed; None if transformers loads them its own way.
    """
    with _in_one_line(place, "the model"):
        source, folder = place.source, place.folder
        tensors = _stored_in(place)
        parts = (config, config.get_text_config())
        if all(getattr(part, "quantization_config", None) is None for part in parts):
            check_numbers(tensors, source)
        try:
            if packed is not None and packed.left_to_stock(tensors):
                packed = None
            how = {} if packed is None else {"quantization_config": _of_ours(config, packed, tensors)}
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                config=config,
                **how,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except RuntimeError as error:
            odd = uneven(tensors)
            if odd:
                raise LoadError(f"{source}: its experts cannot be put together: {few(odd, 2)}") from error
            raise
        model, info = loaded
        check_whole(model, info, tensors, source)
        check_left_over(model, config, sorted(info["unexpected_keys"]), tensors, source)
        tell_of_ties(model, source)
        return model  # type: ignore[no-any-return]


def _stored_in(place: Place) -> dict[str, Stored]:
    """All tensors of a checkpoint, downloaded if they are not there. Raises LoadError."""
    source, folder = place.source, place.folder
    file = weights_in(place.names, read_json(folder, CONFIG, source), source)
    place.bring([file])
    files = shards(folder, file, source) if file.endswith(".json") else {file: []}
    place.bring(files)
    return stored(folder, files, source)


def stored_bytes(place: Place) -> int | None:
    """Bytes of a checkpoint's tensors; None if they would have to be downloaded. Raises LoadError."""
    return None if place.listed is not None else sum(one.bytes for one in _stored_in(place).values())


def _of_ours(config: Any, packed: PackedFormat, tensors: dict[str, Stored]) -> PackedConfig:
    """Takes the checkpoint's own quantizer out of its config, in which transformers would look for it first."""
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    return PackedConfig(packed, tensors)


def build(place: Place, config: Any, *, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    """A model of this config on torch's meta device, without weights. Raises LoadError."""
    with _in_one_line(place, "the model"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(  # type: ignore[no-any-return]
            config, dtype=dtype, trust_remote_code=trust_remote_code
        ).eval()


def tell_of_tokens(tokenizer: Any, vocabulary: int, source: str) -> None:
    """Logs tokens that the tokenizer knows and the model does not; prompts with them are refused."""
    if len(tokenizer) <= vocabulary:
        return
    beyond = sorted((number, name) for name, number in tokenizer.get_vocab().items() if number >= vocabulary)
    names = [name for _, name in beyond]
    log.warning(
        "%s: its tokenizer has %d tokens beyond the model's %d, and prompts with them are refused: %s",
        source,
        len(names),
        vocabulary,
        few(names),
    )


@contextmanager
def _in_one_line(place: Place, what: str) -> Iterator[None]:
    """Turns what libraries raise into LoadError."""
    try:
        yield
    except LoadError as error:
        if not place.cached:
            raise
        raise LoadError(f"{error.message} (so it is in the cache: with network it is completed)") from error
    except Exception as error:
        raise LoadError(f"{place.source}: {what} could not be loaded: {_words(error, place)}") from error


def _words(error: Exception, place: Place) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return f"it needs the Python code that comes with it: {TRUST}"
    if isinstance(error, KeyError) and error.args and error.args[0] in _rope_types(place):
        known = ", ".join(["default", *ROPE_INIT_FUNCTIONS])
        return f"its rope type {error.args[0]!r} is not known to {LIBRARY}: known are {known}"
    own = isinstance(error, (ValueError, OSError, ImportError, RuntimeError))
    return (text if own and text else f"{type(error).__name__}: {text}")[:300]


def _rope_types(place: Place) -> set[str]:
    """The names of rotation types that a config has, wherever they stand."""
    kinds, todo = set(), [read_json(place.folder, CONFIG, place.source)]
    while todo:
        one = todo.pop()
        todo.extend(value for value in one.values() if isinstance(value, dict))
        kinds |= {str(one[key]) for key in ("type", "rope_type") if key in one}
    return kinds
