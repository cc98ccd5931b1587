"""The least number of tokens of a text, from its bytes: encoding a text that cannot fit would take long."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

# Canonical composition makes one character of at most three, in a third of the bytes.
_COMPOSED = 3.0
_KEPT = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "Sequence"}


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """`most`: bytes of a text that one token stands for.

    `blanks`: blanks are not counted, a token may stand for many.
    """

    most: float
    blanks: bool

    def fewest(self, text: str) -> int:
        """At least so many tokens are in the text."""
        counted = "".join(text.split()) if self.blanks else text
        return math.ceil(len(counted.encode(errors="replace")) / self.most)


def token_bytes(backend: Any, letters: Collection[str]) -> TokenBytes | None:
    """For a fast tokenizer; None if a token may stand for a text of any length, as `<unk>` does.

    `letters`: how byte-level tokenizers write the 256 bytes.
    """
    shrinking, vocabulary = _shrinking(_told(backend.normalizer)), backend.get_vocab(True)
    whole = _keeps_all(_told(backend.pre_tokenizer)) and _knows_all(backend, vocabulary, letters)
    if shrinking is None or not whole:
        return None
    known = set(letters)
    longest = max(len(name) if known.issuperset(name) else len(name.encode(errors="replace")) for name in vocabulary)
    added = backend.get_added_tokens_decoder().values()
    return TokenBytes(longest * shrinking, blanks=any(token.lstrip or token.rstrip for token in added))


def _told(part: Any) -> Mapping[str, Any] | None:
    """A part of a tokenizer as its file has it."""
    return None if part is None else json.loads(part.__getstate__())


def _shrinking(normalizer: Mapping[str, Any] | None) -> float | None:
    """By how much a normalizer may shrink a text; None if it may drop any amount of it."""
    kind = None if normalizer is None else normalizer["type"]
    if normalizer is None or kind in ("Prepend", "ByteLevel"):
        return 1.0
    if kind == "NFC":
        return _COMPOSED
    if kind == "Replace" and "String" in normalizer["pattern"] and normalizer["content"]:
        return max(1.0, len(normalizer["pattern"]["String"].encode()) / len(normalizer["content"].encode()))
    if kind == "Sequence":
        each = [_shrinking(part) for part in normalizer["normalizers"]]
        return None if None in each else math.prod(one for one in each if one is not None)
    return None


def _keeps_all(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return True
    parts = pre_tokenizer.get("pretokenizers", ())
    kept = pre_tokenizer["type"] in _KEPT and pre_tokenizer.get("behavior") != "Removed"
    return kept and all(_keeps_all(part) for part in parts)


def _knows_all(backend: Any, vocabulary: Collection[str], letters: Collection[str]) -> bool:
    """Whether each byte has a token, so that nothing is dropped or becomes part of an unknown word."""
    model = backend.model
    if type(model).__name__ not in ("BPE", "Unigram"):
        return False
    if getattr(model, "byte_fallback", False):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    bytewise = any('"ByteLevel"' in json.dumps(_told(part)) for part in (backend.normalizer, backend.pre_tokenizer))
    return bytewise and all(letter in vocabulary for letter in letters)
