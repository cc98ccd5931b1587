"""The bodies of requests in the OpenAPI document: what is honoured, with its bounds, and what else may be sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from baton.engine.client import Client
from baton.server.anthropic import CountRequest, MessagesRequest
from baton.server.batches import BatchRequest
from baton.server.field_rules import MESSAGE, TABLES, Rule, Rules
from baton.server.fields import Strict
from baton.server.openapi_bounds import Schema, bounds
from baton.server.responses import ResponsesRequest
from baton.server.schema import ChatRequest, CompletionRequest
from baton.server.token_requests import DetokenizeRequest, TokenizeRequest

_REQUESTS: tuple[type[Strict], ...] = (
    CompletionRequest,
    ChatRequest,
    ResponsesRequest,
    MessagesRequest,
    CountRequest,
    TokenizeRequest,
    DetokenizeRequest,
    BatchRequest,
)
_CHAT, _RESPONSES, _MESSAGES = TABLES["chats and completions"], TABLES["responses"], TABLES["messages"]
_RULES: Mapping[str, Rules] = {
    **{model.__name__: model.rules for model in _REQUESTS},
    "Message": _CHAT["messages"],
    "TextPart": _CHAT["messages.content"],
    "ToolCallSent": _CHAT["messages.tool_calls"],
    "CalledFunction": _CHAT["messages.tool_calls.function"],
    "ToolOffered": _CHAT["tools"],
    "FunctionOffered": _CHAT["tools.function"],
    "StreamOptions": _CHAT["stream_options"],
    **dict.fromkeys(("InputMessage", "FunctionCall", "FunctionCallOutput", "ReasoningItem"), _RESPONSES["input"]),
    **dict.fromkeys(("InputText", "RefusalPart"), _RESPONSES["input.content"]),
    **dict.fromkeys(("FunctionTool", "NamespaceTool"), _RESPONSES["tools"]),
    "NamedFunction": {},
    "Reasoning": _RESPONSES["reasoning"],
    "TextConfig": _RESPONSES["text"],
    "TextFormat": {},
    "ResponsesStreamOptions": _RESPONSES["stream_options"],
    "InputTurn": _MESSAGES["messages"],
    **dict.fromkeys(("TextBlock", "ThinkingBlock", "ToolUseBlock", "ToolResultBlock"), _MESSAGES["messages.content"]),
    "CustomTool": _MESSAGES["tools"],
    "Thinking": _MESSAGES["thinking"],
    **{name: {} for name in ("ToolChoice", "OutputConfig", "JsonFormat", "Metadata")},
}
"""What is done with fields that these models do not have."""
_OR_TEXT = {
    ("ResponsesRequest", "input"),
    ("InputMessage", "content"),
    ("FunctionCallOutput", "output"),
    ("ReasoningItem", "content"),
    ("ReasoningItem", "summary"),
    ("MessagesRequest", "system"),
    ("CountRequest", "system"),
    ("InputTurn", "content"),
    ("ToolResultBlock", "content"),
}
"""Lists that may be sent as a text."""
_NULL: Schema = {"type": "null"}


def requests(client: Client) -> dict[str, Schema]:
    """The bodies of requests: what pydantic says, with the limits, and null and neutral values if they are taken."""
    known = bounds(client)
    schemas = schemas_of(_REQUESTS, "validation")
    for name, schema in schemas.items():
        required = schema.get("required", ())
        for field, sent in schema.get("properties", {}).items():
            bound = known.get(f"{name}.{field}", known.get(field, {}))
            schema["properties"][field] = _field(sent, bound, nullable=name in _RULES and field not in required)
            if (name, field) in _OR_TEXT:
                schema["properties"][field] = {"anyOf": [{"type": "string"}, schema["properties"][field]]}
        if name in _RULES:
            for field, rule in _RULES[name].items():
                schema["properties"].setdefault(field, _ruled(rule))
            schema["additionalProperties"] = _NULL
    schemas["Message"] = _message(schemas["Message"], client.tokenizer.chat_template(tools=False) or "")
    text, null = {"type": "string"}, {"type": "null"}
    either = [_given(prompt=text, messages=null)]
    either.append(_given(messages={"type": "array"}, prompt=null, add_special_tokens=null))
    schemas[TokenizeRequest.__name__]["anyOf"] = either
    return schemas


def _ruled(rule: Rule) -> Schema:
    """What may be sent in a field that is not honoured."""
    if rule.values is None:
        return {"description": "Taken without effect."}
    return {"enum": [None, *rule.values], "description": "Not honoured: only what asks for nothing is taken."}


def _message(schema: Schema, template: str) -> Schema:
    """Each role has fields of its own; those of tools are there only if the chat template knows tools."""
    fields = schema["properties"]
    kinds_of_text = fields["content"]["anyOf"][:-1]
    plain = {"content": {"anyOf": kinds_of_text}, "tool_call_id": {"enum": [None, ""]}, "name": _ruled(MESSAGE["name"])}
    no_calls: Schema = {"tool_calls": {"enum": [None, []]}}

    def of(roles: list[str], required: list[str], **own: Schema) -> Schema:
        properties = {**fields, **own, "role": {"enum": roles}}
        return {
            "type": "object",
            "properties": properties,
            "required": ["role", *required],
            "additionalProperties": _NULL,
        }

    no_thought: Schema = {name: {"enum": [None, ""]} for name in ("reasoning_content", "reasoning")}
    kinds = [of(["system", "developer", "user"], ["content"], **plain, **no_calls, **no_thought)]
    kinds.append(of(["assistant"], ["content"], **plain, **no_calls))
    if "tool_calls" in template:
        calls = {**fields["tool_calls"]["anyOf"][0], "minItems": 1}
        kinds.append(of(["assistant"], ["tool_calls"], **{**plain, "content": fields["content"], "tool_calls": calls}))
    if "tool" in template:
        of_tool = {"tool_call_id": {"type": "string", "description": "Of a call before."}}
        kinds.append(of(["tool"], ["tool_call_id"], **of_tool, **no_calls, **no_thought))
    return {"title": "Message", "anyOf": kinds}


def _field(sent: Schema, bound: Schema, *, nullable: bool) -> Schema:
    about: Schema = {key: sent[key] for key in ("title", "description", "default") if key in sent}
    if "enum" in bound and None in bound["enum"]:
        return {**about, **bound}
    core = {key: value for key, value in sent.items() if key not in about}
    kinds = [kind for kind in core.get("anyOf", ()) if kind != {"type": "null"}]
    nullable = nullable or len(kinds) < len(core.get("anyOf", ()))
    if len(kinds) == 1:
        core = kinds[0]
    elif kinds:
        core = {**core, "anyOf": kinds}
    # A bound on numbers must not reach a field of the same name that is not a number.
    if bound and ("anyOf" in core) == ("anyOf" in bound) and core.get("type") == bound.get("type"):
        core = {**core, **bound}
    return {**about, "anyOf": [core, {"type": "null"}]} if nullable else {**about, **core}


def schemas_of(models: Collection[type[BaseModel]], mode: Any) -> dict[str, Schema]:
    pairs: Any = [(model, mode) for model in models]
    _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Schema] = definitions["$defs"]
    return schemas


def _given(**kinds: Schema) -> Schema:
    """Requires the first of these fields; each field that is there has its type."""
    return {"required": [next(iter(kinds))], "properties": kinds}
