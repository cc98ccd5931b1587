"""Tiny GGUF files, written by the package gguf, and the stock model with exactly the numbers that they mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_THETA = 5e5
_GEMMA = dict(sliding_window=16, query_pre_attn_scalar=64)
_WINDOW = {"attention.sliding_window": 16}
_MOE = dict(num_experts_per_tok=2)
_USED = {"expert_count": 5, "expert_used_count": 2}
# Architectures that GGUF calls otherwise.
_CALLED = {"mixtral": "llama"}


@dataclass(frozen=True)
class Written:
    """An architecture: its config in transformers' words, and what a file says of it beside sizes."""

    model_type: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    turned: bool = False


LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=24)
FAMILIES = {
    "llama": Written(turned=True),
    "qwen2": Written(),
    "qwen3": Written(),
    "smollm3": Written(config=dict(num_hidden_layers=4), turned=True),
    "granite": Written(
        config=dict(attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0),
        keys={"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0},
        turned=True,
    ),
    "olmo2": Written(),
    "phi3": Written(config=dict(sliding_window=40), keys={"attention.sliding_window": 40}),
    "starcoder2": Written(config=dict(norm_epsilon=1e-3), keys={"attention.layer_norm_epsilon": 1e-3}),
    "gemma2": Written(
        config={**_GEMMA, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 5.0},
        keys={**_WINDOW, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 5.0},
    ),
    "qwen2moe": Written(
        "qwen2_moe",
        config={**_MOE, "num_experts": 5, "moe_intermediate_size": 256, "shared_expert_intermediate_size": 256},
        keys={**_USED, "expert_feed_forward_length": 256, "expert_shared_feed_forward_length": 256},
    ),
    "qwen3moe": Written(
        "qwen3_moe",
        config={**_MOE, "num_experts": 5, "moe_intermediate_size": 256, "norm_topk_prob": True},
        keys={**_USED, "expert_feed_forward_length": 256},
    ),
    "olmoe": Written(config={**_MOE, "num_experts": 5, "num_key_value_heads": 4}, keys=_USED),
    "granitemoe": Written(
        config={**_MOE, "num_local_experts": 5, "attention_multiplier": 0.2, "logits_scaling": 2.0},
        keys={**_USED, "attention.scale": 0.2, "logit_scale": 2.0},
        turned=True,
    ),
    "mixtral": Written(config={**_MOE, "num_local_experts": 5, "sliding_window": None}, keys=_USED, turned=True),
    "gpt-oss": Written(
        "gpt_oss",
        config={**_MOE, "num_local_experts": 5, "sliding_window": 16},
        keys={**_USED, "expert_feed_forward_length": 512, **_WINDOW},
    ),
    "gemma3": Written("gemma3_text", config={**_GEMMA, "num_hidden_layers": 7}, keys=_WINDOW),
}


def config_for(family: str, *, tied: bool, rope: dict[str, Any]) -> Any:
    about = FAMILIES[family]
    turns: dict[str, Any] = {"rope_type": "default", "rope_theta": _THETA, **rope}
    if family == "gemma3":
        turns = {"full_attention": turns, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    said = {**_SIZES, **about.config, "rope_parameters": turns}
    return AutoConfig.for_model(about.model_type or family, **said, tie_word_embeddings=tied)


def stock(family: str, *, tied: bool = False, rope: dict[str, Any] | None = None) -> PreTrainedModel:
    """A model with telling weights, and other numbers in every norm and bias."""
    generator = torch.Generator().manual_seed(3)
    model = AutoModelForCausalLM.from_config(config_for(family, tied=tied, rope=rope or {})).eval()
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        plus = "norm" in name and not name.endswith("bias") and "gemma" not in family
        parameter.data = drawn * 0.08 if parameter.ndim > 1 else drawn * 0.1 + plus
    return model


def write(
    file: Path,
    family: str,
    kinds: dict[str, Type],
    *,
    tied: bool = False,
    rope: dict[str, Any] | None = None,
    pack: Callable[[np.ndarray, Type], np.ndarray] | None = None,
    pre: str = "qwen2",
    **more: Any,
) -> PreTrainedModel:
    """Writes a file, and returns the stock model with what it means.

    `kinds`: how linear layers and embeddings are kept, by GGUF's name without block; "" is of all others. `pack`: makes
    blocks of numbers. `pre`: how texts are split. `more`: further keys, of whole numbers.
    """
    model = stock(family, tied=tied, rope=rope)
    called = _CALLED.get(family, family)
    writer = gguf.GGUFWriter(file, called)
    _describe(writer, model.config, family, rope or {}, pre)
    for name, value in more.items():
        writer.add_key_value(name, value, gguf.GGUFValueType.UINT32)
    dice = np.random.default_rng(5)
    config = model.config
    heads_of = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    of_family = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == called)
    names = gguf.get_tensor_name_map(of_family, config.num_hidden_layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0].endswith("experts"):
                layer = int(name.split(".")[2])
                module = model.get_submodule(name.rpartition(".")[0])
                for part, to in _parts_of_experts(name, parameter, module):
                    kind = kinds.get(part.split("_exps")[0], kinds[""]) if parameter.ndim > 2 else Type.F32
                    numbers = np.ascontiguousarray(to.numpy())
                    data = _packed(numbers, kind, dice) if pack is None else pack(numbers, kind)
                    writer.add_tensor(f"blk.{layer}.{part}", data, raw_dtype=kind)
                    to.copy_(torch.from_numpy(gguf.dequantize(data, kind).reshape(numbers.shape).copy()))
                continue
            stem, _, end = name.rpartition(".")
            if stem.endswith(".router"):  # of which the package knows older names alone
                stem = f"{stem}.layer" if "block_sparse_moe" in stem else stem
            if end == "sinks":
                stem, end = name, "weight"
            whole = f"{names.get_name(stem)}.{end}"
            known = whole.split(".")[-2]
            heads = heads_of.get(known, 0) if FAMILIES[family].turned else 0
            plus = float("gemma" in family and "norm" in known)
            numbers = _turned(parameter.numpy() + plus, heads)
            kind = kinds.get(known, kinds[""]) if parameter.ndim > 1 else Type.F32
            data = _packed(numbers, kind, dice) if pack is None else pack(numbers, kind)
            writer.add_tensor(whole, data, raw_dtype=kind)
            meaning = gguf.dequantize(data, kind).reshape(numbers.shape)
            parameter.copy_(torch.from_numpy(_turned_back(meaning, heads).copy() - plus))
    if (rope or {}).get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _factors(model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _parts_of_experts(name: str, parameter: torch.Tensor, module: Any) -> list[tuple[str, torch.Tensor]]:
    """What a file has of a weight or bias of experts: names without block, and views `[experts, outputs, ...]`."""
    bias = name.endswith("_bias")
    view = parameter.transpose(1, 2) if module.is_transposed and not bias else parameter
    end = "bias" if bias else "weight"
    if "down_proj" in name:
        return [(f"ffn_down_exps.{end}", view)]
    half = view.shape[1] // 2
    gate, up = (view[:, :half], view[:, half:]) if module.is_concatenated else (view[:, ::2], view[:, 1::2])
    return [(f"ffn_gate_exps.{end}", gate), (f"ffn_up_exps.{end}", up)]


def split(file: Path, folder: Path, parts: int) -> list[str]:
    """Writes a file's tensors into so many files, all that it says into the first. Returns their names."""
    folder.mkdir()
    reader, names = gguf.GGUFReader(file), []
    for part in range(parts):
        names.append(f"{file.stem}-{part + 1:05}-of-{parts:05}.gguf")
        writer = gguf.GGUFWriter(folder / names[-1], reader.fields["general.architecture"].contents())
        for field_ in reader.fields.values() if part == 0 else ():
            if not field_.name.startswith(("GGUF.", "general.architecture")):
                of = field_.types[-1] if len(field_.types) > 1 else None
                writer.add_key_value(field_.name, field_.contents(), field_.types[0], of)
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[part::parts]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return names


def _factors(model: PreTrainedModel) -> np.ndarray:
    """By which a model's wavelengths are longer than without its scaling."""
    plain = _THETA ** -(np.arange(0, 64, 2) / 64)
    return (plain / model.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)


def _describe(writer: gguf.GGUFWriter, config: Any, family: str, rope: dict[str, Any], pre: str) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(64)
    writer.add_value_length(64)
    if family != "starcoder2":
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_THETA)
    writer.add_vocab_size(VOCABULARY)
    for key, value in FAMILIES[family].keys.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(
            f"{_CALLED.get(family, family)}.{key}", value
        )
    if rope.get("rope_type") in ("yarn", "linear"):
        writer.add_string(f"{family}.rope.scaling.type", rope["rope_type"])
        writer.add_float32(f"{family}.rope.scaling.factor", rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_uint32(f"{family}.rope.scaling.original_context_length", rope["original_max_position_embeddings"])
    # A vocabulary without merges is none to llama.cpp.
    tokens = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())[:-1], "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
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


# Bytes of a block that hold float16 scales, of the forms that the package does not write.
SCALES = {
    Type.Q2_K: (80, 82),
    Type.Q3_K: (108,),
    Type.Q4_K: (0, 2),
    Type.Q5_K: (0, 2),
    Type.Q6_K: (208,),
    Type.IQ4_NL: (0,),
    Type.IQ4_XS: (0,),
    Type.MXFP4: (),
}
_SMALL = {Type.Q6_K: 15, Type.Q2_K: 0.2, Type.IQ4_NL: 0.2, Type.IQ4_XS: 10}


def _packed(numbers: np.ndarray, kind: Type, dice: np.random.Generator) -> np.ndarray:
    """Blocks of these numbers. The package writes no K-quants: those are of random bits with scales of their own."""
    if kind not in SCALES:
        return gguf.quantize(np.ascontiguousarray(numbers), kind)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = dice.integers(0, 256, (numbers.size // per_block, size), dtype=np.uint8)
    scale = dice.uniform(1e-4, 3e-4, (len(blocks), 2)).astype(np.float16)
    for at, place in enumerate(SCALES[kind]):
        part = (scale[:, at : at + 1] * (7 if at else 1) / _SMALL.get(kind, 1)).astype(np.float16)
        blocks[:, place : place + 2] = part.view(np.uint8)
    if kind is Type.MXFP4:
        blocks[:, 0] = dice.integers(120, 124, len(blocks))
    return blocks.reshape(*numbers.shape[:-1], -1)
