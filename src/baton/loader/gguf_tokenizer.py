"""The tokenizer of a GGUF file, read by transformers, and the tokens that end its answers.

A file names the rule by which text is split before its merges. Where that rule is not known, other tokens than those of
training would come out, and answers would only be a little worse: such a file is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from baton.core.errors import LoadError

# Each digit by itself, and then as GPT-2 splits.
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone4"}
_AS_GPT2 = {"gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "trillion", "granite-docling", "default"}
_EACH_DIGIT = {"type": "Digits", "individual_digits": True}
_BY_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# By which llama.cpp, too, ends an answer, whatever token the file calls the end.
_ENDS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>"}
_CONTROL = 3


def tokenizer_of(file: Path, metadata: Mapping[str, Any]) -> Any:
    """A stock tokenizer. Raises LoadError for one that transformers would only read in part."""
    known = _splits()
    split = str(metadata.get("tokenizer.ggml.pre", "default"))
    of_bytes = metadata.get("tokenizer.ggml.model") == "gpt2"
    if of_bytes and split not in known | _DIGITS | _AS_GPT2:
        raise LoadError(
            f"splits texts in the way {split[:40]!r}, which is not known: take the original checkpoint, with"
            " --quantize int4"
        )
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(file.parent), gguf_file=file.name)
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    if of_bytes and split in _DIGITS:
        said["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_EACH_DIGIT, _BY_BYTES]}
    # Transformers adds tokens beyond the file's, for which the model has no numbers.
    count = len(metadata.get("tokenizer.ggml.tokens") or [])
    said["added_tokens"] = [one for one in said.get("added_tokens", []) if one["id"] < count]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(said))
    return tokenizer


def _splits() -> set[str]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError as error:  # older ones split by the architecture, whatever the file says
        raise LoadError("needs a newer transformers for its tokenizer: pip install -U transformers") from error
    return set(GGUF_PRE_TOKENIZER_SPLITS)


def end_tokens(metadata: Mapping[str, Any]) -> list[int]:
    """The tokens that end an answer."""
    named = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    tokens, kinds = metadata.get("tokenizer.ggml.tokens") or [], metadata.get("tokenizer.ggml.token_type") or []
    usual = [
        at for at, (text, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind == _CONTROL and text in _ENDS
    ]
    return sorted({int(token) for token in [*named, *usual] if token is not None})
