"""Tiny models made from configs, with telling weights: their tokens vary and their logits show a wrong mask."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from baton.loader.selfcheck import use_reference_attention

VOCABULARY = 160
CONTEXT = 192
WINDOW = 12

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": CONTEXT}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LOCAL_MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GROUPED_MOE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
}

_MLA = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 8,
}
_GATED_DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + 0.05 * i for i in range(8)],
        "long_factor": [4.0 + 0.5 * i for i in range(8)],
        "factor": 4.0,
        "original_max_position_embeddings": 40,
    },
    "original_max_position_embeddings": 40,
}


@dataclass(frozen=True)
class Family:
    """A model family under test: the model type of transformers, and what its config has beside the common part.

    `since`: the version of transformers from which on stock itself is known to be right.
    """

    name: str
    model_type: str
    more: dict[str, Any] = field(default_factory=dict)
    since: str = ""


FAMILIES = (
    Family("llama", "llama"),
    Family("qwen3", "qwen3", {"head_dim": 16}),
    Family("mistral_window", "mistral", {"sliding_window": WINDOW}),
    # Six layers: five with a window, one without.
    Family(
        "gemma3",
        "gemma3_text",
        {"num_hidden_layers": 6, "head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    ),
    Family("gpt2", "gpt2", _GPT),
    Family("qwen3_moe", "qwen3_moe", {"head_dim": 16, **_MOE}),
    Family(
        "llama3_rope",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 48,
            }
        },
    ),
    Family("qwen2", "qwen2"),
    Family("qwen2_window", "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    Family("qwen2_moe", "qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 48}),
    Family("mixtral", "mixtral", _LOCAL_MOE),
    Family("gemma", "gemma", {"head_dim": 16}),
    Family("gemma2", "gemma2", {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    # By itself its config asks for a second embedding of 400 million parameters.
    Family(
        "gemma4",
        "gemma4_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
        },
    ),
    Family("phi", "phi"),
    Family("phi3", "phi3"),
    Family("phimoe", "phimoe", _LOCAL_MOE),
    Family("olmo2", "olmo2"),
    Family("olmo3", "olmo3", {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    Family("gpt_bigcode", "gpt_bigcode", _GPT),
    Family("gpt_neox", "gpt_neox"),
    Family("opt", "opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Family("granite", "granite"),
    Family("stablelm", "stablelm"),
    Family("smollm3", "smollm3", {"num_hidden_layers": 4}),
    Family("glm4", "glm4", {"head_dim": 16}),
    Family("cohere2", "cohere2", {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    Family("starcoder2", "starcoder2", {"sliding_window": WINDOW}),
    Family("apertus", "apertus", since="5.23.0"),
    Family("exaone4", "exaone4", {"num_hidden_layers": 4, "sliding_window": WINDOW}),
    Family(
        "llama4",
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_local_experts": 2,
            "attention_chunk_size": WINDOW,
            "attn_temperature_tuning": False,
        },
    ),
    # Its layers without rope count positions by the length of the cache.
    Family(
        "llama4_temperature",
        "llama4_text",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_local_experts": 2,
            "attention_chunk_size": WINDOW,
            "floor_scale": 7,
        },
    ),
    Family("gpt_oss", "gpt_oss", {"num_hidden_layers": 4, "head_dim": 16, "sliding_window": WINDOW, **_LOCAL_MOE}),
    Family("olmoe", "olmoe", _MOE),
    # Of four experts, one text comes to two whose numbers differ by 5e-7: any rounding decides between these.
    Family("granitemoe", "granitemoe", {**_LOCAL_MOE, "num_local_experts": 5}),
    # Two of four groups of experts are chosen first, and the first layer is dense.
    Family("glm4_moe", "glm4_moe", {"head_dim": 16, **_GROUPED_MOE}),
    Family(
        "gemma4_moe",
        "gemma4_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 48,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    Family(
        "gemma3n",
        "gemma3n_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
            "altup_num_inputs": 2,
            "layer_types": [*["sliding_attention"] * 2, "full_attention"] * 2,
            "intermediate_size": [96] * 6,
            "activation_sparsity_pattern": [0.0] * 6,
        },
    ),
    # Before, phi3 continues with only the newest token if a text crosses the original context.
    Family("phi3_longrope", "phi3", _LONGROPE, since="5.23.0"),
    Family("deepseek_v2", "deepseek_v2", {**_MLA, "topk_method": "greedy"}),
    Family("deepseek_v3", "deepseek_v3", _MLA),
    Family("mamba", "mamba", {"state_size": 8}),
    Family("mamba2", "mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "chunk_size": 8}),
    Family(
        "jamba",
        "jamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
            "use_mamba_kernels": False,
        },
    ),
    Family("bamba", "bamba", {"num_hidden_layers": 4, "attn_layer_indices": [1, 3], **_MAMBA2}),
    Family("falcon_h1", "falcon_h1", {"head_dim": 16, "mamba_d_ssm": 128, **_MAMBA2}),
    Family(
        "qwen3_next",
        "qwen3_next",
        {"shared_expert_intermediate_size": 48, **_GATED_DELTA, **_MOE},
    ),
    Family("qwen3_5", "qwen3_5_text", _GATED_DELTA, since="5.23.0"),
    Family(
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        {"shared_expert_intermediate_size": 48, **_GATED_DELTA, **_MOE},
        since="5.23.0",
    ),
    Family("lfm2", "lfm2", {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}),
    Family(
        "lfm2_moe",
        "lfm2_moe",
        {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1, **_MOE},
        since="5.23.0",
    ),
    # Stock bounds the step of a prompt's tokens from below, and not that of later ones: here it hardly does.
    Family(
        "nemotron_h",
        "nemotron_h",
        {
            "num_hidden_layers": 5,
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe", "linear_attention"],
            "head_dim": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 16,
            "ssm_state_size": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "time_step_min": 1e-6,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "moe_shared_expert_intermediate_size": 48,
        },
        since="5.23.0",
    ),
    Family(
        "granitemoehybrid",
        "granitemoehybrid",
        {
            "num_hidden_layers": 4,
            "layer_types": ["mamba", "attention"] * 2,
            "shared_intermediate_size": 48,
            **_LOCAL_MOE,
            **_MAMBA2,
        },
    ),
    Family("bloom", "bloom", {"n_head": 4, "n_layer": 3}),
    Family("mpt", "mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": CONTEXT, "expansion_ratio": 2}),
    Family("falcon", "falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    Family("falcon_alibi", "falcon", {"alibi": True, "multi_query": True, "new_decoder_architecture": False}),
    Family("gptj", "gptj", {**_GPT, "rotary_dim": 8}),
    Family(
        "gpt_neo",
        "gpt_neo",
        {
            "num_layers": 4,
            "num_hidden_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
        },
    ),
)

FURTHER = (
    Family("falcon_mamba", "falcon_mamba", {"state_size": 8}),
    # Unlike phi3, these continue with the keys they have if a text crosses the original context.
    Family("llama_longrope", "llama", _LONGROPE),
    # Longrope by layer type raises the second time, before.
    Family(
        "gemma3_longrope",
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "rope_parameters": {
                "full_attention": _LONGROPE["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        since="5.23.0",
    ),
    Family(
        "llama_dynamic",
        "llama",
        {
            "max_position_embeddings": 40,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
)
"""Families that are tested as the others, and are not in docs/models.md: more of a kind that is there."""

REFUSED = {
    "rwkv": (Family("rwkv", "rwkv", {"attention_hidden_size": 64}), "keeps its own attention"),
    "minimax": (Family("minimax", "minimax", _LOCAL_MOE), "does not run with a stock cache"),
    "bert": (Family("bert", "bert"), "is not causal"),
    "deepseek_v4": (Family("deepseek_v4", "deepseek_v4", _MLA), "store_compression_weights"),
}
"""Kinds that are refused at load, and what the refusal says."""


@cache
def stock_weights(name: str) -> dict[str, torch.Tensor]:
    """Redrawn weights: with the default initialisation a random model says one or two tokens only."""
    return _redrawn(_bare(name))


def _redrawn(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for key, tensor in model.state_dict().items():
        std = 0.3 if any(part in key for part in ("embed", "wte", "wpe")) else 0.15
        drawn = torch.randn(tensor.shape, generator=generator) * std
        # Norms and rotary tables stay; sinks are vectors, and must not be all the same.
        weights[key] = drawn if tensor.ndim > 1 or "sinks" in key else tensor
    return weights


def model_of(name: str) -> PreTrainedModel:
    """A fresh model with stock attention and the family's fixed weights."""
    return _ready(_bare(name), stock_weights(name))


def model_from(family: Family) -> PreTrainedModel:
    """As `model_of`, of a family that is not in the list."""
    model = bare_model(family)
    return _ready(model, _redrawn(model))


def shallow(name: str, layers: int = 2) -> PreTrainedModel:
    """A family's model with its first layers alone: one of each kind, for what is slow layer by layer."""
    family = next(family for family in FAMILIES if family.name == name)
    return model_from(replace(family, more={**family.more, "num_hidden_layers": layers}))


def _ready(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    model.load_state_dict(weights)
    use_reference_attention(model)
    return model.eval().requires_grad_(False)


def bare_model(family: Family) -> PreTrainedModel:
    """A model with weights as its family draws them."""
    _skip_where_stock_is_wrong(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family.model_type, **{**_COMMON, **family.more})
        return AutoModelForCausalLM.from_config(config).eval()


def _bare(name: str) -> PreTrainedModel:
    return bare_model(next(family for family in (*FAMILIES, *FURTHER) if family.name == name))


def _skip_where_stock_is_wrong(family: Family) -> None:
    if family.since and Version(transformers.__version__) < Version(family.since):
        pytest.skip(f"{family.name}: stock itself is wrong in transformers {transformers.__version__}")
