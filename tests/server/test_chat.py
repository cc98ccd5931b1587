"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.scripted import CONTEXT, MODEL, Letters, ScriptedLoop, usage_body

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def test_plain_answer(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    body = (await http.post(PATH, json={"model": MODEL, "messages": HI})).json()
    message = {"role": "assistant", "content": "hello", "refusal": None}
    assert body["object"] == "chat.completion" and body["id"] == f"chatcmpl-{loop.queries[0].id}"
    assert body["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == usage_body(8, 5)
    assert loop.queries[0].prompt == tuple(Letters().encode("<user>hi"))
    assert loop.queries[0].limit_tokens == CONTEXT - 8, "no max_tokens: up to the context"


async def test_stream(http: httpx.AsyncClient) -> None:
    response = await http.post(PATH, json={"messages": HI, "stream": True, "n": 2, "max_completion_tokens": 2})
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    choices = [json.loads(event[6:])["choices"][0] for event in events[:-2]]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["delta"].get("content") for choice in mine[1:]] == ["h", "e", None]
        assert [choice["finish_reason"] for choice in mine] == [None, None, None, "length"]


async def test_roles_and_parts(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "d"},
        {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [], "audio": None},
        {"role": "user", "content": parts, "name": None},
    ]
    assert (await http.post(PATH, json={"messages": messages})).status_code == 200
    assert loop.queries[0].prompt == tuple(Letters().encode("<system>d<assistant>x<user>a\nb"))


@pytest.mark.parametrize(
    ("messages", "code", "param"),
    [
        ([], "invalid_value", "messages"),
        ("hi", "invalid_value", "messages"),
        (["hi"], "invalid_value", "messages[0]"),
        ([{"role": "user"}], "invalid_value", "messages[0].content"),
        ([{"content": "a"}], None, "messages[0].role"),
        ([{"role": "king", "content": "a"}], "invalid_value", "messages[0].role"),
        ([*HI, {"role": "tool", "content": "a"}], "invalid_value", "messages[1].tool_call_id"),
        ([*HI, {"role": "function", "content": "a"}], "unsupported_parameter", "messages[1].role"),
        ([{"role": "user", "content": "a", "mood": 1}], "unsupported_parameter", "messages[0].mood"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "unsupported_parameter",
            "messages[0].content[0].type",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "invalid_value", "messages[0].content[0]"),
        ([{"role": "user", "content": 5}], "invalid_value", "messages[0].content"),
        ([*HI, {"role": "assistant", "content": "a"}], "invalid_value", "messages"),
        ([{"role": "user", "content": "a" * 99}], "context_length_exceeded", "messages"),
    ],
)
async def test_bad_messages(
    http: httpx.AsyncClient, loop: ScriptedLoop, messages: object, code: str | None, param: str
) -> None:
    response = await http.post(PATH, json={"messages": messages})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert loop.queries == []


async def test_two_limits_that_disagree(http: httpx.AsyncClient) -> None:
    asked = {"messages": HI, "max_tokens": 3, "max_completion_tokens": 4}
    error = (await http.post(PATH, json=asked)).json()["error"]
    assert error["param"] == "max_completion_tokens"
    asked["max_tokens"] = 4
    assert (await http.post(PATH, json=asked)).json()["usage"]["completion_tokens"] == 4
