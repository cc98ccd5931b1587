"""Makes a checkpoint folder of a real model's shape with random weights: same cost, nothing to download.

Its tokenizer knows every byte, and gives each further token id a text of its own, so that texts tell tokens apart.

    python -m benchmarks.make_shape smollm2-135m models/m135
    python -m benchmarks.make_shape llama-3.1-8b models/8b --packed    # GPTQ in 4 bits; a layer at a time in memory
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2}
SHAPES: dict[str, Any] = {
    "smollm2-135m": lambda: LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama-3.1-8b": lambda: LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128256,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen3-0.6b": lambda: Qwen3Config(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    # No model's: a mixture that fits a small machine, 680 million numbers, of which a token reads 150.
    "mixture-680m": lambda: AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=512,
        moe_intermediate_size=512,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        vocab_size=32000,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "lfm2-350m": lambda: AutoConfig.for_model(
        "lfm2",
        hidden_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        intermediate_size=6656,
        layer_types=["conv", "conv", "full_attention"] * 5 + ["conv"],
        vocab_size=65536,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "mamba2-130m": lambda: AutoConfig.for_model(
        "mamba2",
        hidden_size=768,
        num_hidden_layers=24,
        num_heads=24,
        head_dim=64,
        state_size=128,
        n_groups=1,
        expand=2,
        vocab_size=50288,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--packed", action="store_true", help="linear layers in 4 bits, the rest in float16")
    args = parser.parse_args()
    config = SHAPES[args.shape]()
    if args.packed:
        save_packed(config, args.folder)
        tokenizer(config.vocab_size).save_pretrained(args.folder)
        return
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    model.save_pretrained(args.folder)
    tokenizer(config.vocab_size).save_pretrained(args.folder)
    print(f"{args.folder}: {args.shape}, {sum(p.numel() for p in model.parameters()):,} parameters, {args.dtype}")


def save_packed(config: Any, folder: Path) -> None:
    """GPTQ, 4 bits, groups of 128: random codes, and scales that keep outputs of their inputs' size."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    torch.manual_seed(0)

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{name}.safetensors"
        save_file({key: one.contiguous() for key, one in tensors.items()}, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(tensors, file))

    shards: dict[str, list[str]] = {}
    for name in model.state_dict():
        parts = name.split(".")
        shards.setdefault(parts[2] if parts[1] == "layers" else parts[-2], []).append(name)
    for shard, names in shards.items():
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            shape = model.state_dict()[name].shape
            if len(shape) == 1:
                tensors[name] = torch.ones(shape, dtype=torch.float16)
            elif name.endswith("_proj.weight"):
                tensors |= {f"{name.removesuffix('weight')}{part}": one for part, one in gptq(*shape).items()}
            else:
                tensors[name] = torch.randn(shape, dtype=torch.float16).mul_(0.02)
        save(shard, tensors)
    config.dtype = torch.float16
    config.architectures = [type(model).__name__]
    config.quantization_config = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    config.save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def gptq(outputs: int, inputs: int) -> dict[str, torch.Tensor]:
    size = (inputs // 128, outputs)
    return {
        "qweight": torch.randint(-(1 << 31), 1 << 31, (inputs // 8, outputs)).int(),
        "qzeros": torch.full((size[0], outputs // 8), 0x77777777, dtype=torch.int32),  # 8, stored less one
        "scales": (torch.rand(size) + 0.5).mul_(inputs**-0.5 / 4.6).half(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // 128,
    }


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; ids beyond the bytes are words that no text encodes to."""
    words = dict(SPECIAL)
    words.update({byte: len(SPECIAL) + i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))})
    words.update({f"Ġw{i}": i for i in range(len(words), vocabulary)})
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


if __name__ == "__main__":
    main()
