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
class Tagged:
    """Calls between two tags, text around them. Blanks beside a call are dropped."""

    reader: _Reader
    _held: str = field(default="", init=False)
    _inside: bool = field(default=False, init=False)
    _blanks: str = field(default="", init=False)  # before what is inside

    @property
    def calls(self) -> int:
        return self.reader.count

    def push(self, text: str) -> Said:
        self._held += text
        said = ""
        calls: list[Call] = []
        while True:
            if not self._inside:
                said += self._before()
            if not self._inside or (end := self._end()) is None:
                return Said(said, tuple(calls))
            inside, self._held, self._inside = self._held[:end], self._held[end:], False
            style = self.reader.style
            call = self.reader.call(inside[len(style.opening) : -len(style.closing)])
            if call is not None:
                calls.append(call)
            else:
                said += self._blanks + inside

    def finish(self) -> Said:
        rest, self._held = (self._blanks if self._inside else "") + self._held, ""
        return Said(rest if rest.strip() or not self.calls else "")

    def _before(self) -> str:
        """Text up to an opening tag, or to what might become one; blanks are held back, since a tag may follow."""
        style, held = self.reader.style, self._held
        at = held.find(style.opening)
        self._inside = at >= 0
        upto = at if self._inside else len(held) - _overlap(held, style.opening)
        said = held[:upto].rstrip()
        self._blanks = held[len(said) : upto]
        self._held = held[upto:] if self._inside else held[len(said) :]
        return said

    def _end(self) -> int | None:
        """Where what is inside ends, its closing tag with it; a tag in a string of the JSON does not close it."""
        style = self.reader.style
        at = self._held.find(style.closing)
        while at >= 0:
            if not _in_string(self._held[len(style.opening) : at]):
                return at + len(style.closing)
            at = self._held.find(style.closing, at + 1)
        return None


@dataclass(slots=True)
class Bare:
    """An answer that is nothing but calls, each a JSON object, perhaps behind a tag; others are text."""

    reader: _Reader
    _held: str = field(default="", init=False)
    _text: bool = field(default=False, init=False)

    @property
    def calls(self) -> int:
        return self.reader.count

    def push(self, text: str) -> Said:
        if self._text:
            return Said(text)
        self._held += text
        calls: list[Call] = []
        while (begin := self._begin()) is not None:
            end = _end_of_object(self._held, begin) if "}" in text else None
            if end is None:
                return Said("", tuple(calls))
            call = self.reader.call(self._held[begin:end])
            if call is None:
                break
            calls.append(call)
            self._held = self._held[end:]
        if begin is None and self._waits():
            return Said("", tuple(calls))
        self._text = True
        return Said(self._rest(), tuple(calls))

    def finish(self) -> Said:
        rest = self._rest()
        return Said(rest if rest.strip() or not self.calls else "")

    def _rest(self) -> str:
        rest, self._held = self._held, ""
        return rest

    def _begin(self) -> int | None:
        """Where the next object begins, behind the tag and what parts calls."""
        found = _BETWEEN[self.calls > 0].match(self._held)
        at = found.end() if found else 0
        if self._held.startswith(self.reader.style.opening, at):
            at += len(self.reader.style.opening)
            at += len(self._held[at:]) - len(self._held[at:].lstrip())
        return at if self._held.startswith("{", at) else None

    def _waits(self) -> bool:
        """Whether a call may still begin with what comes."""
        rest = _BETWEEN[self.calls > 0].sub("", self._held, count=1)
        tag = self.reader.style.opening
        return tag.startswith(rest) or (rest.startswith(tag) and not rest[len(tag) :].strip())


# What may stand before a call, and between two.
_BETWEEN = {False: re.compile(r"\s*"), True: re.compile(r"\s*;?\s*")}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PART = re.compile(rf'{_STRING.pattern}|[{{}}"]', re.DOTALL)


def _end_of_object(text: str, begin: int) -> int | None:
    """Where the JSON object that begins there ends, if it does."""
    depth = 0
    for part in _PART.finditer(text, begin):
        if part[0] == '"':
            return None
        depth += {"{": 1, "}": -1}.get(part[0], 0)
        if not depth:
            return part.end()
    return None


def _in_string(text: str) -> bool:
    """Whether a JSON text ends inside one of its strings."""
    return '"' in _STRING.sub("", text)


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `tag`."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(tag[:n])), 0)
