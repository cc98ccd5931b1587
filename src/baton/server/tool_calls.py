"""Tool calls in what a model says: found while it is said, whatever the pieces it comes in.

What might be the beginning of a call is held back. What turns out to be none stays text: a call is a JSON object with
the name of a tool that was offered and an object of arguments, and nothing else.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol


class Call(NamedTuple):
    """`arguments`: a JSON object, as text. `number`: which of the answer's calls it is, from 0 on."""

    number: int
    id: str
    name: str
    arguments: str


class Said(NamedTuple):
    """Text to be shown, and calls."""

    text: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Style:
    """How a model writes a call: between which tags, and under which name its arguments.

    `closing` "" where nothing closes it; then it may stand without the opening tag, at the beginning of an answer.
    """

    opening: str
    closing: str
    arguments: str


HERMES = Style("<tool_call>", "</tool_call>", "arguments")
LLAMA = Style("<|python_tag|>", "", "parameters")


class Parser(Protocol):
    """One answer's."""

    @property
    def calls(self) -> int:
        """How many there have been."""

    @property
    def held(self) -> int:
        """Characters that are held back."""

    def push(self, text: str) -> Said:
        """Takes the next piece of text."""

    def finish(self) -> Said:
        """No more text comes: answers what was held back."""


def parser_of(style: Style, tools: Collection[str]) -> Parser:
    reader = _Reader(style, frozenset(tools))
    return Tagged(reader) if style.closing else Bare(reader)


@dataclass(slots=True)
class _Reader:
    """Makes calls of JSON."""

    style: Style
    tools: frozenset[str]
    count: int = 0
    ends: re.Pattern[str] = field(init=False)  # what ends a call's JSON outside its strings, or begins a string

    def __post_init__(self) -> None:
        self.ends = re.compile(f'"|{re.escape(self.style.closing)}')

    def call(self, text: str) -> Call | None:
        """None where it is no call."""
        try:
            found = json.loads(text, parse_constant=_refused)
            written = json.dumps(found[self.style.arguments], ensure_ascii=False)
            written.encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError, TypeError, KeyError):
            return None
        name, arguments = found.get("name"), found[self.style.arguments]
        if len(found) != 2 or not isinstance(name, str) or name not in self.tools or not isinstance(arguments, dict):
            return None
        self.count += 1
        return Call(self.count - 1, f"call_{secrets.token_hex(12)}", name, written)


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


@dataclass(slots=True)
class _Strings:
    """Whether a JSON text that comes in pieces is inside one of its strings. Each character is looked at once."""

    inside: bool = False
    _escaped: bool = False

    def leave(self, text: str, at: int) -> int:
        """Goes on inside a string; answers where it ends, or the text's end if it does not end there."""
        at = _REST.match(text, at + self._escaped).end()  # type: ignore[union-attr]
        self.inside = not text.startswith('"', at)
        self._escaped = self.inside and at < len(text)  # by a backslash at the text's end
        return len(text) if self.inside else at + 1


@dataclass(slots=True)
class Tagged:
    """Calls between two tags, text around them. Blanks beside a call are dropped.

    What is held is kept in pieces, and each character is looked at once: a model may say a tag a thousand times.
    """

    reader: _Reader
    _blanks: list[str] = field(default_factory=list, init=False)  # a tag may follow
    _inside: list[str] | None = field(default=None, init=False)  # what came behind an opening tag
    _tail: str = field(default="", init=False)  # what may become the tag that is looked for
    _strings: _Strings = field(default_factory=_Strings, init=False)
    _held: int = field(default=0, init=False)

    @property
    def calls(self) -> int:
        return self.reader.count

    @property
    def held(self) -> int:
        return self._held

    def push(self, text: str) -> Said:
        said: list[str] = []
        calls: list[Call] = []
        text, self._tail = self._tail + text, ""
        at = 0
        while at < len(text):
            at = self._outside(text, at, said) if self._inside is None else self._within(text, at, said, calls)
        return Said("".join(said), tuple(calls))

    def finish(self) -> Said:
        inside = [] if self._inside is None else [self.reader.style.opening, *self._inside]
        rest = "".join([*self._blanks, *inside, self._tail])
        self._blanks, self._inside, self._tail, self._held = [], None, "", 0
        return Said(rest if rest.strip() or not self.calls else "")

    def _outside(self, text: str, at: int, said: list[str]) -> int:
        """Text up to an opening tag, or to what might become one; answers where to go on."""
        opening = self.reader.style.opening
        found = text.find(opening, at)
        upto = found if found >= 0 else len(text) - _overlap(text, opening, at)
        plain = text[at:upto]
        shown = plain.rstrip()
        if shown:
            said += [*self._blanks, shown]
            self._blanks, self._held = [], 0
        self._hold(self._blanks, plain[len(shown) :])
        if found < 0:
            self._tail = text[upto:]
            return len(text)
        self._inside = []
        return found + len(opening)

    def _within(self, text: str, begin: int, said: list[str], calls: list[Call]) -> int:
        """What is inside, up to its closing tag; answers where to go on. A tag in a string closes nothing."""
        assert self._inside is not None
        closing, at = self.reader.style.closing, begin
        while at < len(text):
            if self._strings.inside:
                at = self._strings.leave(text, at)
            elif (found := self.reader.ends.search(text, at)) is None:
                at = len(text) - _overlap(text, closing, at)
                self._hold(self._inside, text[begin:at])
                self._tail = text[at:]
                return len(text)
            elif found[0] == closing:
                self._hold(self._inside, text[begin : found.start()])
                self._close(said, calls)
                return found.end()
            else:
                self._strings.inside, at = True, found.end()
        self._hold(self._inside, text[begin:])
        return at

    def _close(self, said: list[str], calls: list[Call]) -> None:
        assert self._inside is not None
        inside, style = "".join(self._inside), self.reader.style
        call = self.reader.call(inside)
        if call is not None:
            calls.append(call)
        else:
            said += [*self._blanks, style.opening, inside, style.closing]
        self._blanks, self._inside, self._held = [], None, 0

    def _hold(self, pieces: list[str], piece: str) -> None:
        if piece:
            pieces.append(piece)
            self._held += len(piece)


@dataclass(slots=True)
class Bare:
    """An answer that is nothing but calls, each a JSON object, perhaps behind a tag; others are text."""

    reader: _Reader
    _pieces: list[str] = field(default_factory=list, init=False)  # all since the last call
    _head: str = field(default="", init=False)  # what came before an object, each run of blanks as one
    _depth: int = field(default=0, init=False)  # of braces; 0: before an object
    _strings: _Strings = field(default_factory=_Strings, init=False)
    _text: bool = field(default=False, init=False)
    _held: int = field(default=0, init=False)

    @property
    def calls(self) -> int:
        return self.reader.count

    @property
    def held(self) -> int:
        return self._held

    def push(self, text: str) -> Said:
        calls: list[Call] = []
        at = 0
        while at < len(text) and not self._text:
            at = self._within(text, at, calls) if self._depth else self._before(text, at)
        rest = self._rest() + text[at:] if self._text else ""
        return Said(rest, tuple(calls))

    def finish(self) -> Said:
        rest = self._rest()
        return Said(rest if rest.strip() or not self.calls else "")

    def _rest(self) -> str:
        rest = "".join(self._pieces)
        self._pieces, self._held = [], 0
        return rest

    def _before(self, text: str, at: int) -> int:
        """What stands before an object, and its first brace; anything else makes it all text."""
        brace = text.find("{", at)
        upto = brace if brace >= 0 else len(text)
        self._head = _BLANKS.sub(" ", self._head + text[at:upto])
        rest = _BETWEEN[self.calls > 0].sub("", self._head, count=1)
        tag = self.reader.style.opening
        opens = not rest or (rest.startswith(tag) and not rest[len(tag) :].strip())
        if brace >= 0 and opens:
            self._head, self._depth, upto = "", 1, brace + 1
        elif brace >= 0 or not (opens or tag.startswith(rest)):
            self._text = True
        self._hold(text[at:upto])
        return upto

    def _within(self, text: str, begin: int, calls: list[Call]) -> int:
        at = begin
        while at < len(text) and self._depth:
            if self._strings.inside:
                at = self._strings.leave(text, at)
            elif (found := _MARK.search(text, at)) is None:
                at = len(text)
            else:
                at = found.end()
                self._strings.inside = found[0] == '"'
                self._depth += {"{": 1, "}": -1}.get(found[0], 0)
        self._hold(text[begin:at])
        if not self._depth:
            self._close(calls)
        return at

    def _close(self, calls: list[Call]) -> None:
        written = "".join(self._pieces)
        call = self.reader.call(written[written.index("{") :])
        if call is None:
            self._text = True
            return
        calls.append(call)
        self._rest()

    def _hold(self, piece: str) -> None:
        self._pieces.append(piece)
        self._held += len(piece)


_BLANKS = re.compile(r"\s+")
# What may stand before a call, and between two.
_BETWEEN = {False: re.compile(r"\s*"), True: re.compile(r"\s*;?\s*")}
# What changes how deep an object is, or begins a string; and a string up to its end, or to a backslash behind which
# nothing has come yet.
_MARK = re.compile(r'[{}"]')
_REST = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


def _overlap(text: str, tag: str, begin: int) -> int:
    """Length of the longest end of `text` from `begin` on that is a true beginning of `tag`."""
    longest = min(len(text) - begin, len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
