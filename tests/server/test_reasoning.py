"""Reasoning over HTTP: beside the content, plain and streamed, counted, and left in the text if asked for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.scripted import ScriptedLoop, app_of

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
ANSWER = "<think>\nhm, so\n</think>\n\nhello"


@pytest.fixture
def loop(loop: ScriptedLoop) -> ScriptedLoop:
    loop.answer, loop.tokenizer.template, loop.context = ANSWER, "{{ messages }} </think>", 200
    return loop


async def plain(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await http.post(PATH, json={"messages": HI, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def streamed(http: httpx.AsyncClient, **more: Any) -> list[dict[str, Any]]:
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}, **more}
    response = await http.post(PATH, json=body)
    return [json.loads(event[6:]) for event in response.text.split("\n\n")[:-2]]


def joined(chunks: list[dict[str, Any]], name: str) -> str:
    return "".join(choice["delta"].get(name) or "" for chunk in chunks for choice in chunk["choices"])


async def test_reasoning_stands_beside_the_content(http: httpx.AsyncClient) -> None:
    body = await plain(http)
    message = body["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("hello", "hm, so", "hm, so")
    thought = len(">\nhm, so\n</think>")  # from the token that completes the tag on
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert body["usage"]["completion_tokens"] == len(ANSWER)


async def test_a_stream_tells_the_same(http: httpx.AsyncClient) -> None:
    chunks = await streamed(http, logprobs=True)
    assert joined(chunks, "content") == "hello"
    assert joined(chunks, "reasoning_content") == joined(chunks, "reasoning") == "hm, so"
    assert chunks[-1]["usage"] == (await plain(http))["usage"]
    said = [chunk["choices"][0] for chunk in chunks[1:-2]]
    assert all(any(choice["delta"].values()) for choice in said), "no empty deltas"
    told = [one["token"] for choice in said if choice["logprobs"] for one in choice["logprobs"]["content"]]
    assert "".join(told) == ANSWER


async def test_an_answer_cut_in_its_reasoning_has_no_content(http: httpx.AsyncClient) -> None:
    choice = (await plain(http, max_tokens=12))["choices"][0]
    assert choice["finish_reason"] == "length"
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("", "hm,")


async def test_the_prompt_may_have_opened_the_reasoning(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "hm</think>hello"
    message = (await plain(http, messages=[{"role": "user", "content": "x<think>\n"}]))["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == ("hello", "hm")


async def test_a_form_is_for_the_whole_answer(http: httpx.AsyncClient) -> None:
    body = await plain(http, structured_outputs={"regex": ".*"})
    assert body["choices"][0]["message"]["content"] == ANSWER
    assert "completion_tokens_details" not in body["usage"]


async def test_models_without_reasoning_have_none(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.tokenizer.template = "{{ messages }}"
    body = await plain(http)
    assert body["choices"][0]["message"] == {"role": "assistant", "content": ANSWER, "refusal": None}
    assert "completion_tokens_details" not in body["usage"]


async def test_reasoning_may_be_left_in_the_text(loop: ScriptedLoop) -> None:
    app = app_of(loop, reasoning=False)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
            assert (await plain(http))["choices"][0]["message"]["content"] == ANSWER
    finally:
        app.state.close()
