"""Tiny checkpoints whose linear layers are packed, and the same model with the numbers that the codes mean.

Every number differs from its neighbours, so that none can be read from another's place. What codes mean is written
here a second time, one number after the other, from the formats' descriptions alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from tiny_checkpoint import VOCABULARY, drawn, save_tokenizer

Array = np.ndarray
Packer = Callable[[np.random.Generator, int, int], tuple[dict[str, Tensor], Array]]
"""Packs a weight of so many outputs and inputs: its tensors, and float32 numbers [outputs, inputs]."""


@dataclass(frozen=True)
class Format:
    """`pack`: makes a layer's tensors; `said`: the quantization_config."""

    pack: Packer
    said: Mapping[str, Any]


def save_packed(folder: Path, format: Format, config: PretrainedConfig | None = None, **changed: Any) -> Path:
    """A checkpoint in `folder`/packed, and in `folder`/plain the same model with the numbers that codes mean."""
    plain, packed = folder / "plain", folder / "packed"
    config = config or LlamaConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=256,
        vocab_size=VOCABULARY,
        max_position_embeddings=96,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = drawn(config)
    dice = np.random.default_rng(0)
    tensors: dict[str, Tensor] = {}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, weight in list(weights.items()):
        if name.endswith("proj.weight"):
            parts, numbers = format.pack(dice, *weight.shape)
            layer = name.removesuffix(".weight")
            tensors |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
            weights[name] = torch.from_numpy(numbers)
        elif not (name == "lm_head.weight" and config.tie_word_embeddings):
            tensors[name] = weight
    model.load_state_dict(weights)
    model.save_pretrained(plain)
    packed.mkdir(parents=True)
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    described = json.loads((plain / "config.json").read_text())
    described["quantization_config"] = {**format.said, **changed}
    (packed / "config.json").write_text(json.dumps(described))
    for one in (plain, packed):
        save_tokenizer(one)
    return packed


def numbers_of(folder: Path) -> dict[str, Tensor]:
    """The numbers of the plain model."""
    return load_file(folder / "plain" / "model.safetensors")


def _scales(dice: np.random.Generator, bits: int, *shape: int) -> Array:
    """Float16 numbers of which no two are equal, so small that a layer's outputs are of its inputs' size."""
    count = int(np.prod(shape))
    numbers = (np.arange(count) % 1024 + 1024) * 2.0**-10  # all different digits of a float16
    numbers *= 2.0 ** (-3 - bits - np.arange(count) // 1024 % 4)
    return dice.permutation(numbers).reshape(shape).astype(np.float16)


def _word(codes: Array, bits: int) -> int:
    """An int32 word of codes, the first in its lowest bits."""
    word = sum(int(code) << (bits * at) for at, code in enumerate(codes))
    return word - (1 << 32) if word >= 1 << 31 else word


def gptq(bits: int = 4, group: int = 32, *, less_one: bool = True, ordered: bool = False, sym: bool = False) -> Format:
    """GPTQ: codes packed along inputs, zeros along outputs; `ordered`: inputs are in groups in another order."""
    per_word, top = 32 // bits, 2**bits

    def pack(dice: np.random.Generator, outputs: int, inputs: int) -> tuple[dict[str, Tensor], Array]:
        size = group if group > 0 else inputs
        groups = -(-inputs // size)
        codes = dice.integers(0, top, (inputs, outputs))
        zeros = np.full((groups, outputs), top // 2) if sym else dice.integers(0, top, (groups, outputs))
        scales = _scales(dice, bits, groups, outputs)
        index = np.arange(inputs) // size
        if ordered:
            index = dice.permutation(index)
        stored = (zeros - 1) % top if less_one else zeros
        words = [
            [_word(codes[at : at + per_word, column], bits) for column in range(outputs)]
            for at in range(0, inputs, per_word)
        ]
        zero_words = [[_word(row[at : at + per_word], bits) for at in range(0, outputs, per_word)] for row in stored]
        numbers = (codes - zeros[index]).astype(np.float32) * scales[index].astype(np.float32)
        tensors = {
            "qweight": torch.tensor(words, dtype=torch.int32),
            "qzeros": torch.tensor(zero_words, dtype=torch.int32),
            "scales": torch.from_numpy(scales),
            "g_idx": torch.tensor(index, dtype=torch.int32),
        }
        return tensors, np.ascontiguousarray(numbers.T)

    said = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered, "sym": sym}
    return Format(pack, said | {"checkpoint_format": "gptq" if less_one else "gptq_v2"})


def awq(group: int = 32) -> Format:
    """AWQ gemm: codes and zeros packed along outputs, in the order 0 2 4 6 1 3 5 7 from a word's lowest bits on."""
    lying = [0, 2, 4, 6, 1, 3, 5, 7]

    def words_of(row: Array) -> list[int]:
        return [_word(row[at : at + 8][lying], 4) for at in range(0, len(row), 8)]

    def pack(dice: np.random.Generator, outputs: int, inputs: int) -> tuple[dict[str, Tensor], Array]:
        size = group if group > 0 else inputs
        codes = dice.integers(0, 16, (inputs, outputs))
        zeros = dice.integers(0, 16, (inputs // size, outputs))
        scales = _scales(dice, 4, inputs // size, outputs)
        index = np.arange(inputs) // size
        numbers = (codes - zeros[index]).astype(np.float32) * scales[index].astype(np.float32)
        tensors = {
            "qweight": torch.tensor([words_of(row) for row in codes], dtype=torch.int32),
            "qzeros": torch.tensor([words_of(row) for row in zeros], dtype=torch.int32),
            "scales": torch.from_numpy(scales),
        }
        return tensors, np.ascontiguousarray(numbers.T)

    said = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    return Format(pack, {**said, "modules_to_not_convert": None})


def compressed(
    bits: int = 4, group: int = 32, *, sym: bool = True, ordered: bool = False, words: bool = True, rounded: int = 0
) -> Format:
    """compressed-tensors: signed codes, in words of the codes and half their range, or as they are.

    `rounded`: bits of an activation that the config asks for.
    """
    per_word, half = 32 // bits, 2 ** (bits - 1)

    def pack(dice: np.random.Generator, outputs: int, inputs: int) -> tuple[dict[str, Tensor], Array]:
        size = group if group > 0 else inputs
        groups = inputs // size
        codes = dice.integers(-half, half, (outputs, inputs))
        zeros = np.zeros((outputs, groups), int) if sym else dice.integers(-half // 4, half // 4, (outputs, groups))
        scales = torch.from_numpy(_scales(dice, bits, outputs, groups)).bfloat16()
        index = np.arange(inputs) // size
        if ordered:
            index = dice.permutation(index)
        numbers = (codes - zeros[:, index]).astype(np.float32) * scales.float().numpy()[:, index]
        tensors = {"weight_scale": scales, "weight": torch.tensor(codes, dtype=torch.int8)}
        if not sym:
            tensors["weight_zero_point"] = torch.tensor(zeros, dtype=torch.int8)
        if ordered:
            tensors["weight_g_idx"] = torch.tensor(index, dtype=torch.int32)
        if not words:
            return tensors, numbers
        del tensors["weight"]
        lines = [[_word(row[at : at + per_word] + half, bits) for at in range(0, inputs, per_word)] for row in codes]
        tensors["weight_packed"] = torch.tensor(lines, dtype=torch.int32)
        tensors["weight_shape"] = torch.tensor([outputs, inputs])
        if not sym:
            columns = [
                [_word(zeros[at : at + per_word, g] + half, bits) for g in range(groups)]
                for at in range(0, outputs, per_word)
            ]
            tensors["weight_zero_point"] = torch.tensor(columns, dtype=torch.int32)
        return tensors, numbers

    weights = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group" if group > 0 else "channel"}
    weights |= {"group_size": group if group > 0 else None, "actorder": "group" if ordered else None}
    activations = {"num_bits": rounded, "type": "int", "dynamic": True, "strategy": "token"} if rounded else None
    one = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    said = {"quant_method": "compressed-tensors", "format": "pack-quantized" if words else "int-quantized"}
    return Format(pack, {**said, "config_groups": {"group_0": one}, "ignore": ["lm_head"], "kv_cache_scheme": None})


def float8(block: tuple[int, int] | None = (128, 128), *, of: str = "fp8") -> Format:
    """FP8: a number e4m3 for each weight, and a float32 scale for each block, or bfloat16 ones.

    `of`: fp8, with scales of blocks or of a layer; fbgemm_fp8, of outputs; or a strategy of compressed-tensors.
    """

    def pack(dice: np.random.Generator, outputs: int, inputs: int) -> tuple[dict[str, Tensor], Array]:
        codes = dice.integers(0, 256, (outputs, inputs), np.uint8)
        codes[codes & 127 == 127] -= 1  # NaN
        high, wide = block or ((outputs, inputs) if of in ("fp8", "tensor") else (1, inputs))
        scales = _scales(dice, 12, -(-outputs // high), -(-inputs // wide)).astype(np.float32)
        if of in ("fp8", "fbgemm_fp8"):
            scales *= np.float32(1 + 2**-20)  # not a number of 16 bits
        values = np.array([_e4m3(code) for code in range(256)], np.float32)[codes]
        numbers = values * scales.repeat(high, 0)[:outputs].repeat(wide, 1)[:, :inputs]
        weight = torch.from_numpy(codes).view(torch.float8_e4m3fn)
        kept = torch.from_numpy(scales) if of in ("fp8", "fbgemm_fp8") else torch.from_numpy(scales).bfloat16()
        if of in ("channel", "tensor", "block"):
            scales = kept.float().numpy()
            numbers = values * scales.repeat(high, 0)[:outputs].repeat(wide, 1)[:, :inputs]
        name = "weight_scale_inv" if of == "fp8" else "weight_scale"
        one = block is None and of in ("fp8", "tensor")
        return {"weight": weight, name: kept.reshape(()) if one else kept}, numbers

    if of == "fp8":
        return Format(pack, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block})
    if of == "fbgemm_fp8":
        return Format(pack, {"quant_method": of, "activation_scale_ub": 1200.0})
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": of, "block_structure": block}
    activations = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    said = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}
    return Format(pack, {**said, "ignore": ["lm_head"], "kv_cache_scheme": None})


def _e4m3(code: int) -> float:
    sign, exponent, digits = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    return sign * (digits * 2.0**-9 if exponent == 0 else (1 + digits / 8) * 2.0 ** (exponent - 7))
