"""Which kind of model a config describes, or in one line why that kind is not served."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from baton.core.errors import LoadError
from baton.loader.folder import CONFIG, ORIGINAL

log = logging.getLogger("baton.model")

TRUST = "look at it, then run it with --trust-remote-code"
LIBRARY = f"transformers {transformers.__version__}"
_CAUSAL = "only models that continue a text (causal language models) are served"


def check_type(said: Mapping[str, Any], source: str) -> None:
    kind = said.get("model_type")
    if kind in CONFIG_MAPPING:
        return
    if "auto_map" in said:
        raise LoadError(f"{source} could not be loaded without the Python code that comes with it: {TRUST}")
    if kind is None:
        raise LoadError(
            f"{source}: {CONFIG} could not be loaded: it names no model_type, so it is no transformers model"
        )
    raise LoadError(
        f"{source} could not be loaded: model_type {str(kind)[:80]!r} is not known to {LIBRARY}; a newer one may know"
        " it (pip install -U transformers)"
    )


def check_quantized(said: Mapping[str, Any], source: str) -> None:
    how = said.get("quantization_config") or {}
    if not isinstance(how, Mapping):
        raise LoadError(f"{source}: quantization_config in {CONFIG} is no JSON object: {ORIGINAL}")
    method, of_mlx = how.get("quant_method"), said.get("quantization") or {}
    of_bits = how.get("load_in_4bit") or how.get("load_in_8bit")
    if method is None and not of_bits and (how or of_mlx):
        if "bits" in how or "bits" in of_mlx:
            raise LoadError(f"{source} is quantized for MLX, which is not read here: {ORIGINAL}")
        raise LoadError(f"{source}: quantization_config in {CONFIG} names no quant_method: {ORIGINAL}")
    known = {name.removesuffix("_4bit").removesuffix("_8bit") for name in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method is not None and method not in known:
        raise LoadError(f"{source} is quantized by {str(method)[:80]!r}, which {LIBRARY} does not read: {ORIGINAL}")


def check_class(config: Any, source: str) -> None:
    """Raises LoadError if a config's model does not continue text, or if the config says that its weights do not."""
    said = config.architectures
    names = [name for name in (said if isinstance(said, list) else [said]) if isinstance(name, str)]
    named = ", ".join(names)
    said = f" ({named})" if named else ""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        what = "takes images or sound beside text" if of_text(config) else "is no causal language model"
        what = "is an encoder-decoder" if config.is_encoder_decoder else what
        hint = "; take the text model that it was made from" if of_text(config) else ""
        raise LoadError(f"{source} could not be loaded: {config.model_type}{said} {what}, and {_CAUSAL}{hint}")
    of_config: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    target = of_config[0] if isinstance(of_config, tuple) else of_config
    if config.is_encoder_decoder and target.__name__ not in names:
        raise LoadError(f"{source} could not be loaded: {config.model_type}{said} is an encoder-decoder, and {_CAUSAL}")
    if of_text(config) and any(name.endswith("ForConditionalGeneration") for name in names):
        log.warning("%s is a %s: its text part is served, images and sound are not", source, named)
        return
    if not named or target.__name__ in names or any(_continues(name) for name in names):
        return
    # A bare model is complete if its embedding is its head too; its tensors decide that.
    if _bare(config) not in names:
        raise LoadError(f"{source} holds the weights of {named}, not of {target.__name__}: {_CAUSAL}")


def _bare(config: Any) -> str | None:
    """The name of a config's model without any head."""
    of_config: Any = MODEL_MAPPING.get(type(config), None)
    return getattr(of_config[0] if isinstance(of_config, tuple) else of_config, "__name__", None)


def _continues(name: str) -> bool:
    """Whether a class of this name is a causal language model, by the names that these have."""
    return name.endswith(("ForCausalLM", "LMHeadModel", "WithLMHead"))


def of_text(config: Any) -> bool:
    """Whether this is a model of several kinds of input with a part for text."""
    return config.get_text_config() is not config
