"""Tokens into text, one after the other: a token costs the same, whatever it is and however many came before.

A token is decoded after the one before it, because a text's first token may lose its space. Stock decoders know a
character only when all of it is there, and decode all of it again until then; so bytes go through Python's incremental
UTF-8 decoder instead.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# A character has at most so many bytes.
_CHARACTER_BYTES = 4
# How tokenizers with a byte fallback write a byte.
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_EACH_BYTE = "baton.each_byte"


def _one_for_each(error: UnicodeError) -> tuple[str, int]:
    """Replaces invalid bytes as the stock decoder of byte fallbacks does."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _one_for_each)


def _byte_of() -> dict[str, int]:
    """The letter by which byte-level tokenizers write a byte (GPT-2): itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_OF = _byte_of()


def bytes_named(name: str) -> bytes | None:
    """The bytes of a token with this name, if it may be a part of a character."""
    if _BYTE.fullmatch(name):
        return bytes.fromhex(name[3:5])
    return bytes(map(BYTE_OF.__getitem__, name)) if BYTE_OF.keys() >= set(name) else None


class TokenTexts:
    """The texts of a fast tokenizer's tokens, cached by token."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._alone: dict[int, str] = {}
        self._parts: dict[int, bytes | None] = {}
        self.special = frozenset(
            number for number, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.errors = "replace" if backend.token_to_id("<0x00>") is None else _EACH_BYTE

    def part(self, token: int) -> bytes | None:
        """The bytes of a token that is not a text by itself; empty for an unknown token. None for text."""
        if token not in self._parts:
            self._parts[token] = self._part(token)
        return self._parts[token]

    def behind(self, before: int | None, token: int) -> str:
        """The text of a token after another one; None for the first of a text."""
        if before is None:
            return self._text(token)
        first, both = self._text(before), self._decoded([before, token])
        return both[len(first) :] if both.startswith(first) else self._text(token)

    def _text(self, token: int) -> str:
        if token not in self._alone:
            self._alone[token] = self._decoded([token])
        return self._alone[token]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._backend.decode(tokens, skip_special_tokens=False))

    def _part(self, token: int) -> bytes | None:
        name = self._backend.id_to_token(token)
        if name is None:
            return b""
        # A fallback byte counts as one even if it is a character, because the next token may be part of it.
        is_part = self._text(token) != name if _BYTE.fullmatch(name) else "\ufffd" in self._text(token)
        return bytes_named(name) if is_part else None


class FastDecoder:
    """Decodes the tokens after a prompt, one at a time.

    `hidden`: tokens without text. `visible_special_tokens`: special tokens that appear in the text, by these names. A
    character that the prompt began comes whole if the text completes it. If not, it is left to the prompt's own text.
    """

    def __init__(
        self,
        texts: TokenTexts,
        prompt: Sequence[int],
        hidden: Collection[int] = (),
        visible_special_tokens: Mapping[int, str] | None = None,
    ) -> None:
        self._texts = texts
        self._hidden = hidden
        self._visible_special_tokens = visible_special_tokens or {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")(texts.errors)
        self._before = self._read(prompt)
        # Bytes of the prompt that are a part of a character.
        self._begun = bool(self._utf8.getstate()[0])

    def step(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        part = None if token_id in self._visible_special_tokens else self._texts.part(token_id)
        if part == b"":
            return ""
        if self._begun:
            self._begin(part)
        before, self._before = self._before, token_id
        if part is not None:
            return self._utf8.decode(part)
        broken = self._utf8.decode(b"", True)
        return broken + (
            self._visible_special_tokens[token_id]
            if token_id in self._visible_special_tokens
            else self._texts.behind(before, token_id)
        )

    def flush(self) -> str:
        """Returns U+FFFD for the bytes of an incomplete character."""
        rest = self._utf8.decode(b"", True)
        return "" if self._begun else rest

    def _read(self, prompt: Sequence[int]) -> int | None:
        """Reads the prompt's last token that is text, and keeps its part of a character."""
        parts: list[bytes] = []
        last = None
        for token in reversed(prompt):
            if token in self._hidden or (part := self._texts.part(token)) == b"":
                continue
            last = token if last is None else last
            if part is None or len(parts) == _CHARACTER_BYTES:
                break
            parts.append(part)
        self._utf8.decode(b"".join(reversed(parts)))
        return last

    def _begin(self, part: bytes | None) -> None:
        """Drops the character that the prompt began if this token does not continue it."""
        self._begun = False
        begun, _ = self._utf8.getstate()
        strict = codecs.getincrementaldecoder("utf-8")()
        try:
            strict.decode(begun + (part or b"")[:1], part is None)
        except UnicodeDecodeError:
            self._utf8.reset()


# A character may have so many tokens; as many and the ones before them are decoded again each time.
_CONTEXT = 4


class PlainDecoder:
    """For tokenizers without a fast backend: decodes the last tokens again with each, and returns the new text."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._hidden = frozenset(getattr(tokenizer, "all_special_ids", ()) if skip_special_tokens else ())
        self._ids: list[int] = []
        self._sent = 0

    def step(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._ids.append(token_id)
        text = self._text()
        # An unfinished character decodes to U+FFFD: wait for its rest, but not longer than a character is.
        if text.endswith("\ufffd") and len(self._ids) < _CONTEXT + _CHARACTER_BYTES:
            return ""
        piece = text[self._sent :]
        if len(self._ids) > _CONTEXT:
            self._ids = self._ids[-_CONTEXT:]
            text = self._text()
        self._sent = len(text)
        return piece

    def flush(self) -> str:
        piece, self._sent = (text := self._text())[self._sent :], len(text)
        return piece

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=self._skip))
