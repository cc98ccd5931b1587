"""The OpenAPI document: FastAPI's list of routes, with the limits in force and every status of each route."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from baton.core.constraint import NAME
from baton.core.limits import Limits
from baton.core.query import MAX_SALT_CHARACTERS, MAX_USER_CHARACTERS
from baton.core.sampling import SAMPLING_FIELDS, SamplingField
from baton.engine.client import Client
from baton.parsing.styles import style_of
from baton.server.answers import ChatChunk, CompletionChunk
from baton.server.anthropic import CountRequest, MessagesRequest
from baton.server.auth import Access
from baton.server.batches import BatchRequest
from baton.server.block_answers import AnthropicError, MessageEvent, ResponseEvent
from baton.server.errors import of_messages
from baton.server.field_rules import MESSAGE, TABLES, Rule, Rules
from baton.server.fields import Strict
from baton.server.responses import ResponsesRequest
from baton.server.schema import ChatRequest, CompletionRequest
from baton.server.state_answers import ErrorAnswer
from baton.server.token_requests import DetokenizeRequest, TokenizeRequest

Schema = dict[str, Any]

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
_STREAMS: Mapping[str, type[BaseModel]] = {
    "/v1/completions": CompletionChunk,
    "/v1/chat/completions": ChatChunk,
    "/v1/responses": ResponseEvent,
    "/v1/messages": MessageEvent,
}
_DONE = ("/v1/completions", "/v1/chat/completions")
"""Streams that end with a line of their own."""

_KEPT_ANSWERS = "/v1/baton/streams/{stream_id}"
_EVERY = (400, 408, 431, 500)
_WITH_BODY = (404, 413, 415)
_IN_LINE = (*_WITH_BODY, 429, 503)
_GENERATING = (*_IN_LINE, 504)
_MORE: Mapping[str, tuple[int, ...]] = {
    "/v1/completions": _GENERATING,
    "/v1/chat/completions": _GENERATING,
    "/v1/responses": _GENERATING,
    "/v1/messages": _GENERATING,
    "/v1/messages/count_tokens": _IN_LINE,
    "/tokenize": _IN_LINE,
    "/detokenize": _IN_LINE,
    "/v1/models/{model}": (404,),
    "post /v1/files": (408, 413, 415, 507),
    "/v1/files": (404,),
    "/v1/files/{file_id}": (404,),
    "/v1/files/{file_id}/content": (404,),
    "post /v1/batches": (*_WITH_BODY, 503, 507),
    "/v1/batches": (404,),
    "/v1/batches/{batch_id}": (404,),
    "/v1/batches/{batch_id}/cancel": (404, 507),
    "get /v1/baton/streams/{stream_id}": (404, 429, 503, 504),
    "/v1/baton/streams/{stream_id}": (404,),
    "/ready": (503,),
}
_ID: Schema = {
    "x-request-id": {"required": True, "schema": {"type": "string"}, "description": "As sent, or a new one."}
}
_IGNORED: Schema = {
    "x-baton-ignored": {"schema": {"type": "string"}, "description": "Fields that were taken without effect."}
}
_KEPT: Schema = {
    "x-baton-stream": {
        "schema": {"type": "string"},
        "description": "The id under which the answer can be heard again, or its rest (--handover).",
    }
}
_RETRY: Schema = {
    "retry-after": {"required": True, "schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
}
_HEADERS: Mapping[int, Schema] = {
    401: {"www-authenticate": {"required": True, "schema": {"type": "string", "enum": ["Bearer"]}}},
    429: _RETRY,
    503: _RETRY,
}
_ABOUT = """OpenAI's API, and more. What could change an answer is honoured or refused by its name. What could not is
taken, and told in `x-baton-ignored`. A null is as if the field were not there.

Errors always have the body `ErrorAnswer`; 405 names the path's methods in `Allow`. HEAD answers as GET does, without
the body. The bounds of numbers, texts and lists are the limits of this server as it runs (`baton info --limits`).
"""
_MOST = 2**31 - 1
_NULL: Schema = {"type": "null"}


def described(app: FastAPI, client: Client, access: Access, open_paths: Collection[str]) -> dict[str, Any]:
    """Returns the document for an app with this engine and this access."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_ABOUT)
    schemas = document["components"]["schemas"]
    schemas |= _schemas_of((ErrorAnswer, AnthropicError, *_STREAMS.values()), "serialization")
    schemas |= _requests(client)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            more = _MORE.get(f"{method} {path}", _MORE.get(path, ()))
            guarded = bool(access.keys) and path not in open_paths
            _tell_answers(path, operation, more, guarded=guarded, kept=_KEPT_ANSWERS in document["paths"])
        if "get" in item:
            item["head"] = _head_of(item["get"])
    _tell_example(document, client.model_name)
    if access.keys:
        schemes = {"key": {"type": "http", "scheme": "bearer"}}
        schemes["x_api_key"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
        document["components"]["securitySchemes"] = schemes
        document["security"] = [{"key": []}]
        for path, item in document["paths"].items():
            if of_messages(path):
                for operation in item.values():
                    operation["security"] = [{"key": []}, {"x_api_key": []}]
    return document


def _tell_answers(path: str, operation: Schema, more: Collection[int], *, guarded: bool, kept: bool) -> None:
    responses = operation["responses"]
    content = responses["200"].setdefault("content", {})
    if path in _STREAMS:
        content["text/event-stream"] = _events(path)
    responses["200"]["headers"] = {**_ID, **_IGNORED} if "requestBody" in operation else _ID
    if path in _STREAMS and kept:
        responses["200"]["headers"] |= _KEPT
    for status in sorted({*_EVERY, *more, *([401] if guarded else [])}):
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "headers": {**_ID, **_HEADERS.get(status, {})},
            "content": {"application/json": {"schema": _ref(_error_of(path))}},
        }
    if not guarded:
        operation["security"] = []


def _error_of(path: str) -> str:
    return (AnthropicError if of_messages(path) else ErrorAnswer).__name__


def _events(path: str) -> Schema:
    """The schema of one event, as OpenAPI 3.2's `itemSchema` and tools for earlier versions read it."""
    text = {"type": "string", "contentMediaType": "application/json"}
    either = [_ref(_STREAMS[path].__name__), _ref(_error_of(path))]
    kinds: list[Schema] = [{"contentSchema": {"anyOf": either}, **text}]
    if path in _DONE:
        kinds.append({"const": "[DONE]"})
    return {
        "schema": {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"anyOf": kinds}},
            "description": "With stream: true. If it fails after it has begun, its last event says why.",
        }
    }


def _head_of(operation: Schema) -> Schema:
    head: Schema = copy.deepcopy(operation)
    head["operationId"] += "_head"
    for response in head["responses"].values():
        response.pop("content", None)
    return head


def _tell_example(document: Schema, name: str) -> None:
    parameter = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    for operation in document["paths"]["/v1/models/{model}"].values():
        operation["parameters"] = [{**parameter, "example": name}]


def _requests(client: Client) -> dict[str, Schema]:
    """The bodies of requests: what pydantic says, with the limits, and null and neutral values if they are taken."""
    bounds = _bounds(client)
    schemas = _schemas_of(_REQUESTS, "validation")
    for name, schema in schemas.items():
        required = schema.get("required", ())
        for field, sent in schema.get("properties", {}).items():
            bound = bounds.get(f"{name}.{field}", bounds.get(field, {}))
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


def _bounds(client: Client) -> dict[str, Schema]:
    """Bounds by field, or by model and field."""
    limits, longest = client.settings.limits, client.settings.max_model_len
    tokenizer = client.tokenizer
    offers = style_of(tokenizer.chat_template(tools=True) or "", tokenizer.response_template) is not None
    token = _whole(0, client.tokenizer.vocabulary - 1)
    tokens = _list(token, 1, longest - 1)
    text = {"type": "string", "minLength": 1}
    stop = {"type": "string", "minLength": 1, "maxLength": limits.max_stop_characters}
    return {
        "model": {"type": "string", "enum": [client.model_name]},
        **{known.name: _bounds_of(known, limits) for known in SAMPLING_FIELDS if known.low is not None},
        "best_of": {"enum": [None, 1]},
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": f"^({_up_to(client.tokenizer.vocabulary - 1)})$"},
            "additionalProperties": _number(-limits.max_bias, limits.max_bias),
            "maxProperties": limits.max_logit_bias,
        },
        "stop": {"anyOf": [stop, _list(stop, 0, limits.max_stop_strings)]},
        "stop_sequences": _list(stop, 0, limits.max_stop_strings),
        "MessagesRequest.max_tokens": _whole(1, _MOST),
        "stop_token_ids": _list(token, 0, limits.max_stop_tokens),
        "max_tokens": _whole(1, longest - 1),
        "CompletionRequest.max_tokens": _whole(0, longest - 1),
        "max_completion_tokens": _whole(1, longest - 1),
        "max_output_tokens": _whole(1, longest - 1),
        "top_logprobs": _whole(0, limits.max_logprobs),
        "priority": _whole(-(2**31), _MOST) if client.honours("priority") else {"enum": [None, 0]},
        "deadline_ms": _whole(1, _MOST),
        "user": {"anyOf": [{"type": "string", "maxLength": MAX_USER_CHARACTERS}, {"type": "object"}]},
        "cache_salt": {"type": "string", "minLength": 1, "maxLength": MAX_SALT_CHARACTERS},
        "prompt": {
            "anyOf": [text, _list(text, 1, limits.max_prompts), tokens, _list(tokens, 1, limits.max_prompts)],
        },
        "tokens": {"type": "array", "items": token},
        "FunctionOffered.name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
        "FunctionOffered.parameters": {"type": "object", "properties": {"type": {"const": "object"}}},
        "tools": {"type": "array", "maxItems": limits.max_tools} if offers else {"enum": [None, []]},
        "tool_choice": {} if offers else {"enum": [None, "none", "auto"]},
        "MessagesRequest.tool_choice": {},
        "CountRequest.tool_choice": {},
    }


def _schemas_of(models: Collection[type[BaseModel]], mode: Any) -> dict[str, Schema]:
    pairs: Any = [(model, mode) for model in models]
    _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Schema] = definitions["$defs"]
    return schemas


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _given(**kinds: Schema) -> Schema:
    """Requires the first of these fields; each field that is there has its type."""
    return {"required": [next(iter(kinds))], "properties": kinds}


def _bounds_of(known: SamplingField, limits: Limits) -> Schema:
    low, high = known.bounds(limits)
    least = "exclusiveMinimum" if known.above else "minimum"
    return {"type": "integer" if known.kind is int else "number", least: low, "maximum": high}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: float, high: float) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _up_to(most: int) -> str:
    """Returns a pattern of all whole numbers from 0 to this one."""
    digits = str(most)
    patterns = [str(most), "0"]
    for length in range(1, len(digits)):
        patterns.append("[1-9]" + "[0-9]" * (length - 1))
    for at, digit in enumerate(digits):
        low = 0 if at else 1
        if int(digit) > low:
            patterns.append(f"{digits[:at]}[{low}-{int(digit) - 1}]" + "[0-9]" * (len(digits) - at - 1))
    return "|".join(patterns)


def _list(items: Schema, fewest: int, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": fewest, "maxItems": most}
