"""Which JSON Schemas can be honoured to the letter. llguidance refuses most others; this refuses the rest.

llguidance takes a keyword that it does not know for a remark, as JSON Schema says. Whoever mistyped one, or wants one
of another version, would get answers without it: so a schema may have only keywords that are honoured, and remarks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from baton.errors import InvalidValue

_SCHEMA = {"items", "additionalProperties"}
_SCHEMAS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_BY_NAME = {"properties", "patternProperties", "$defs", "definitions"}
_VALUES = {
    *("type", "enum", "const", "$ref", "required", "minProperties", "maxProperties", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("multipleOf", "$id", "$anchor"),
}
_REMARKS = {
    *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$schema"),
    *("$comment", "discriminator", "externalDocs"),
}
_KNOWN = _SCHEMA | _SCHEMAS | _BY_NAME | _VALUES | _REMARKS
# What llguidance would take settings from.
_NOT_FOR_CLIENTS = "x-guidance"


def check_schema(schema: object, param: str) -> None:
    """Raises InvalidValue where an answer that fits the grammar might not fit the schema."""
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, Mapping):
            raise InvalidValue(f"the schema has {json.dumps(one)[:60]} where a schema must be", param=param)
        _check_keywords(one, param)
        todo.extend(_below(one))


def _check_keywords(schema: Mapping[str, object], param: str) -> None:
    for name in schema:
        if name not in _KNOWN and (not name.startswith("x-") or name == _NOT_FOR_CLIENTS):
            raise InvalidValue(f"the schema has the keyword {name!r}, which is not honoured", param=param)
    least = schema.get("minProperties")
    if isinstance(least, (int, float)) and least > 1:
        # Names that are not in `properties` may come twice in what llguidance lets through.
        raise InvalidValue("the schema has minProperties above 1, which is not honoured: use required", param=param)


def _below(schema: Mapping[str, object]) -> Iterator[object]:
    """The schemas in a schema. What is of the wrong kind is for llguidance to refuse."""
    for name, value in schema.items():
        if name in _SCHEMA:
            yield value
        elif name in _SCHEMAS and isinstance(value, list):
            yield from value
        elif name in _BY_NAME and isinstance(value, Mapping):
            yield from value.values()
