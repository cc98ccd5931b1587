"""A tiny checkpoint folder as `save_pretrained` leaves it: a Llama with telling weights, a byte-level tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

CONTEXT = 96
VOCABULARY = 259
CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


def save_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """One token per byte, after <pad>, <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {byte: i + 3 for i, byte in enumerate(alphabet)} | {"<pad>": 0, "<s>": 1, "</s>": 2}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=chat_template
    )
    tokenizer.save_pretrained(folder)


def drawn(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this config with wide random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def save_model(folder: Path) -> None:
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = drawn(config)
    model.save_pretrained(folder)


def save_tiny(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    save_model(folder)
    save_tokenizer(folder, chat_template)
    return folder
