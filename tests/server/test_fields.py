"""The rule of fields: what could change the answer is honoured or refused by name, the rest is taken and reported."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from baton.server.field_rules import MESSAGE, REPORTED
from baton.server.schema import ChatRequest
from server.scripted import ScriptedLoop, app_of

PATH = "/v1/chat/completions"
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "x"}


def after_call(call: dict[str, Any], result: dict[str, Any] = RESULT) -> list[dict[str, Any]]:
    return [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}, result]


def answered(**more: Any) -> list[dict[str, Any]]:
    return [*HI, {"role": "assistant", "content": "a", **more}, *HI]


HISTORIES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "parsed null": (answered(refusal=None, parsed=None, audio=None, function_call=None), []),
    "parsed": (answered(parsed={"a": 1}), ["messages.parsed"]),
    "annotations": (answered(annotations=[{"type": "url_citation"}]), ["messages.annotations"]),
    "a name": ([{"role": "user", "content": "hi", "name": "me", "id": "1", "timestamp": 5}],
               ["messages.id", "messages.name", "messages.timestamp"]),
    "index in a call": (after_call({**CALL, "index": 0}), ["messages.tool_calls.index"]),
    "parsed_arguments in a call": (
        after_call({**CALL, "function": {**CALL["function"], "parsed_arguments": {}}}),
        ["messages.tool_calls.function.parsed_arguments"],
    ),
    "arguments empty": (after_call({**CALL, "function": {"name": "now", "arguments": ""}}), []),
    "null content of a tool": (after_call(CALL, {**RESULT, "content": None}), []),
    "no content of a tool": (after_call(CALL, {"role": "tool", "tool_call_id": "c1"}), []),
    "parts of a tool": (after_call(CALL, {**RESULT, "content": [{"type": "text", "text": "x"}]}), []),
    "a tool's name": (after_call(CALL, {**RESULT, "name": "now"}), []),
    "cache_control": (
        [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
        ["messages.content.cache_control"],
    ),
    "provider_specific_fields": (answered(provider_specific_fields={"a": 1}), ["messages.provider_specific_fields"]),
    "nulls": (answered(nonsense=None, tool_calls=None), []),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
async def test_histories_of_clients_are_taken_and_told(http: httpx.AsyncClient, loop: ScriptedLoop, name: str) -> None:
    loop.tokenizer.template = "{{ messages }} tool_calls tool"
    messages, told = HISTORIES[name]
    response = await http.post(PATH, json={"messages": messages})
    assert response.status_code == 200, response.text
    assert response.headers.get("x-baton-ignored", "").split(", ") == (told or [""])


def test_empty_arguments_are_an_object() -> None:
    turns = ChatRequest.read({"messages": after_call({**CALL, "function": {"name": "now", "arguments": ""}})}).turns()
    assert turns[1]["tool_calls"][0]["function"]["arguments"] == {}
    assert ChatRequest.read({"messages": after_call(CALL, {**RESULT, "content": None})}).turns()[2]["content"] == ""


TAKEN: dict[str, Any] = {
    "use_beam_search": False,
    "length_penalty": 1.0,
    "echo": False,
    "documents": [],
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "add_generation_prompt": True,
    "no_stop_trim": False,
    "separate_reasoning": True,
    "prompt_cache_key": "a",
    "prompt_cache_retention": "24h",
    "safety_identifier": "a",
    "store": True,
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "verbosity": "low",
    "parallel_tool_calls": False,
}


async def test_what_asks_for_nothing_is_taken_and_told(http: httpx.AsyncClient) -> None:
    for name, value in TAKEN.items():
        response = await http.post(PATH, json={"messages": HI, name: value})
        assert response.status_code == 200, (name, response.text)
        if name not in ChatRequest.model_fields:
            assert response.headers["x-baton-ignored"] == name
    both = await http.post("/v1/completions", json={"prompt": "a", "verbosity": "low", "store": False, "stream": True})
    assert both.headers["x-baton-ignored"] == "store, verbosity"
    assert "x-baton-ignored" not in (await http.post(PATH, json={"messages": HI})).headers


@pytest.mark.parametrize(("name", "value"), [("use_beam_search", True), ("length_penalty", 0.5), ("no_stop_trim", 0)])
async def test_what_could_change_the_answer_is_refused(http: httpx.AsyncClient, name: str, value: object) -> None:
    error = (await http.post(PATH, json={"messages": HI, name: value})).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)


async def test_unknown_fields_are_refused_by_their_path_unless_they_are_null(http: httpx.AsyncClient) -> None:
    for messages, path in (
        (answered(mood=1), "messages[1].mood"),
        (after_call({**CALL, "mood": 1}), "messages[1].tool_calls[0].mood"),
        ([{"role": "user", "content": [{"type": "text", "text": "a", "mood": 1}]}], "messages[0].content[0].mood"),
    ):
        error = (await http.post(PATH, json={"messages": messages})).json()["error"]
        assert error["param"] == path and path in error["message"]
    nulls = {"nonsense": None, "response_format": {"type": "text", "json_schema": None}, "stream_options": None}
    assert (await http.post(PATH, json={"messages": HI, **nulls})).status_code == 200


async def test_a_user_that_is_an_object_is_known_by_its_digest(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    for user in ({"name": "a", "id": 1}, {"id": 1, "name": "a"}, {"id": 2, "name": "a"}, "a"):
        assert (await http.post(PATH, json={"messages": HI, "user": user})).status_code == 200
    one, same, other, named = (query.user for query in loop.queries)
    assert one == same != other and named == "a" and len(one) == 32
    assert (await http.post(PATH, json={"messages": HI, "user": [1]})).status_code == 400


async def test_usage_in_each_event(http: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    response = await http.post(PATH, json={"messages": HI, "stream": True, "stream_options": options})
    chunks = [json.loads(event[6:]) for event in response.text.split("\n\n")[:-2]]
    told = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert told == [1, 1, 2, 3, 4, 5, 5, 5], "role, five letters, finish, usage"
    assert all(chunk["usage"]["prompt_tokens"] == 8 for chunk in chunks)
    assert all(chunk["usage"]["total_tokens"] == 8 + count for chunk, count in zip(chunks, told, strict=True))


async def test_what_was_ignored_is_counted_and_logged(loop: ScriptedLoop, caplog: pytest.LogCaptureFixture) -> None:
    counted: list[str] = []
    transport = httpx.ASGITransport(app=app_of(loop, ignore=counted.extend))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        with caplog.at_level(logging.DEBUG, "baton.server"):
            await http.post(PATH, json={"messages": answered(id="1"), "store": True}, headers={"x-request-id": "r1"})
            await http.post("/tokenize", json={"messages": answered(id="1")})
    assert counted == ["messages.id", "store", "messages.id"] and set(counted) <= set(REPORTED)
    assert "request r1: taken without effect: messages.id, store" in caplog.text


def test_told_names_are_few_and_plain() -> None:
    assert len(REPORTED) == len(set(REPORTED)) < 200
    assert all(name.replace("_", "").replace(".", "").isalpha() for name in REPORTED)
    assert "messages.audio" not in REPORTED and "audio" in MESSAGE, "what is never taken is never told"
