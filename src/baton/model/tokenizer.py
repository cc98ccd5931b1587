"""The model's tokenizer as clients and text streams see it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers.decoders import DecodeStream

from baton.errors import InvalidValue, RequestError, Unsupported


class ModelTokenizer:
    """Encodes, decodes and renders conversations with a stock tokenizer. Safe to call from any thread."""

    def __init__(self, tokenizer: Any, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._pieces: dict[int, bytes] = {}
        self._lock = threading.Lock()  # truncation and padding are state inside a fast tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with the special tokens that the tokenizer adds by itself."""
        with self._lock:
            return list(self._tokenizer(text)["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt of a conversation, ending where the assistant's turn begins.

        Raises Unsupported where the model has no chat template, InvalidValue where the template refuses.
        """
        if not self._tokenizer.chat_template:
            raise Unsupported("this model has no chat template: use /v1/completions", param="messages")
        try:
            with self._lock:
                return list(
                    self._tokenizer.apply_chat_template(
                        [dict(message) for message in messages],
                        add_generation_prompt=True,
                        tokenize=True,
                        return_dict=False,
                    )
                )
        except RequestError:
            raise
        except Exception as error:
            raise InvalidValue(f"the chat template refused these messages: {error}", param="messages") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        with self._lock:
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def piece(self, token_id: int) -> bytes:
        """What this token adds to a text, in UTF-8; a special token's name. It may end inside a character."""
        if token_id not in self._pieces:
            self._pieces[token_id] = self._piece(token_id)
        return self._pieces[token_id]

    def _piece(self, token_id: int) -> bytes:
        # Behind another token, because a text's first one may lose its space.
        before = self.decode(self._anchor)
        both = self.decode([*self._anchor, token_id], skip_special_tokens=False)
        text = both[len(before) :] if both.startswith(before) else self.decode([token_id], skip_special_tokens=False)
        if "\ufffd" not in text:
            return text.encode()
        with self._lock:
            name = str(self._tokenizer.convert_ids_to_tokens(token_id))
        if _BYTE.fullmatch(name):
            return bytes.fromhex(name[3:5])
        return bytes(map(_BYTE_OF.__getitem__, name)) if _BYTE_OF.keys() >= set(name) else text.encode()

    @cached_property
    def _anchor(self) -> list[int]:
        """A token of a common letter."""
        with self._lock:
            return list(self._tokenizer("a", add_special_tokens=False)["input_ids"])[-1:]

    def stream(self, prompt: Sequence[int], *, skip_special_tokens: bool) -> FastDecoder | PlainDecoder:
        """A decoder that goes on where the prompt ends."""
        backend = getattr(self._tokenizer, "_tokenizer", None)
        if backend is None:
            return PlainDecoder(self._tokenizer, skip_special_tokens)
        return FastDecoder(backend, prompt, skip_special_tokens)


def _byte_of() -> dict[str, int]:
    """How byte-level tokenizers write a byte as a letter (GPT-2): as itself if printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTE_OF = _byte_of()
# How tokenizers with a fall-back to bytes write one.
_BYTE = re.compile("<0x[0-9A-F]{2}>")

# Enough of the prompt for the decoder to know whether a first space belongs to the text.
_TAIL = 8


class FastDecoder:
    """`tokenizers`' own incremental decoder."""

    def __init__(self, backend: Any, prompt: Sequence[int], skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip = skip_special_tokens
        self._stream = DecodeStream(ids=list(prompt[-_TAIL:]), skip_special_tokens=skip_special_tokens)
        self._unsent: list[int] = []

    def step(self, token_id: int) -> str:
        piece = self._stream.step(self._backend, token_id)
        if piece is None:
            self._unsent.append(token_id)
            return ""
        self._unsent.clear()
        return str(piece)

    def flush(self) -> str:
        """Bytes of a character that never became whole, as U+FFFD."""
        rest, self._unsent = self._unsent, []
        return str(self._backend.decode(rest, skip_special_tokens=self._skip)) if rest else ""


class PlainDecoder:
    """For tokenizers without a fast backend: decodes the text again with every token and answers what is new."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._ids: list[int] = []
        self._sent = 0

    def step(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._text()
        # An unfinished character decodes to U+FFFD: wait for the rest of it.
        return "" if text.endswith("\ufffd") else self._new(text)

    def flush(self) -> str:
        return self._new(self._text())

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=self._skip))

    def _new(self, text: str) -> str:
        piece, self._sent = text[self._sent :], len(text)
        return piece
