"""Objects are closed if their schema says nothing, and left alone if that would forbid what it asks for."""

from __future__ import annotations

from typing import Any

import pytest

from baton.grammar.closed import closed

NAME = {"type": "string"}


def thing(**more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"name": NAME}, **more}


def test_objects_are_closed_wherever_they_stand() -> None:
    schema = {
        "type": "object",
        "properties": {
            "one": thing(),
            "many": {"type": "array", "items": thing()},
            "either": {"anyOf": [thing(), NAME]},
        },
        "$defs": {"thing": thing()},
    }
    result = closed(schema)
    shut = thing(additionalProperties=False)
    assert result["additionalProperties"] is False
    assert result["properties"] == {
        "one": shut,
        "many": {"type": "array", "items": shut},
        "either": {"anyOf": [shut, NAME]},
    }
    assert result["$defs"] == {"thing": shut}
    assert "additionalProperties" not in schema, "what was sent is not changed"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "additionalProperties": NAME},
        thing(additionalProperties=True),
        thing(patternProperties={"^x": NAME}),
        {"allOf": [thing(), {"properties": {"age": {"type": "integer"}}}]},
        {"$defs": {"a": thing()}, "allOf": [{"$ref": "#/$defs/a"}, thing()]},
        thing(anyOf=[{"properties": {"age": {"type": "integer"}}}]),
        {"const": {"properties": {}}},
        True,
    ],
    ids=str,
)
def test_what_says_otherwise_or_is_put_together_stays(schema: Any) -> None:
    assert closed(schema) == schema


def test_a_property_may_be_called_properties() -> None:
    schema = {"type": "object", "properties": {"properties": {"type": "object", "properties": {"x": NAME}}}}
    result = closed(schema)
    assert set(result["properties"]) == {"properties"}
    assert result["properties"]["properties"]["additionalProperties"] is False
