"""Tokens into text, piece by piece: never half a character, never part of a stop string."""

from __future__ import annotations

from typing import Protocol


class IncrementalDecoder(Protocol):
    """Turns one token after the other into text; a body of it lives in `model/tokenizer.py`."""

    def step(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""

    def flush(self) -> str:
        """What is left when no further token comes (an incomplete character becomes U+FFFD)."""


class TextStream:
    """One query's text as it comes.

    `push` and `finish` answer text that is safe to send: as long as its end might be the start of a stop string it
    is held back. Once `stopped`, the stop string and all behind it are dropped.
    """

    def __init__(self, decoder: IncrementalDecoder, stop: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """Takes the next token; answers the text that may be sent now.

        Text of tokens that may not stop is sent as it comes, stop strings and all.
        """
        piece = self._decoder.step(token_id)
        if not may_stop:
            held, self._held = self._held, ""
            return held + piece
        return self._release(piece)

    def finish(self) -> str:
        """No further token comes: answers all that is left (nothing, if stopped)."""
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        if self.stopped:
            return text
        rest, self._held = self._held, ""
        return text + rest

    def _release(self, piece: str) -> str:
        if self.stopped or not (self._held or piece):
            return ""
        if not self._stop:
            return piece
        text = self._held + piece
        found = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, string) for string in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
