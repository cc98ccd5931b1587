"""The OpenAPI document: FastAPI's list of routes, with the limits in force and every status of each route."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from baton.engine.client import Client
from baton.server.answers import ChatChunk, CompletionChunk
from baton.server.auth import Access
from baton.server.block_answers import AnthropicError, MessageEvent, ResponseEvent
from baton.server.errors import of_messages
from baton.server.openapi_bounds import Schema
from baton.server.openapi_requests import requests, schemas_of
from baton.server.state_answers import ErrorAnswer

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


def described(app: FastAPI, client: Client, access: Access, open_paths: Collection[str]) -> dict[str, Any]:
    """Returns the document for an app with this engine and this access."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_ABOUT)
    schemas = document["components"]["schemas"]
    schemas |= schemas_of((ErrorAnswer, AnthropicError, *_STREAMS.values()), "serialization")
    schemas |= requests(client)
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


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
