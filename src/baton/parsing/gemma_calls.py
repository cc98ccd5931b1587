"""Gemma's calls: a name and arguments in braces, keys without quotes, strings between tokens of their own."""

from __future__ import annotations

import json
import re

from baton.parsing.calls import Enclosed, Reading
from baton.parsing.scanner import Steps

_NAME = re.compile(r"[\w.\-]*")
_SCALAR = re.compile(r"[^,\]}\s]*")
_DEEPEST = 64


class Gemma(Enclosed):
    """Gemma 4."""

    opening = "<|tool_call>"
    closing = "<tool_call|>"
    quote = '<|"|>'

    def inside(self) -> Reading:
        scanner = self.scanner
        yield from scanner.blanks()
        if not (yield from scanner.tag("call:")):
            return False
        name = yield from scanner.matching(_NAME)
        if (yield from scanner.peek()) != "{" or not self.start(name):
            return False
        yield from self._value(0)
        return True

    def _value(self, depth: int) -> Steps:
        """Passes on a value as JSON."""
        scanner = self.scanner
        yield from scanner.blanks()
        if (yield from scanner.tag(self.quote)):
            yield from self._string(self.quote)
            return
        opened = yield from scanner.tag("{", "[", '"')
        if opened == '"':
            self.argue('"')
            yield from scanner.string(self.argue)
        elif opened and depth < _DEEPEST:
            self.argue(opened)
            yield from self._items(opened, depth)
        else:
            text = yield from scanner.matching(_SCALAR)
            # What is cut may be part of a number or of a tag.
            if not scanner.ended or scanner.pending:
                self.argue(_scalar(text))

    def _items(self, opened: str, depth: int) -> Steps:
        scanner, closing = self.scanner, "}" if opened == "{" else "]"
        first = True
        while True:
            yield from scanner.blanks()
            if (yield from scanner.tag(",")):
                continue
            if (yield from scanner.tag(closing)):
                self.argue(closing)
                return
            upcoming = yield from scanner.peek()
            if not upcoming or upcoming in "}]":
                return
            if not first:
                self.argue(", ")
            first = False
            if opened == "{":
                yield from self._key()
            yield from self._value(depth + 1)

    def _key(self) -> Steps:
        scanner = self.scanner
        key: list[str] = []
        if (yield from scanner.tag(self.quote)):
            yield from scanner.until((self.quote,), key.append)
            yield from scanner.until((":",), lambda text: None)
        else:
            yield from scanner.until((":", "}"), key.append)
        if scanner.ended and not scanner.pending:
            return
        self.argue(json.dumps("".join(key).strip().strip('"'), ensure_ascii=False) + ": ")

    def _string(self, quote: str) -> Steps:
        self.argue('"')
        closed = yield from self.scanner.until((quote,), self._escaped, keep_cut=False)
        if closed:
            self.argue('"')

    def _escaped(self, text: str) -> None:
        self.argue(json.dumps(text, ensure_ascii=False)[1:-1])


class FunctionGemma(Gemma):
    """The same between other tags."""

    opening = "<start_function_call>"
    closing = "<end_function_call>"
    quote = "<escape>"


def _scalar(text: str) -> str:
    """A number or constant as JSON; anything else becomes a string."""
    try:
        json.loads(text, parse_constant=_refused)
        return text
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
