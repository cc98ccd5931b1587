"""What an answer must look like: asked for as an `OutputFormat`, carried by a query as a `Constraint` on its tokens.

A constraint is a function of the tokens generated so far and nothing else. So no state of it moves with a row: a new
matcher can begin from the query's tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from baton.core.errors import InvalidValue, Unsupported, quoted
from baton.core.strict_json import RepeatedName, unrepeated

JSON, REGEX, GRAMMAR, CALLS = "json", "regex", "grammar", "calls"
NAME = re.compile("[a-zA-Z0-9_-]{1,64}")
"""The names of schemas and functions that OpenAI accepts."""


class Matcher(Protocol):
    """Follows one query through a constraint. Used by one thread at a time."""

    def allowed(self, generated: Sequence[int]) -> bytes:
        """Returns which tokens may come next: a bit for each token id, the lowest bit of a byte first.

        `generated` begins with its value in the call before. Raises QueryFailed if it breaks the constraint, or if the
        constraint is too costly to follow.
        """


class Constraint(Protocol):
    """Never changes; may be shared by queries and threads."""

    def start(self) -> Matcher: ...


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """A form that answers must have.

    `kind`: "json" (`text` is a JSON Schema), "regex", "grammar" (Lark), or "calls" (what `grammar/calls.py` takes).

    `param`: the request's field that asked for it, for errors.
    """

    kind: str
    text: str
    param: str


def form_of(response_format: object, structured_outputs: object) -> OutputFormat | None:
    """Returns the form that these fields ask for, None for any text.

    Raises InvalidValue or Unsupported with the field's name. `response_format` is OpenAI's, `structured_outputs`
    vLLM's: one of `json`, `regex`, `choice`, `grammar`.
    """
    first = None if response_format is None else _of_response_format(response_format)
    second = None if structured_outputs is None else _of_structured_outputs(structured_outputs)
    if first is not None and second is not None:
        message = "response_format and structured_outputs both ask for a form: send one"
        raise InvalidValue(message, param="structured_outputs")
    return first or second


def literal(text: str) -> str:
    """A text as a literal in a grammar."""
    return json.dumps(text, ensure_ascii=False)


def _of_response_format(value: object) -> OutputFormat | None:
    param = "response_format"
    fields = _object(value, param)
    kind = fields.get("type")
    if kind == "json_schema":
        _only(fields, {"type", "json_schema"}, param)
        return OutputFormat(JSON, _written(_schema_in(fields.get("json_schema")), f"{param}.json_schema.schema"), param)
    if kind not in ("text", "json_object"):
        raise InvalidValue(
            f"{param}.type must be text, json_object or json_schema, got {kind!r}", param=f"{param}.type"
        )
    _only(fields, {"type"}, param)
    return OutputFormat(JSON, '{"type": "object"}', param) if kind == "json_object" else None


def _schema_in(value: object) -> object:
    param = "response_format.json_schema"
    fields = _object(value, param)
    _only(fields, {"name", "description", "schema", "strict"}, param)
    name = fields.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        message = f"{param}.name must be 1 to 64 letters, digits, _ or -, got {name!r}"
        raise InvalidValue(message, param=f"{param}.name")
    if not isinstance(fields.get("description"), str | None):
        raise InvalidValue(f"{param}.description must be a text", param=f"{param}.description")
    if not isinstance(fields.get("strict"), bool | None):
        raise InvalidValue(f"{param}.strict must be true or false", param=f"{param}.strict")
    return _object(fields.get("schema"), f"{param}.schema")


def _of_structured_outputs(value: object) -> OutputFormat:
    param = "structured_outputs"
    asked_for = {name: asked for name, asked in _object(value, param).items() if asked is not None}
    _only(asked_for, {"json", "regex", "choice", "grammar"}, param)
    if len(asked_for) != 1:
        raise InvalidValue(f"{param} must have one of json, regex, choice and grammar", param=param)
    ((kind, asked),) = asked_for.items()
    if kind == "json":
        schema = _parsed(asked, f"{param}.json") if isinstance(asked, str) else asked
        return OutputFormat(JSON, _written(_object(schema, f"{param}.json"), f"{param}.json"), param)
    if kind == "choice":
        if not isinstance(asked, (list, tuple)) or not asked or not all(isinstance(one, str) and one for one in asked):
            raise InvalidValue(f"{param}.choice must be a list of texts", param=f"{param}.choice")
        return OutputFormat(GRAMMAR, "start: " + " | ".join(map(literal, asked)), param)
    if not isinstance(asked, str) or not asked:
        raise InvalidValue(f"{param}.{kind} must be a text", param=f"{param}.{kind}")
    return OutputFormat(kind, asked, param)


def _written(schema: object, param: str) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        raise InvalidValue(f"{param} is not JSON, or has a number of thousands of digits", param=param) from None


def _parsed(text: str, param: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=unrepeated)
    except RepeatedName as error:
        raise InvalidValue(f"{param} is ambiguous: {error}", param=param) from None
    except (ValueError, RecursionError):
        raise InvalidValue(f"{param} is not JSON", param=param) from None


def _object(value: object, param: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidValue(f"{param} must be an object, got {quoted(value)}", param=param)
    return value


def _only(fields: Mapping[str, object], known: set[str], param: str) -> None:
    for name in fields:
        if name not in known:
            raise Unsupported(f"unknown field {param}.{name}", param=f"{param}.{name}")
