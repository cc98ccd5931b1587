"""Grammars of calls in a frame of tags, with their names before their arguments or in a list.

`frame` has `begin` and `end` around all calls, `between` two, `before` and `after` each, with `{name}` in `before`, and
`mode`: "arguments" (a JSON object), "object" (an object with the name under `name` and the arguments under
`arguments`), or "markup" (`argument` is what surrounds each, with `{key}`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from baton.core.constraint import literal
from baton.core.errors import InvalidValue, Unsupported, quoted
from baton.grammar.closed import closed
from baton.grammar.schema import without_remarks

_ANY = "/(.|\\n)*/"
# Names that are parsed back exactly as they were written.
_KEY = re.compile(r"[^\s<>\"{}](?:[^\n<>\"{}]{0,254}[^\s<>\"{}])?")
# Keywords that the schema of a string without quotes may have.
_PLAIN = {"type", "description", "title", "default", "examples", "enum", "const"}


def framed_rules(spec: Mapping[str, Any], options: Mapping[str, Any], param: str) -> list[str]:
    """Raises InvalidValue or Unsupported for a schema that cannot be honoured in this form."""
    frame, tokens = spec["frame"], spec["tokens"]
    begin, end, between = (_pieces(frame[name], tokens) for name in ("begin", "end", "between"))
    more = f" ({between} call)*" if spec["several"] and frame.get("several", True) else ""
    calls = f"{begin} call{more} {end}"
    rules = [f"call: {' | '.join(f'c_{at}' for at in range(len(spec['tools'])))}", f"ANY: {_ANY}"]
    if spec["forced"]:
        rules.append(f"start: {calls}")
    else:
        opening = frame["opening"]
        if opening not in tokens:
            raise Unsupported("strict tools are not honoured by this model without a forced call", param=param)
        rules += [f"start: TEXT ({calls} TEXT)?", f"TEXT: {_ANY} & {_without(opening)}"]
    for at, tool in enumerate(spec["tools"]):
        before = _pieces(frame["before"].replace("{name}", tool["name"]), tokens)
        rules.append(f"c_{at}: {before} a_{at} {_pieces(frame['after'], tokens)}")
        rules += _arguments(at, tool, frame, tokens, options, param)
    return rules


def _arguments(
    at: int, tool: Mapping[str, Any], frame: Mapping[str, Any], tokens: Mapping[str, int], options: Any, param: str
) -> Iterator[str]:
    schema: dict[str, Any] = {"type": "object", **closed(without_remarks(tool["parameters"]))}
    if frame["mode"] == "markup":
        yield from _markup(at, schema, frame, tokens, options, param)
        return
    # With an id of its own a schema's references are to itself, wherever it is placed.
    schema = {"$id": f"urn:tool:{at}", **schema}
    if frame["mode"] == "object":
        properties = {frame["name"]: {"const": tool["name"]}, frame["arguments"]: schema}
        fixed = {"type": "object", "required": list(properties), "additionalProperties": False}
        schema = {**fixed, "properties": properties}
    yield f"a_{at}: %json {json.dumps({'x-guidance': dict(options), **schema})}"


def _markup(
    at: int, schema: Mapping[str, Any], frame: Mapping[str, Any], tokens: Mapping[str, int], options: Any, param: str
) -> Iterator[str]:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    before, after = frame["argument"]
    names = [f"p_{at}_{one}" for one in range(len(properties))]
    yield f"a_{at}: " + (
        " ".join(name + ("" if key in required else "?") for name, key in zip(names, properties, strict=True)) or '""'
    )
    for name, (key, value) in zip(names, properties.items(), strict=True):
        if not _KEY.fullmatch(key):
            what = "this model writes names between tags"
            raise InvalidValue(f"the property name {quoted(key)} is not honoured: {what}", param=param)
        opening = _pieces(before.replace("{key}", key), tokens)
        texts = _texts(value)
        if texts is not None:
            _check_texts(texts, after.strip(), param)
            yield f"{name}: {opening} ({' | '.join(map(literal, texts))}) {_pieces(after, tokens)}"
        elif _is_text(value, key, param):
            yield from _free(name, opening, after, tokens)
        else:
            whole = {**value, **{word: schema[word] for word in ("$defs", "definitions") if word in schema}}
            yield f"{name}: {opening} v_{name} {_pieces(after, tokens)}"
            yield f"v_{name}: %json {json.dumps({'x-guidance': dict(options), **whole})}"


def _free(name: str, opening: str, after: str, tokens: Mapping[str, int]) -> Iterator[str]:
    """A plain string, up to what follows it."""
    first = next((tag for tag in tokens if after.startswith(tag)), None)
    if first is None:
        yield f"{name}: {opening} t_{name}"
        yield f"t_{name}[lazy]: ANY {literal(after)}"
        return
    yield f"{name}: {opening} T_{name.upper()} {_pieces(after, tokens)}"
    yield f"T_{name.upper()}: {_ANY} & {_without(first)}"


def _texts(value: Any) -> list[str] | None:
    """The strings that a value may be, if its schema lists them."""
    listed = [value["const"]] if isinstance(value, Mapping) and "const" in value else None
    listed = value.get("enum") if isinstance(value, Mapping) and listed is None else listed
    return listed if isinstance(listed, list) and listed and all(isinstance(one, str) for one in listed) else None


def _check_texts(texts: list[str], closing: str, param: str) -> None:
    """Raises InvalidValue for texts that would be parsed as something else between their tags."""
    for text in texts:
        if closing in text or text != text.strip("\n"):
            what = "this model writes strings without quotes"
            raise InvalidValue(f"the text {quoted(text)} is not honoured: {what}", param=param)


def _is_text(value: Any, key: str, param: str) -> bool:
    kinds = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(kinds, str) and kinds != "string":
        return False
    if isinstance(kinds, list) and "string" not in kinds:
        return False
    if kinds is None and isinstance(value, Mapping) and {"$ref", "anyOf", "oneOf", "allOf", "properties"} & set(value):
        return False
    wrong = sorted(set(value) - _PLAIN) if isinstance(value, Mapping) else []
    if wrong:
        message = f"{wrong[0]} of the string {key!r} is not honoured: this model writes strings without quotes"
        raise InvalidValue(message, param=param)
    return True


def _pieces(text: str, tokens: Mapping[str, int]) -> str:
    """A text as literals, in which tags that are tokens are those tokens."""
    if not text:
        return '""'
    names = sorted(tokens, key=len, reverse=True)
    if not names:
        return _literals(text)
    parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
    return " ".join(f"<[{tokens[part]}]>" if part in tokens else _literals(part) for part in parts if part)


def _literals(text: str) -> str:
    """`{index}` stands for a number."""
    parts = text.split("{index}")
    return " /[0-9]{1,3}/ ".join(literal(part) for part in parts if part or len(parts) == 1)


def _without(tag: str) -> str:
    return f"~/(.|\\n)*{re.escape(tag)}(.|\\n)*/"
