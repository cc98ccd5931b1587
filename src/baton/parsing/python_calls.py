"""Calls in Python's syntax, between tags: LFM2, OLMo 3."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from baton.parsing.calls import Enclosed, Reading
from baton.parsing.scanner import Steps, TextSteps

_BETWEEN = re.compile(r"[\s\[\],;]*")
_NAME = re.compile(r"[\w.\-]*")
_STOPS = ("(", ")", "[", "]", "{", "}", ",", '"', "'")
_QUOTED = {quote: (quote, "\\") for quote in ('"', "'")}
_CONSTANTS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_DEEPEST = 64


class Pythonic(Enclosed):
    """A list of calls, with keywords."""

    opening = "<|tool_call_start|>"
    closing = "<|tool_call_end|>"

    def inside(self) -> Reading:
        any_call = False
        while True:
            yield from self.scanner.matching(_BETWEEN)
            name = yield from self.scanner.matching(_NAME)
            if not name or not (yield from self.scanner.tag("(")) or not self.start(name):
                return any_call
            any_call = True
            yield from self._arguments()

    def _arguments(self) -> Steps:
        first = True
        while True:
            yield from self.scanner.matching(_BETWEEN)
            if (yield from self.scanner.tag(")")):
                self.argue("{}" if first else "}")
                return
            key = yield from self.scanner.matching(_NAME)
            yield from self.scanner.blanks()
            if not key or not (yield from self.scanner.tag("=")):
                return
            text = yield from self._value()
            if self.scanner.ended and not self.scanner.pending:
                return
            self.argue(("{" if first else ", ") + json.dumps(key) + ": " + _json(text))
            first = False

    def _value(self) -> TextSteps:
        """The text of an argument, up to a comma or bracket outside of it."""
        pieces: list[str] = []
        depth = 0
        while True:
            stop = yield from self.scanner.until(_STOPS, pieces.append, read_tag=False)
            if not stop or (depth == 0 and stop in ",)"):
                return "".join(pieces)
            pieces.append((yield from self.scanner.tag(stop)))
            if stop in _QUOTED:
                yield from self._string(stop, pieces)
            else:
                depth += (stop in "([{") - (stop in ")]}")
                if depth > _DEEPEST or depth < 0:
                    return "".join(pieces)

    def _string(self, quote: str, pieces: list[str]) -> Steps:
        while True:
            stop = yield from self.scanner.until(_QUOTED[quote], pieces.append)
            pieces.append(stop)
            if stop != "\\":
                return
            escaped = yield from self.scanner.peek()
            pieces.append((yield from self.scanner.tag(escaped)) if escaped else "")


class Olmo(Pythonic):
    """One call on each line."""

    opening = "<function_calls>"
    closing = "</function_calls>"


def _json(text: str) -> str:
    """A literal of Python or JSON, as JSON; anything else becomes a string."""
    try:
        return json.dumps(_Literal(text).whole(), ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError):
        return json.dumps(text.strip(), ensure_ascii=False)


# Python's own parser is not used: a model's text could be nested so deeply that it ends the process.
_TOKEN = re.compile(
    r"""\s*(?:(?P<string>[rRbBuU]?(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'))|(?P<number>[-+]?[0-9.][\w.+-]*)"""
    r"""|(?P<word>[A-Za-z]\w*)|(?P<mark>[\[\](){},:]))""",
    re.DOTALL,
)
_CLOSING = {"[": "]", "(": ")", "{": "}"}


class _Literal:
    """Reads one literal. Raises ValueError for anything else; brackets may be nested `_DEEPEST` deep."""

    def __init__(self, text: str) -> None:
        self._text = text.strip()
        self._at = 0
        self._comma = False  # whether a comma came before the last closing bracket

    def whole(self) -> Any:
        value = self._value(*self._next())
        if self._at < len(self._text):
            raise ValueError("more than a literal")
        return value

    def _next(self) -> tuple[str, str]:
        """The kind of the next token, and the token."""
        match = _TOKEN.match(self._text, self._at)
        if match is None or match.lastgroup is None:
            raise ValueError("no token of a literal")
        self._at = match.end()
        return match.lastgroup, match[match.lastgroup]

    def _value(self, kind: str, token: str, depth: int = 0) -> Any:
        if kind == "string":
            return ast.literal_eval(token)
        if kind == "number":
            return _number(token)
        if kind == "word" and token in _CONSTANTS:
            return _CONSTANTS[token]
        if token not in _CLOSING or depth >= _DEEPEST:
            raise ValueError("no literal")
        if token == "{":
            return self._object(depth)
        items = self._list(_CLOSING[token], depth)
        # Brackets around one value are only brackets.
        return items[0] if token == "(" and len(items) == 1 and not self._comma else items

    def _list(self, closing: str, depth: int) -> list[Any]:
        values: list[Any] = []
        kind, token = self._next()
        while token != closing or kind != "mark":
            values.append(self._value(kind, token, depth + 1))
            kind, token = self._behind(closing)
        return values

    def _object(self, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        kind, token = self._next()
        while token != "}" or kind != "mark":
            key = str(self._value(kind, token, depth + 1))
            if self._next() != ("mark", ":"):
                raise ValueError("no pair")
            members[key] = self._value(*self._next(), depth + 1)
            kind, token = self._behind("}")
        return members

    def _behind(self, closing: str) -> tuple[str, str]:
        """The token after an item's comma, or the closing bracket."""
        token = self._next()
        self._comma = token == ("mark", ",")
        return self._next() if self._comma else _only(token, ("mark", closing))


def _only(token: tuple[str, str], wanted: tuple[str, str]) -> tuple[str, str]:
    if token != wanted:
        raise ValueError(f"{token[1]} where {wanted[1]} was to come")
    return token


def _number(text: str) -> int | float:
    if re.fullmatch(r"[-+]?0\d*[1-9]\d*", text):
        raise ValueError("a leading zero")  # of a code or telephone number: as text nothing of it is lost
    try:
        return int(text, 0)
    except ValueError:
        return float(text)
