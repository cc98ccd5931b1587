"""Closes objects: no properties that their schema does not name.

JSON Schema allows any other property if nothing is said, and a small model that may invent names does so until it has
no tokens left. A client that sends a schema means its properties. So `additionalProperties` is false if it is not
given, as in other engines too. Every answer still fits the schema as it was sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_COMBINING = ("allOf", "anyOf", "oneOf", "$ref")


def closed(schema: Any) -> Any:
    """Returns the schema with its objects closed.

    Unchanged if schemas are combined (`allOf`, or `$ref` and others beside properties), because each part has names
    that the other parts do not know.
    """
    return schema if any(map(_combines, _all(schema))) else _closed(schema)


def _combines(schema: Mapping[str, Any]) -> bool:
    return "allOf" in schema or ("properties" in schema and any(name in schema for name in _COMBINING))


def _closed(value: Any) -> Any:
    if isinstance(value, list):
        return [_closed(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    closed = {name: _below(name, part) for name, part in value.items()}
    if "properties" in closed and "patternProperties" not in closed:
        closed.setdefault("additionalProperties", False)
    return closed


def _below(name: str, part: Any) -> Any:
    if name in ("properties", "patternProperties", "$defs", "definitions") and isinstance(part, Mapping):
        return {key: _closed(one) for key, one in part.items()}
    # These contain data, not schemas.
    return part if name in ("const", "enum", "default", "examples", "example") else _closed(part)


def _all(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a schema; also data that look like schemas, which does no harm."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, Mapping):
            yield one
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)
