"""Which JSON Schemas can be honoured to the letter. llguidance refuses most others; this refuses the rest.

llguidance takes an unknown keyword for a remark, as JSON Schema says. A client that mistyped one, or wants one of
another version, would get answers without it. So a schema may have only keywords that are honoured, and known remarks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from baton.core.errors import InvalidValue, quoted

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
_NUMBERS = {
    *("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "const", "enum"),
}
# llguidance calculates in float64. It reads exactly whole numbers below 2**53, and others whose digits are such a
# number with at most so many decimal places.
_MOST_WHOLE = 2**53 - 1
_MOST_PLACES = 22
# llguidance would take settings from it.
_NOT_FOR_CLIENTS = "x-guidance"


def check_schema(schema: object, param: str) -> None:
    """Raises InvalidValue if an answer that fits the grammar might not fit the schema."""
    todo = [schema]
    while todo:
        one = todo.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, Mapping):
            raise InvalidValue(f"the schema has {json.dumps(one)[:60]} where a schema must be", param=param)
        _check_keywords(one, param)
        _check_numbers(one, param)
        todo.extend(_below(one))


def _check_keywords(schema: Mapping[str, object], param: str) -> None:
    for name in schema:
        if name not in _KNOWN and (not name.startswith("x-") or name == _NOT_FOR_CLIENTS):
            raise InvalidValue(f"the schema has the keyword {name!r}, which is not honoured", param=param)
    least = schema.get("minProperties")
    if isinstance(least, (int, float)) and least > 1:
        # Names that are not in `properties` may come twice in what llguidance accepts.
        raise InvalidValue("the schema has minProperties above 1, which is not honoured: use required", param=param)


def _check_numbers(schema: Mapping[str, object], param: str) -> None:
    for name, value in schema.items():
        if name in _NUMBERS:
            _check_exact(name, [value], param)


def _check_exact(name: str, values: list[object], param: str) -> None:
    """All numbers in these values, at any depth."""
    while values:
        value = values.pop()
        if isinstance(value, Mapping):
            values.extend(value.values())
        elif isinstance(value, list):
            values.extend(value)
        elif isinstance(value, (int, float)) and not _is_exact(value):
            message = f"the schema has {name} {quoted(value)}, which is not honoured: too many digits to be exact"
            raise InvalidValue(message, param=param)


def _is_exact(value: float) -> bool:
    if isinstance(value, int) or value.is_integer():
        return abs(value) <= _MOST_WHOLE
    if not math.isfinite(value):
        return False
    _, digits, exponent = Decimal(repr(value)).as_tuple()
    places = -exponent if isinstance(exponent, int) else 0
    return int("".join(map(str, digits))) <= _MOST_WHOLE and places <= _MOST_PLACES


def without_remarks(schema: Any) -> Any:
    """The schema without keywords that say nothing of answers and may contain numbers that llguidance cannot read."""
    if isinstance(schema, list):
        return [without_remarks(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        name: _named(value) if name in _BY_NAME else without_remarks(value) if name in _SCHEMA | _SCHEMAS else value
        for name, value in schema.items()
        if name in _KNOWN - _REMARKS or name == "$schema"
    }


def _named(schemas: object) -> object:
    if not isinstance(schemas, Mapping):
        return schemas
    return {name: without_remarks(schema) for name, schema in schemas.items()}


def _below(schema: Mapping[str, object]) -> Iterator[object]:
    """The schemas in a schema. llguidance refuses values of wrong types."""
    for name, value in schema.items():
        if name in _SCHEMA:
            yield value
        elif name in _SCHEMAS and isinstance(value, list):
            yield from value
        elif name in _BY_NAME and isinstance(value, Mapping):
            yield from value.values()
