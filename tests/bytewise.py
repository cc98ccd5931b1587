"""A tokenizer of single bytes after <pad>, <s> and </s>, with tokens for tags, and tiny models that use it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from baton.loader.selfcheck import use_reference_attention
from families import Family, bare_model

SIZE = 300
"""Ids of the model: some are unused."""
END = 2
TAGS = ("<tool_call>", "</tool_call>", "<|python_tag|>")


@cache
def backend(tags: str = "special") -> Tokenizer:
    """`tags`: "special" tokens, "added" ones that are text all the same (as Qwen has them), or "letters"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: i + 3 for i, byte in enumerate(alphabet)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    if tags != "letters":
        tokenizer.add_tokens([AddedToken(tag, special=tags == "special", normalized=False) for tag in TAGS])
    return tokenizer


def tokens_of(text: str, tags: str = "special") -> list[int]:
    return list(backend(tags).encode(text, add_special_tokens=False).ids)


def bytes_of(tokens: Sequence[int]) -> bytes:
    return backend().decode(list(tokens), skip_special_tokens=False).encode()


class Words:
    """What a compiler of forms needs of a tokenizer."""

    vocabulary = SIZE

    def backend(self) -> str | None:
        return str(backend().to_str())


def speaking_model() -> PreTrainedModel:
    """Random weights that say all kinds of bytes."""
    model = bare_model(Family("bytes", "llama", {"vocab_size": SIZE, "max_position_embeddings": 1024}))
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    use_reference_attention(model)
    return model.requires_grad_(False)


def save_speaking(folder: Path) -> Path:
    """The same as a folder, with a chat template that knows of tools."""
    speaking_model().save_pretrained(folder)
    template = (Path(__file__).parent / "tools.jinja").read_text()
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=backend(), bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=template
    )
    wrapped.save_pretrained(folder)
    return folder
