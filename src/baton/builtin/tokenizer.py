"""The model's tokenizer: small byte-level BPE that never joins digits, nor the letters of a quoted word."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from baton.builtin.corpus import CHAT_TEMPLATE, SPECIALS, conversations
from baton.builtin.train_settings import CONTEXT, VOCABULARY

# Digits are always single. Words are joined only after a blank or with a capital, so the letters of "banana" in
# quotation marks are six tokens, and spelling is copying. A blank before a digit belongs to what comes before it: ', '
# and ' carry ' are one token.
SPLIT = (
    r"[0-9]"
    r"| ?\p{Lu}\p{Ll}+(?: (?=[0-9]))?"
    r"| \p{L}+(?: (?=[0-9]))?"
    r"|\p{L}"
    r"| ?[^\s\p{L}\p{N}]+(?: (?=[0-9]))?"
    r"|\s"
)


def train_tokenizer(seed: int, samples: int = 20_000) -> Tokenizer:
    """A tokenizer trained on generated conversations; the same for the same seed."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (text for turns in islice(conversations(seed, most_turns=4), samples) for _, text in turns)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and the chat template, as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    wrap: Any = PreTrainedTokenizerFast
    wrapped = wrap(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>"],
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
