"""Tokens into text, one after the other: a token costs the same whatever it is and however many came before it.

A token is decoded behind the one before it, because a text's first token may lose its space. Parts of characters are
not left to the stock decoders: those know a character only when all of it is there, and decode all of it again until
then. Bytes go through Python's incremental UTF-8 decoder instead.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# A character has at most so many bytes.
_CHARACTER_BYTES = 4
# How tokenizers with a fall-back to bytes write one.
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_EACH_BYTE = "baton.each_byte"


def _one_for_each(error: UnicodeError) -> tuple[str, int]:
    """As the stock decoder of byte fall-backs writes what is no character."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _one_for_each)


def _byte_of() -> dict[str, int]:
    """How byte-level tokenizers write a byte as a letter (GPT-2): as itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


BYTE_OF = _byte_of()


def bytes_named(name: str) -> bytes | None:
    """The bytes that a token of this name stands for, where it is a part of a text that may not be one by itself."""
    if _BYTE.fullmatch(name):
        return bytes.fromhex(name[3:5])
    return bytes(map(BYTE_OF.__getitem__, name)) if BYTE_OF.keys() >= set(name) else None


class TokenTexts:
    """What the tokens of a fast tokenizer are as text, remembered by token."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._alone: dict[int, str] = {}
        self._parts: dict[int, bytes | None] = {}
        self.special = frozenset(
            number for number, token in backend.get_added_tokens_decoder().items() if token.special
        )
        self.errors = "replace" if backend.token_to_id("<0x00>") is None else _EACH_BYTE

    def part(self, token: int) -> bytes | None:
        """The bytes of a token that is no text by itself; none at all of one that there is not. None for text."""
        if token not in self._parts:
            self._parts[token] = self._part(token)
        return self._parts[token]

    def behind(self, before: int | None, token: int) -> str:
        """The text of a token behind another; None for a text's first."""
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
        # A byte of a fall-back is one also where it is a character: what follows may be more of the same.
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
        # Bytes of the prompt alone are what is there of a character.
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
        """Bytes of a character that never became whole, as U+FFFD."""
        rest = self._utf8.decode(b"", True)
        return "" if self._begun else rest

    def _read(self, prompt: Sequence[int]) -> int | None:
        """The prompt's last token that is text; what it has of a character is kept."""
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
        """Drops what the prompt began where this does not go on with it."""
        self._begun = False
        begun, _ = self._utf8.getstate()
        strict = codecs.getincrementaldecoder("utf-8")()
        try:
            strict.decode(begun + (part or b"")[:1], part is None)
        except UnicodeDecodeError:
            self._utf8.reset()


# As many tokens as a character may have, and so many in front of them, are decoded again with each.
_CONTEXT = 4


class PlainDecoder:
    """For tokenizers without a fast backend: decodes the last tokens again with each, and returns what is new."""

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
        # An unfinished character decodes to U+FFFD: wait for the rest of it, which is not longer than a character.
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
