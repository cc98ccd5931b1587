"""Tiny GGUF files, written by the package gguf, and the stock model with exactly the numbers that they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY, CONTEXT = 259, 96
_SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=CONTEXT,
    rope_theta=5e5,
    rms_norm_eps=1e-5,
)
# By ends of transformers' names: those of GGUF.
_NAMES = {
    "embed_tokens": "token_embd",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}


def stock(family: str, *, tied: bool = False) -> PreTrainedModel:
    """A model with telling weights, and other numbers in every norm and bias."""
    config = AutoConfig.for_model(family, **_SIZES, tie_word_embeddings=tied)
    generator = torch.Generator().manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn * 0.08 if parameter.ndim > 1 else drawn * 0.1 + ("norm" in name)
    return model


def write(file: Path, family: str, kinds: dict[str, Type], *, tied: bool = False, **more: Any) -> PreTrainedModel:
    """Writes a file, and returns the stock model with what it means.

    `kinds`: how linear layers and embeddings are kept, by GGUF's name without block; "" is of all others.
    """
    model = stock(family, tied=tied)
    writer = gguf.GGUFWriter(file, family)
    _describe(writer, model.config)
    for name, value in more.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32)
    dice = np.random.default_rng(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parts = name.split(".")
            known = _NAMES.get(parts[-2], "output_norm")
            whole = f"blk.{parts[2]}.{known}.{parts[-1]}" if "layers" in parts else f"{known}.{parts[-1]}"
            heads = {"attn_q": 4, "attn_k": 2}.get(known, 0) if family == "llama" else 0
            numbers = _turned(parameter.numpy(), heads)
            kind = kinds.get(known, kinds[""]) if parameter.ndim > 1 else Type.F32
            data = _packed(numbers, kind, dice)
            writer.add_tensor(whole, data, raw_dtype=kind)
            meaning = gguf.dequantize(data, kind).reshape(numbers.shape)
            parameter.copy_(torch.from_numpy(_turned_back(meaning, heads).copy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _describe(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_SIZES["rope_theta"])
    writer.add_vocab_size(VOCABULARY)
    # A vocabulary without merges is none to llama.cpp.
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:-1], "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 256)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")


def _turned(numbers: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp rotates neighbours, transformers both halves of a head."""
    if not heads:
        return numbers
    shape = numbers.shape
    return numbers.reshape(heads, 2, -1, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _turned_back(numbers: np.ndarray, heads: int) -> np.ndarray:
    if not heads:
        return numbers
    shape = numbers.shape
    return numbers.reshape(heads, -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def _packed(numbers: np.ndarray, kind: Type, dice: np.random.Generator) -> np.ndarray:
    """Blocks of these numbers. The package writes no K-quants: those are of random bits with scales of their own."""
    if kind not in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return gguf.quantize(np.ascontiguousarray(numbers), kind)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = dice.integers(0, 256, (numbers.size // per_block, size), dtype=np.uint8)
    scale = dice.uniform(1e-4, 3e-4, (len(blocks), 2)).astype(np.float16)
    if kind is Type.Q6_K:
        blocks[:, 208:210] = (scale[:, :1] / 15).view(np.uint8)
    else:
        blocks[:, 0:4] = (scale * np.array([1, 7], np.float16)).view(np.uint8)
    return blocks.reshape(*numbers.shape[:-1], -1)
