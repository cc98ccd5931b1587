"""Tiny models made from configs, with weights that tell: their greedy tokens vary and their logits show a wrong mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

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


@dataclass(frozen=True)
class Family:
    """A model family under test, and how its config is made."""

    name: str
    config: Callable[[], Any]


FAMILIES = (
    Family("llama", lambda: LlamaConfig(**_COMMON)),
    Family("qwen3", lambda: Qwen3Config(**_COMMON, head_dim=16)),
    Family("mistral_window", lambda: MistralConfig(**_COMMON, sliding_window=WINDOW)),
    Family(
        "gemma3",
        lambda: Gemma3TextConfig(
            **{**_COMMON, "num_hidden_layers": 6}, head_dim=16, sliding_window=WINDOW, query_pre_attn_scalar=16
        ),
    ),
    Family(
        "gpt2",
        lambda: GPT2Config(
            n_embd=64,
            n_layer=3,
            n_head=4,
            n_positions=CONTEXT,
            vocab_size=VOCABULARY,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
        ),
    ),
    Family(
        "qwen3_moe",
        lambda: Qwen3MoeConfig(**_COMMON, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48),
    ),
)


@cache
def stock_weights(name: str) -> dict[str, torch.Tensor]:
    """Redrawn weights: with the default initialisation a random model says one or two tokens only."""
    model = _bare(name)
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for key, tensor in model.state_dict().items():
        std = 0.3 if any(part in key for part in ("embed", "wte", "wpe")) else 0.15
        drawn = torch.randn(tensor.shape, generator=generator) * std
        weights[key] = drawn if tensor.ndim > 1 else tensor
    return weights


def model_of(name: str) -> PreTrainedModel:
    """A fresh model with stock attention and the family's fixed weights."""
    model = _bare(name)
    model.load_state_dict(stock_weights(name))
    return model.eval().requires_grad_(False)


def _bare(name: str) -> PreTrainedModel:
    config = next(family.config for family in FAMILIES if family.name == name)()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)
