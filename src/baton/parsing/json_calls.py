"""Calls that are JSON objects with a name and arguments: between tags (Hermes, Qwen), or bare (Llama)."""

from __future__ import annotations

import json
import re
from typing import Any

from baton.parsing.calls import CallParser, Reading
from baton.parsing.scanner import Steps, TextSteps

ARGUMENTS = ("arguments", "parameters")
_NAMES = ("name", "tool_name")
_SCALAR = re.compile(r"[^,\]}\s]*")
_SEPARATOR = re.compile(r"[\s;]*")


def call_object(parser: CallParser) -> Reading:  # noqa: C901
    """Reads an object. Arguments stream if the name came before them, else they follow when the name is known."""
    scanner = parser.scanner
    started = False
    early = ""  # arguments before the name
    name = ""
    yield from scanner.blanks()
    if not (yield from scanner.tag("{")):
        return False
    while True:
        yield from scanner.blanks()
        end = yield from scanner.tag("}", ",", '"')
        if end == ",":
            continue
        if end != '"':
            return started
        key = yield from _text(parser)
        yield from scanner.blanks()
        if key is None or not (yield from scanner.tag(":")):
            return started
        yield from scanner.blanks()
        if key in ARGUMENTS and name and not started and (yield from scanner.peek()) == "{":
            if not parser.start(name):
                return False
            started = True
            yield from scanner.json(parser.argue)
            continue
        value = yield from json_value(parser)
        if key in _NAMES and not name:
            name = _loaded(value) if value.startswith('"') else ""
            if not isinstance(name, str) or name not in parser.tools:
                return started
        elif key in ARGUMENTS and not started:
            early = _object_in(value)
            if not early:
                return False
        if early and name and not started:
            started = parser.start(name)
            parser.argue(early)


def json_value(parser: CallParser) -> TextSteps:
    """The next JSON value, as it is written."""
    scanner = parser.scanner
    pieces: list[str] = []
    first = yield from scanner.peek()
    if first in ("{", "["):
        yield from scanner.json(pieces.append)
    elif first == '"':
        pieces.append((yield from scanner.tag('"')))
        yield from scanner.string(pieces.append)
    else:
        pieces.append((yield from scanner.matching(_SCALAR)))
    return "".join(pieces)


def call_objects(parser: CallParser) -> Reading:
    """Reads objects one after the other, or a list of them."""
    any_call = False
    while True:
        yield from parser.scanner.matching(_BETWEEN)
        if (yield from parser.scanner.peek()) != "{":
            return any_call
        if not (yield from call_object(parser)):
            return any_call
        any_call = True


class Tagged(CallParser):
    """Objects between two tags, text around them; one pair of tags may contain several objects, or a list.

    `closing` "" if nothing closes them. `others`: opening tags that some models write instead.
    """

    opening = "<tool_call>"
    closing = "</tool_call>"
    others: tuple[str, ...] = ()

    def read(self) -> Steps:
        while True:
            tag = yield from self.scanner.until((self.opening, *self.others), self.say)
            if not tag:
                return
            yield from self.try_call(call_objects(self), tag, "" if tag in self.others else self.closing)


class Granite(Tagged):
    """Granite 3: a list of objects after a tag."""

    opening = "<|tool_call|>"
    closing = ""
    others = ("<tool_call>",)


class Phi(Tagged):
    """Phi-4: a list of objects between tags, or after a word."""

    opening = "<|tool_call|>"
    closing = "<|/tool_call|>"
    others = ("functools",)


class Command(Tagged):
    """Command A and R: a list of objects with their names under `tool_name`."""

    opening = "<|START_ACTION|>"
    closing = "<|END_ACTION|>"


class Bare(CallParser):
    """An answer that is nothing but objects, perhaps after a tag; any other answer is text."""

    opening = "<|python_tag|>"

    def read(self) -> Steps:
        scanner = self.scanner
        before = yield from scanner.blanks()
        before += yield from scanner.tag(self.opening)
        before += yield from scanner.blanks()
        while (yield from scanner.peek()) == "{":
            began = self.calls
            yield from self.try_call(call_object(self), before)
            if self.calls == began:
                before = ""
                break
            before = yield from scanner.matching(_SEPARATOR)
        self.say(before)
        yield from scanner.rest(self.say)


_BETWEEN = re.compile(r"[\s\[\],;]*")


def _text(parser: CallParser) -> Any:
    """A string after its first quote; None if it is none."""
    pieces = ['"']
    ended = yield from parser.scanner.string(pieces.append)
    value = _loaded("".join(pieces)) if ended else None
    return value if isinstance(value, str) else None


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _object_in(value: str) -> str:
    """The arguments as an object's text: an object, or a string that contains one; "" for anything else."""
    if value.startswith('"'):
        inner = _loaded(value)
        value = inner if isinstance(inner, str) else ""
    return value if value.lstrip().startswith("{") and isinstance(_loaded(value), dict) else ""
