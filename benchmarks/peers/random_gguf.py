"""A GGUF file of a folder's shape with random 4-bit blocks: same cost as a quantised model, and no quantiser needed.

Forms are mixed as llama-quantize mixes them: in q4_k_m, embeddings and some of attn_v and ffn_down have 6 bits, and
rows that do not fill K-blocks have Q5_0 and Q8_0 in their place.

    python -m benchmarks.peers.random_gguf models/m06b q4_k_m m06b-q4_k_m.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Form
from gguf import GGUFValueType
from tokenizers import pre_tokenizers

FORMS = ("q4_0", "q4_k_m")
_SPECIAL = ["<pad>", "<s>", "</s>"]
# Where a block has its float16 scales, and how large they are for numbers of about 0.02.
_SCALES = {
    Form.Q4_0: {0: 4e-3},
    Form.Q8_0: {0: 3e-4},
    Form.Q5_0: {0: 2e-3},
    Form.Q4_K: {0: 1.5e-4, 2: 1e-3},
    Form.Q6_K: {208: 1.5e-5},
}
_WITHOUT_K = {Form.Q4_K: Form.Q5_0, Form.Q6_K: Form.Q8_0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the config.json of a llama or a qwen3")
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    part = args.file.with_suffix(".part")
    write(json.loads((args.folder / "config.json").read_text()), args.form, part)
    part.rename(args.file)


def write(config: dict[str, Any], form: str, file: Path) -> None:
    writer = gguf.GGUFWriter(file, config["model_type"], use_temp_file=True)
    _describe(writer, config)
    dice = np.random.default_rng(0)
    for name, shape in _shapes(config).items():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
        else:
            kind = _form(name, form, shape[1], config["num_hidden_layers"])
            writer.add_tensor(name, _blocks(shape, kind, dice), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inside, width = config["hidden_size"], config["intermediate_size"], _width(config)
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (config["vocab_size"], hidden)}
    for at in range(config["num_hidden_layers"]):
        layer = {"attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden)}
        layer |= {"attn_output": (hidden, queries), "ffn_gate": (inside, hidden), "ffn_up": (inside, hidden)}
        layer |= {"ffn_down": (hidden, inside), "attn_norm": (hidden,), "ffn_norm": (hidden,)}
        if config["model_type"] == "qwen3":
            layer |= {"attn_q_norm": (width,), "attn_k_norm": (width,)}
        shapes |= {f"blk.{at}.{name}.weight": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["output.weight"] = (config["vocab_size"], hidden)
    return shapes


def _width(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _form(name: str, form: str, inputs: int, layers: int) -> Form:
    head = name in ("token_embd.weight", "output.weight")
    if form == "q4_0":
        kind = Form.Q6_K if head else Form.Q4_0
    else:
        at = int(name.split(".")[1]) if name.startswith("blk.") else 0
        edge = layers // 8
        more = at < edge or at >= 7 * layers // 8 or (at - edge) % 3 == 2
        kind = Form.Q6_K if head or (more and ("attn_v" in name or "ffn_down" in name)) else Form.Q4_K
    return _WITHOUT_K.get(kind, kind) if inputs % 256 else kind


def _blocks(shape: tuple[int, ...], kind: Form, dice: np.random.Generator) -> np.ndarray:
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = dice.integers(0, 256, (shape[0] * shape[1] // numbers, size), dtype=np.uint8)
    for place, scale in _SCALES[kind].items():
        blocks[:, place : place + 2] = np.full((len(blocks), 1), scale, np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def _describe(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta") or 1e4
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(_width(config))
    writer.add_value_length(_width(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    rest = config["vocab_size"] - len(_SPECIAL) - len(bytes_)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*_SPECIAL, *bytes_, *(f"t{at}" for at in range(rest))])
    writer.add_key_value("tokenizer.ggml.token_type", [3] * 3 + [1] * (config["vocab_size"] - 3), GGUFValueType.ARRAY)
    # llama.cpp loads no vocabulary without merges.
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


if __name__ == "__main__":
    main()
