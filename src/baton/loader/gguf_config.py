"""The config of a GGUF file: one table of architectures, and what each says otherwise than the rest.

A key that means more than is read here is refused by name, because the model would be another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from baton.core.errors import LoadError
from baton.loader.gguf_rotation import rotation

_EMBEDDING = "token_embd.weight"
_ORIGINAL = "take the original checkpoint, with --quantize int4"

Told = Mapping[str, Any]
"""What the file says of its architecture, by keys without the architecture's name."""


@dataclass(frozen=True, slots=True)
class Family:
    """`model_type`: transformers' name. `keys`: further ones, and what the config calls them.

    `turned`: whether rows of queries and keys lie as llama.cpp rotates them. `norms_plus_one`: whether norms are stored
    with one added. `partial`: whether only a part of each head may be rotated. `more`: what is computed from the file's
    words and the config so far.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    turned: bool = False
    norms_plus_one: bool = False
    partial: bool = False
    more: Callable[[Told, dict[str, Any]], dict[str, Any]] | None = None


_SIZES = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
_EPSILONS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
# Read elsewhere, or without a meaning for the results.
_KNOWN = {
    "attention.key_length",
    "attention.value_length",
    "vocab_size",
    "rope.dimension_count",
    "rope.freq_base",
    "tensor_data_layout",
    "attention.causal",
}
_GRANITE = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}
_GEMMA = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}


def _gemma(layers_of_27b: int) -> Callable[[Told, dict[str, Any]], dict[str, Any]]:
    """Scales of attention are in no key: llama.cpp, too, knows the model with another one by its layers."""

    def scalar(told: Told, config: dict[str, Any]) -> dict[str, Any]:
        odd = config["num_hidden_layers"] == layers_of_27b
        of = config["hidden_size"] // config["num_attention_heads"] if odd else config["head_dim"]
        return {"query_pre_attn_scalar": of}

    return scalar


def _gemma3(told: Told, config: dict[str, Any]) -> dict[str, Any]:
    of_windows = {"rope_type": "default", "rope_theta": float(told.get("rope.freq_base_swa", 1e4))}
    turns = {"full_attention": config["rope_parameters"], "sliding_attention": of_windows}
    return {**_gemma(62)(told, config), "rope_parameters": turns}


def _gpt_oss(told: Told, config: dict[str, Any]) -> dict[str, Any]:
    """The bounds of its scaled rotation are not rounded, as in its author's config; llama.cpp rounds them."""
    turns = config["rope_parameters"]
    return {"rope_parameters": {**turns, "truncate": False}} if turns["rope_type"] == "yarn" else {}


def _experts(count: str, inside: str = "moe_intermediate_size") -> dict[str, str]:
    """`inside`: what the config calls the width of an expert; "": as that of a dense layer."""
    return {
        "expert_count": count,
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": inside,
    }


# A llama with experts.
_MIXTRAL = Family("mixtral", keys=_experts("num_local_experts", ""), turned=True)
FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", turned=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "smollm3": Family("smollm3", turned=True),
    "granite": Family("granite", keys=_GRANITE, turned=True),
    "olmo2": Family("olmo2"),
    "phi3": Family("phi3", keys={"attention.sliding_window": "sliding_window"}, partial=True),
    "starcoder2": Family("starcoder2", keys={"attention.layer_norm_epsilon": "norm_epsilon"}),
    "gemma2": Family("gemma2", keys=_GEMMA, norms_plus_one=True, more=_gemma(46)),
    "gemma3": Family("gemma3_text", keys={**_GEMMA, "rope.freq_base_swa": ""}, norms_plus_one=True, more=_gemma3),
    "qwen2moe": Family(
        "qwen2_moe",
        keys={
            **_experts("num_experts"),
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
        },
    ),
    # Its weights of experts are divided by their sum, which no key says.
    "qwen3moe": Family("qwen3_moe", keys=_experts("num_experts"), more=lambda told, config: {"norm_topk_prob": True}),
    "olmoe": Family("olmoe", keys=_experts("num_experts", "")),
    "granitemoe": Family("granitemoe", keys={**_GRANITE, **_experts("num_local_experts", "")}, turned=True),
    "gpt-oss": Family(
        "gpt_oss",
        keys={**_experts("num_local_experts", ""), "attention.sliding_window": "sliding_window"},
        more=_gpt_oss,
    ),
}
"""By GGUF's names."""


def family_of(architecture: str, model_type: str = "") -> Family | None:
    """The family of a file. `model_type`: transformers' name where it is known already."""
    return _MIXTRAL if model_type == _MIXTRAL.model_type else FAMILIES.get(architecture)


def config_of(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], factors: Any) -> dict[str, Any]:
    """A file's config in transformers' words. Raises LoadError for a file that says more than is read.

    `shapes`: of all tensors, inputs first. `factors`: those of its rotation, or None.
    """
    architecture = str(metadata.get("general.architecture"))
    experts = architecture == "llama" and f"{architecture}.expert_count" in metadata
    family = family_of(architecture, _MIXTRAL.model_type if experts else "")
    if family is None:
        raise LoadError(
            f"is GGUF of the architecture {architecture[:40]!r}, and read are {', '.join(FAMILIES)}: {_ORIGINAL}"
        )
    told = {key.partition(".")[2]: value for key, value in metadata.items() if key.startswith(f"{architecture}.")}
    names = {**_SIZES, **_EPSILONS, **family.keys}
    odd = sorted(key for key in told if key not in names and key not in _KNOWN and not key.startswith("rope.scaling."))
    if odd or any(isinstance(told.get(key), list) for key in names):
        what = ", ".join(f"{architecture}.{key}" for key in odd[:3]) or "layers of several sizes"
        raise LoadError(f"has {what}, which is not read: {_ORIGINAL}")
    absent = [key for key in _SIZES if key not in told and key != "attention.head_count_kv"]
    if absent or _EMBEDDING not in shapes:
        raise LoadError(f"has no {absent[0] if absent else _EMBEDDING}, so it is not whole: download it again")
    config: dict[str, Any] = {"model_type": family.model_type}
    config |= {name: told[key] for key, name in names.items() if name and key in told}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config["vocab_size"] = shapes[_EMBEDDING][1]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config |= _biases(family, shapes)
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        config[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{key}_token_id")
    config |= _heads(told, config, family, factors)
    return config if family.more is None else {**config, **family.more(told, config)}


def _heads(told: Told, config: Mapping[str, Any], family: Family, factors: Any) -> dict[str, Any]:
    """The size of a head, and how it is turned. Raises LoadError if heads are of another kind than here."""
    size = int(told.get("attention.key_length", config["hidden_size"] // config["num_attention_heads"]))
    turned = int(told.get("rope.dimension_count", size))
    if told.get("attention.value_length", size) != size or told.get("attention.causal") is False:
        raise LoadError(f"has heads or attention of another kind than {family.model_type} here: {_ORIGINAL}")
    if turned != size and not family.partial:
        raise LoadError(
            f"turns {turned} of {size} numbers of a head, which is not read for {family.model_type}: {_ORIGINAL}"
        )
    return {"head_dim": size, "rope_parameters": rotation(told, turned, size, factors)}


def _biases(family: Family, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Whether layers have biases shows by their tensors alone."""
    if family.model_type not in ("llama", "granite", "smollm3", "starcoder2"):
        return {}
    of_attention, of_ffn = "blk.0.attn_q.bias" in shapes, "blk.0.ffn_up.bias" in shapes
    if family.model_type == "starcoder2":
        return {"use_bias": of_attention}
    return {"attention_bias": of_attention, "mlp_bias": of_ffn}
