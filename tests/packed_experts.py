"""Tiny checkpoints whose experts are packed, and the same model with the numbers that the codes mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tiny_checkpoint import VOCABULARY, save_tokenizer

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def gpt_oss_config(**changed: Any) -> Any:
    sizes: dict[str, Any] = {
        **{"hidden_size": 96, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "sliding_window": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 5, "num_experts_per_tok": 2},
        **{"vocab_size": VOCABULARY, "max_position_embeddings": 96, "tie_word_embeddings": False},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return AutoConfig.for_model("gpt_oss", **{**sizes, **changed})


def drawn(config: Any) -> Any:
    """A model with telling weights, and other numbers in every norm and bias."""
    generator = torch.Generator().manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        of_norm = "norm" in name and not name.endswith("bias")
        numbers = torch.randn(parameter.shape, generator=generator)
        parameter.data = numbers * 0.3 if parameter.ndim > 1 else numbers * 0.1 + of_norm
    return model


def save_mxfp4(folder: Path, **changed: Any) -> Path:
    """A gpt-oss in `folder`/packed as published, and in `folder`/plain with the numbers that its codes mean."""
    plain, packed = folder / "plain", folder / "packed"
    config = gpt_oss_config(**changed)
    model = drawn(config)
    dice = np.random.default_rng(0)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor for name, tensor in weights.items() if not name.endswith("_proj") or "experts" not in name}
    for name in weights.keys() - tensors.keys():
        experts, inputs, outputs = weights[name].shape
        blocks = dice.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
        scales = dice.integers(122, 126, blocks.shape[:3], dtype=np.uint8)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = torch.from_numpy(blocks), torch.from_numpy(scales)
        numbers = np.zeros((experts, outputs, inputs), np.float32)
        for at in range(inputs):
            byte = blocks[:, :, at // 32, at % 32 // 2]
            code = byte >> 4 if at % 2 else byte & 15
            numbers[:, :, at] = np.array(_E2M1, np.float32)[code] * 2.0 ** (scales[:, :, at // 32].astype(float) - 127)
        weights[name] = torch.from_numpy(np.ascontiguousarray(numbers.transpose(0, 2, 1)))
    model.load_state_dict(weights)
    model.save_pretrained(plain)
    packed.mkdir(parents=True)
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((plain / "config.json").read_text())
    described["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (packed / "config.json").write_text(json.dumps(described))
    for one in (plain, packed):
        save_tokenizer(one)
    return packed
