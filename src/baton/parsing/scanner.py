"""Text that comes in pieces, read by a generator that need not know where the pieces end.

A reader is written as if all text were there: it asks for the text up to a tag, or for a JSON value, with `yield from`.
If the text ends in the middle, the generator rests until more comes. Each character is read a bounded number of times,
and text that was read is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Generator
from functools import lru_cache

from baton.parsing.deltas import Delta, Text

Steps = Generator[None, None, None]
TextSteps = Generator[None, None, str]
Take = Callable[[str], object]
"""Gets text as soon as it is certain."""

_BLANKS = re.compile(r"\s*")
# What changes the depth of a JSON value or begins a string; and a string up to its end, or up to a backslash after
# which nothing has come yet.
_MARK = re.compile(r'[{}\[\]"]')
_STRING = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class Scanner:
    """One answer's text. `out`: the deltas since the last `push`; `ended`: no more text comes."""

    def __init__(self) -> None:
        self.out: list[Delta] = []
        self.ended = False
        self._text = ""
        self._at = 0
        self._kept: list[str] | None = None
        self._held = 0

    def begin(self, steps: Steps) -> None:
        self._steps = steps
        next(steps, None)

    def push(self, text: str) -> list[Delta]:
        self._text = self._text[self._at :] + text
        self._at = 0
        return self._go_on()

    def finish(self) -> list[Delta]:
        self.ended = True
        return self._go_on()

    @property
    def held(self) -> int:
        return self._held + len(self._text) - self._at

    @property
    def pending(self) -> str:
        """Text that came and was not read yet."""
        return self._text[self._at :]

    def say(self, text: str) -> None:
        if text:
            self.out.append(Text(text))

    def keep(self) -> None:
        """From here on, text that is read is kept until `forget` or `kept`."""
        self._kept, self._held = [], 0

    def forget(self) -> None:
        self._kept, self._held = None, 0

    def kept(self) -> str:
        """Returns the text read since `keep`, and stops keeping it."""
        kept = "".join(self._kept or ())
        self.forget()
        return kept

    def until(self, tags: Collection[str], take: Take, *, read_tag: bool = True, keep_cut: bool = True) -> TextSteps:
        """Passes on the text before the first of these tags. Returns the tag; "" if the text ends.

        `read_tag`: the tag is read too. `keep_cut`: a tag that the text's end cuts off is passed on as text.
        """
        pattern, longest = _pattern_of(tuple(tags))
        while True:
            match = pattern.search(self._text, self._at)
            if match is not None:
                self._pass(match.start(), take)
                self._pass(match.end() if read_tag else match.start())
                return match[0]
            cut = _overlap(self._text, tags, self._at, longest)
            self._pass(len(self._text) - cut, take)
            if self.ended:
                self._pass(len(self._text), take if keep_cut else None)
                return ""
            yield

    def tag(self, *tags: str) -> TextSteps:
        """Reads the longest of these tags that comes next; "" if none does."""
        longest = sorted(tags, key=len, reverse=True)
        while True:
            rest = self._text[self._at : self._at + len(longest[0])]
            waits = not self.ended and any(len(rest) < len(tag) and tag.startswith(rest) for tag in longest)
            if not waits:
                break
            yield
        read = next((tag for tag in longest if rest.startswith(tag)), "")
        self._pass(self._at + len(read))
        return read

    def blanks(self) -> TextSteps:
        """Reads all blanks that come next."""
        return (yield from self.matching(_BLANKS))

    def peek(self) -> TextSteps:
        """The next character, without reading it; "" at the end."""
        while self._at == len(self._text) and not self.ended:
            yield
        return self._text[self._at : self._at + 1]

    def matching(self, pattern: re.Pattern[str]) -> TextSteps:
        """Reads as much as this pattern matches; the pattern is a repetition of one set of characters."""
        pieces: list[str] = []
        while True:
            end = pattern.match(self._text, self._at).end()  # type: ignore[union-attr]
            self._pass(end, pieces.append)
            if end < len(self._text) or self.ended:
                return "".join(pieces)
            yield

    def json(self, take: Take) -> Generator[None, None, bool]:
        """Passes on an object or a list up to its end. Returns whether it ended; only brackets are checked."""
        depth = 0
        while True:
            end = self._at
            match = _MARK.search(self._text, end)
            if match is None:
                self._pass(len(self._text), take)
            elif match[0] == '"':
                self._pass(match.end(), take)
                yield from self.string(take)
                continue
            else:
                depth += 1 if match[0] in "{[" else -1
                self._pass(match.end(), take)
                if depth <= 0:
                    return True
                continue
            if self.ended:
                return False
            yield

    def string(self, take: Take) -> Generator[None, None, bool]:
        """Passes on a JSON string after its first quote, including its last one. Returns whether it ended."""
        while True:
            end = _STRING.match(self._text, self._at).end()  # type: ignore[union-attr]
            closed = self._text.startswith('"', end)
            self._pass(end + closed, take)
            if closed or self.ended:
                if not closed:
                    self._pass(len(self._text), take)
                return closed
            yield

    def rest(self, take: Take) -> Steps:
        """Passes on all further text."""
        while True:
            self._pass(len(self._text), take)
            if self.ended:
                return
            yield

    def _pass(self, end: int, take: Take | None = None) -> None:
        if end == self._at:
            return
        piece, self._at = self._text[self._at : end], end
        if self._kept is not None:
            self._kept.append(piece)
            self._held += len(piece)
        if take is not None:
            take(piece)

    def _go_on(self) -> list[Delta]:
        next(self._steps, None)
        out, self.out = self.out, []
        return out


@lru_cache(maxsize=64)
def _pattern_of(tags: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    # If several begin at one place, the longest counts.
    longest = sorted(tags, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))), len(longest[0])


def _overlap(text: str, tags: Collection[str], begin: int, longest: int) -> int:
    """Length of the longest end of `text` from `begin` on that is a proper beginning of one of the tags."""
    most = min(len(text) - begin, longest - 1)
    return next((n for n in range(most, 0, -1) if any(tag.startswith(text[-n:]) for tag in tags if n < len(tag))), 0)
