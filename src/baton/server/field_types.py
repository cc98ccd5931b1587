"""Types of request fields that clients fill in several ways, with what the API's description says of them."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import BeforeValidator, FailFast, WithJsonSchema

from baton.core.errors import InvalidValue
from baton.core.limits import Limits

PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


_NAME_SCHEMA = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"}
FORMAT_SCHEMA = {
    "description": "What the answer must look like. A json_schema is strict always.",
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"enum": ["text", "json_object"]}},
            "required": ["type"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "properties": {
                        "name": _NAME_SCHEMA,
                        "description": {"type": ["string", "null"]},
                        "schema": {"type": "object"},
                        "strict": {"type": ["boolean", "null"]},
                    },
                    "required": ["name", "schema"],
                    "additionalProperties": False,
                },
            },
            "required": ["type", "json_schema"],
            "additionalProperties": False,
        },
        {"type": "null"},
    ],
}
_OUTPUTS: dict[str, Any] = {
    "json": {"anyOf": [{"type": "object"}, {"type": "string", "description": "The same, as text."}]},
    "regex": {"type": "string", "minLength": 1},
    "choice": {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
    "grammar": {"type": "string", "minLength": 1, "description": "Lark, as llguidance writes it."},
}
OUTPUTS_SCHEMA = {
    "description": "vLLM's: what the answer must look like, one of a JSON Schema, a regex, some texts, a grammar.",
    "anyOf": [
        {
            "type": "object",
            "properties": {name: {"type": "null"} for name in _OUTPUTS} | {asked: kind},
            "required": [asked],
            "additionalProperties": False,
        }
        for asked, kind in _OUTPUTS.items()
    ]
    + [{"type": "null"}],
}


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    list[str],
    FailFast(),  # as on every list: a long one of the wrong type would else become as many errors
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


def _named(value: object) -> object:
    """Some clients send more of a user than a name; then all of it is the name."""
    if not isinstance(value, dict):
        return value
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


User = Annotated[str, BeforeValidator(_named), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})]


def prompts_in(value: object, n: int, limits: Limits) -> list[str | list[int]]:
    """Text, token ids, or a list of either, as a list of prompts. Raises InvalidValue."""
    prompts: list[Any] = value if isinstance(value, list) and not _token_ids(value) else [value]
    if not prompts:
        raise InvalidValue("prompt is an empty list", param="prompt")
    limits.hold("max_prompts", len(prompts), "the number of prompts", "prompt")
    if not all(isinstance(p, str) for p in prompts) and not all(_token_ids(p) for p in prompts):
        message = "prompt must be a text, a list of texts, a list of token ids, or a list of such lists"
        raise InvalidValue(message, param="prompt")
    limits.hold("max_choices", n * len(prompts), "n times the prompts", "n")
    return prompts


def _token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
