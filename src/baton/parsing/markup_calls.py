"""Calls as markup, each argument between tags of its own: Qwen3-Coder, GLM, MiniMax, Seed.

An argument's text becomes JSON by its schema: strings as they come, anything else when it is complete.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from baton.parsing.calls import CallParser, Reading
from baton.parsing.scanner import Steps

_MOST_NAME = 256


class Markup(CallParser):
    """`function`, `parameter`: what surrounds a name, and what closes the element. `strips`: see `_value`."""

    opening = "<tool_call>"
    closing = "</tool_call>"
    function: tuple[str, str, str] = ("<function=", ">", "</function>")
    parameter: tuple[str, str, str] = ("<parameter=", ">", "</parameter>")
    # Models sometimes leave the outer tag out.
    bare = True

    def read(self) -> Steps:
        tags = (self.opening, self.function[0]) if self.bare else (self.opening,)
        while True:
            tag = yield from self.scanner.until(tags, self.say)
            if not tag:
                return
            inner = self.functions(behind_tag=tag != self.opening)
            yield from self.try_call(inner, tag, self.closing if tag == self.opening else "")

    def functions(self, *, behind_tag: bool) -> Reading:
        """Reads one or several functions' elements. `behind_tag`: the first one's tag was read."""
        opening, end_of_name, closing = self.function
        any_call = False
        while True:
            if not behind_tag:
                yield from self.scanner.blanks()
                if not (yield from self.scanner.tag(opening)):
                    return any_call
            name: list[str] = []
            yield from self.scanner.until((end_of_name, "\n"), name.append)
            if not self.start(_name(name)):
                return any_call
            any_call = True
            yield from self.arguments((closing, self.closing))
            if behind_tag:
                return True
            behind_tag = False

    def arguments(self, ends: Collection[str]) -> Steps:
        """Reads arguments up to one of these tags; the outer one's is not consumed."""
        opening, end_of_name, closing = self.parameter
        seen: set[str] = set()
        while (tag := (yield from self.scanner.until((opening, *ends), _drop, read_tag=False))) == opening:
            yield from self.scanner.tag(opening)
            key: list[str] = []
            if not (yield from self.scanner.until((end_of_name, "\n"), key.append)):
                return
            if not (yield from self.argument(_name(key), closing, seen)):
                return
        if tag:
            yield from self.scanner.tag(self.function[2])
            self.argue("}" if seen else "{}")

    def argument(self, key: str, closing: str, seen: set[str]) -> Reading:
        """Reads one argument's text up to its closing tag. A line end at either side belongs to the tags."""
        before = ("{" if not seen else ", ") + json.dumps(key, ensure_ascii=False) + ": "
        seen.add(key)
        types = types_of(self.properties.get(key))
        yield from self.scanner.tag("\n")
        if types == ("string",):
            text = _Text(self, before)
            ended = yield from self.scanner.until((closing,), text.take, keep_cut=False)
            if ended:
                self.argue('"')
            return bool(ended)
        pieces: list[str] = []
        ended = yield from self.scanner.until((closing,), pieces.append)
        if ended:
            value = coerced("".join(pieces).removesuffix("\n"), types)
            self.argue(before + json.dumps(value, ensure_ascii=False))
        return bool(ended)

    @property
    def properties(self) -> Mapping[str, Any]:
        """The schemas of the arguments of the last call."""
        properties = self.tools[self.called].get("properties")
        return properties if isinstance(properties, Mapping) else {}


class _Text:
    """A string's pieces as JSON. A line end is held back, because the last one is not part of the string."""

    def __init__(self, parser: Markup, before: str) -> None:
        self._parser = parser
        self._held = ""
        parser.argue(before + '"')

    def take(self, text: str) -> None:
        text = self._held + text
        self._held = "\n" if text.endswith("\n") else ""
        self._parser.argue(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])


class MiniMax(Markup):
    """MiniMax M2: names are attributes."""

    opening = "<minimax:tool_call>"
    closing = "</minimax:tool_call>"
    function = ('<invoke name="', '">', "</invoke>")
    parameter = ('<parameter name="', '">', "</parameter>")


class Seed(Markup):
    """Seed-OSS: Qwen3-Coder's elements between another tag."""

    opening = "<seed:tool_call>"
    closing = "</seed:tool_call>"


class Glm(Markup):
    """The name stands alone before pairs of keys and values."""

    bare = False
    parameter = ("<arg_key>", "</arg_key>", "</arg_value>")

    def functions(self, *, behind_tag: bool) -> Reading:
        name: list[str] = []
        opening = self.parameter[0]
        stop = yield from self.scanner.until((opening, self.closing), name.append, read_tag=False)
        # A name that is cut off is no name.
        if not stop or not self.start(_name(name)):
            return False
        yield from self.arguments((self.closing,))
        return True

    def argument(self, key: str, closing: str, seen: set[str]) -> Reading:
        if not (yield from self.scanner.until(("<arg_value>",), _drop)):
            return False
        return (yield from super().argument(key, closing, seen))


def types_of(schema: Any) -> tuple[str, ...]:
    """The types that a value of this schema may have; none if it does not say."""
    if not isinstance(schema, Mapping):
        return ()
    said = schema.get("type")
    types = [one for one in _listed([said] if isinstance(said, str) else said) if isinstance(one, str)]
    for union in ("anyOf", "oneOf"):
        for choice in _listed(schema.get(union)):
            types += [one for one in types_of(choice) if one not in types]
    if schema.get("nullable") and "null" not in types:
        types.append("null")
    if not types and isinstance(schema.get("enum"), list) and all(isinstance(one, str) for one in schema["enum"]):
        types = ["string"]
    return tuple(types)


def _listed(value: Any) -> list[Any]:
    """A list, or nothing: schemas of tools that are not strict are not checked."""
    return value if isinstance(value, list) else []


def coerced(text: str, types: Collection[str]) -> Any:
    """An argument's text as a value of one of these types; else the text."""
    try:
        value = json.loads(text, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        value = {"True": True, "False": False, "None": None}.get(text.strip(), text)
    if not types:
        return value
    kinds: dict[str, Any] = {
        "integer": lambda value: type(value) is int or (isinstance(value, float) and value.is_integer()),
        "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
        "boolean": lambda value: isinstance(value, bool),
        "null": lambda value: value is None,
        "object": lambda value: isinstance(value, dict),
        "array": lambda value: isinstance(value, list),
    }
    for one in types:
        if one in kinds and kinds[one](value):
            return int(value) if one == "integer" else value
    return text


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text)


def _name(pieces: list[str]) -> str:
    name = "".join(pieces).strip().strip('"')
    return name if len(name) <= _MOST_NAME else ""


def _drop(text: str) -> None:
    """Drops what is between elements."""
