"""Calls that are written as Python's, between tags: LFM2, OLMo 3."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from baton.parsing.calls import CallParser, Reading
from baton.parsing.scanner import Found, Steps

_BETWEEN = re.compile(r"[\s\[\],;]*")
_NAME = re.compile(r"[\w.\-]*")
_STOPS = ("(", ")", "[", "]", "{", "}", ",", '"', "'")
_QUOTED = {quote: (quote, "\\") for quote in ('"', "'")}
_CONSTANTS = {"true": True, "false": False, "null": None}
_DEEPEST = 64


class Pythonic(CallParser):
    """A list of calls, with keywords."""

    opening = "<|tool_call_start|>"
    closing = "<|tool_call_end|>"

    def read(self) -> Steps:
        while True:
            tag = yield from self.scanner.until((self.opening,), self.say)
            if not tag:
                return
            yield from self.try_call(self._inside(), tag, self.closing)

    def _inside(self) -> Reading:
        found = False
        while True:
            yield from self.scanner.matching(_BETWEEN)
            name = yield from self.scanner.matching(_NAME)
            if not name or not (yield from self.scanner.tag("(")) or not self.start(name):
                return found
            found = True
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

    def _value(self) -> Found:
        """The text of an argument, up to a comma or bracket that is not its own."""
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
    """One call a line."""

    opening = "<function_calls>"
    closing = "</function_calls>"


def _json(text: str) -> str:
    """A literal of Python, or of JSON, as JSON; what is neither is a text."""
    try:
        found = _value_of(ast.parse(text.strip(), mode="eval").body)
        return json.dumps(found, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return json.dumps(text.strip(), ensure_ascii=False)


def _value_of(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool, type(None))):
        return node.value
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value_of(node.operand)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value_of(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(_value_of(key)): _value_of(value) for key, value in pairs if key is not None}
    raise ValueError("no literal")
