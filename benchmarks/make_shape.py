"""Makes a checkpoint folder of a real model's shape with random weights: same cost, nothing to download.

Its tokenizer knows every byte, and gives each further token id a text of its own, so that texts tell tokens apart.

    python -m benchmarks.make_shape smollm2-135m models/m135
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

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
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    config = SHAPES[args.shape]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    model.save_pretrained(args.folder)
    tokenizer(config.vocab_size).save_pretrained(args.folder)
    print(f"{args.folder}: {args.shape}, {sum(p.numel() for p in model.parameters()):,} parameters, {args.dtype}")


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
