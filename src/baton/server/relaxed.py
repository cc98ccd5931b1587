"""Schemas of tools that are not strict, without what no grammar can enforce.

Generators of schemas write keywords that nobody enforces. A tool that asks for no strictness can be called all the
same; the answer reports which keywords were left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADER = "x-baton-relaxed"

_DROPPED = frozenset(
    {
        *("propertyOrdering", "uniqueItems", "not", "format", "if", "then", "else", "contains", "minContains"),
        *("maxContains", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies"),
        *("unevaluatedProperties", "unevaluatedItems", "contentEncoding", "contentMediaType", "contentSchema"),
    }
)
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_DATA = ("const", "enum", "default", "examples", "example", "required")


def relaxed(schema: Any, left_out: set[str]) -> Any:
    """Returns the schema without such keywords, whose names are added to `left_out`. `nullable` becomes a type."""
    if isinstance(schema, list):
        return [relaxed(one, left_out) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _DROPPED:
            left_out.add(name)
        elif name in _BY_NAME and isinstance(value, Mapping):
            kept[name] = {key: relaxed(one, left_out) for key, one in value.items()}
        elif name != "nullable":
            kept[name] = value if name in _DATA else relaxed(value, left_out)
    return _nullable(kept, left_out) if schema.get("nullable") is True else kept


def _nullable(schema: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
    """Turns OpenAPI's way to allow null into JSON Schema's."""
    left_out.add("nullable")
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    kinds = schema.get("type")
    if isinstance(kinds, str):
        return {**schema, "type": [kinds, "null"]}
    if isinstance(kinds, list):
        return {**schema, "type": kinds if "null" in kinds else [*kinds, "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema and "enum" not in schema else schema
