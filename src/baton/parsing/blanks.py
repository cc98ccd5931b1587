"""Blanks at the end of a text that comes in pieces: held back until it is known what follows them."""

from __future__ import annotations


class TrailingBlanks:
    """`kinds`: the characters that are blanks; None for all white space. `size`: how many are held back."""

    def __init__(self, kinds: str | None = None) -> None:
        self.size = 0
        self._kinds = kinds
        self._pieces: list[str] = []

    def add(self, text: str) -> str:
        """Takes the next piece. Returns what is certain: everything up to its last word, with the blanks before."""
        words = text.rstrip(self._kinds)
        said = self.take() + words if words else ""
        if len(words) < len(text):
            self._pieces.append(text[len(words) :])
            self.size += len(text) - len(words)
        return said

    def take(self) -> str:
        """Returns what is held back, which is not held back any more."""
        blanks = "".join(self._pieces)
        self._pieces, self.size = [], 0
        return blanks
