"""Turns tokens into text, piece by piece: never half a character, never part of a stop string.

Also texts of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

# Marks begin here: halves of surrogate pairs, which no text contains.
_MARKS = 0xD800


class IncrementalDecoder(Protocol):
    """Turns one token after the other into text; its body is in `model/detokenizer.py`."""

    def step(self, token_id: int) -> str:
        """Returns the text that this token completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """Returns what is left when no further token comes (an incomplete character becomes U+FFFD)."""


class TextStream:
    """One query's text as it comes.

    `push` and `finish` return text that is safe to send. Text is held back as long as its end might be the start of a
    stop string. Once `stopped`, the stop string and everything after it are dropped; `stopped_by` is the string.

    `silent`: the names of tokens without text. A stop string that contains such a name is met by the token as by its
    letters. Until then a mark stands for the token and is never sent.
    """

    def __init__(
        self, decoder: IncrementalDecoder, stop: tuple[str, ...] = (), silent: Mapping[int, str] | None = None
    ) -> None:
        self._decoder = decoder
        named = {token: name for token, name in (silent or {}).items() if any(name in string for string in stop)}
        # A name may be part of a longer one.
        names = sorted(set(named.values()), key=lambda name: (-len(name), name))
        mark_of = {name: chr(_MARKS + at) for at, name in enumerate(names)}
        self._marks = {token: mark_of[name] for token, name in named.items()}
        self._unmarked = dict.fromkeys(map(ord, mark_of.values()))
        # Each form of a stop string, with the string as it was asked for.
        self._stop = {string: string for string in stop}
        for string in stop:
            self._stop.setdefault(_marked(string, mark_of), string)
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Takes the next token. Returns the text that may be sent now.

        Text of tokens that may not stop is sent as it comes, including stop strings.
        """
        piece = self._decoder.step(token_id) + self._marks.get(token_id, "")
        if not may_stop:
            piece, self._held = self._held + piece, ""
        return self._sent(self._release(piece) if may_stop else piece)

    def finish(self) -> str:
        """No further token comes. Returns everything that is left (nothing, if stopped)."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return self._sent(text)

    def _sent(self, text: str) -> str:
        return text.translate(self._unmarked) if self._unmarked else text

    def _release(self, piece: str) -> str:
        if self.stopped or not (self._held or piece):
            return ""
        if not self._stop:
            return piece
        text = self._held + piece
        matches = [(at, string) for string in self._stop if (at := text.find(string)) >= 0]
        if matches:
            at, string = min(matches)
            self.stopped_by, self._held = self._stop[string], ""
            return text[:at]
        keep = max(_overlap(text, string) for string in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _marked(stop: str, mark_of: Mapping[str, str]) -> str:
    """A stop string with a mark in place of each name; the longest names come first."""
    for name, mark in mark_of.items():
        stop = stop.replace(name, mark)
    return stop


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


class PartedText(str):
    """A message's text that was sent in parts. As a string, the parts are joined by line ends."""

    parts: tuple[str, ...]

    def __new__(cls, parts: Sequence[str]) -> PartedText:
        made = super().__new__(cls, "\n".join(parts))
        made.parts = tuple(parts)
        return made


class ArgumentsText(dict[str, Any]):
    """The arguments of a tool call: a mapping; as a string, the JSON text that was sent.

    Some chat templates write the mapping as JSON themselves, others join the text.
    """

    def __init__(self, arguments: Mapping[str, Any], text: str) -> None:
        super().__init__(arguments)
        self._text = text

    def __str__(self) -> str:
        return self._text

    __repr__ = __str__

    def __add__(self, other: object) -> str:
        return self._text + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self._text if isinstance(other, str) else NotImplemented
