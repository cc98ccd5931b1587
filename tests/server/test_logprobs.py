"""Log-probabilities over HTTP: OpenAI's two forms, and a streamed answer that equals the plain one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from baton.server.logprobs import CompletionLogprobs
from server.scripted import MODEL, Letters, ScriptedLoop, logprobs_of, usage_body

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


async def plain(http: httpx.AsyncClient, path: str, **asked: Any) -> dict[str, Any]:
    response = await http.post(path, json=asked)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def streamed(http: httpx.AsyncClient, path: str, **asked: Any) -> list[dict[str, Any]]:
    response = await http.post(path, json={**asked, "stream": True})
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]


def put_together(chunks: list[dict[str, Any]], index: int) -> tuple[str, dict[str, Any] | None]:
    """Text and log-probabilities of one choice, from its chunks."""
    text, told = "", dict[str, Any]()
    for choice in (chunk["choices"][0] for chunk in chunks if chunk["choices"]):
        if choice["index"] != index:
            continue
        text += choice.get("text", "") or choice.get("delta", {}).get("content", "")
        for name, values in (choice["logprobs"] or {}).items():
            told[name] = None if values is None else told.get(name, []) + values
    return text, told or None


async def test_completion_logprobs(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "he"
    body = await plain(http, COMPLETIONS, prompt="ab", logprobs=1)
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["h", "e"],
        "token_logprobs": [-1.5, -1.5],
        "top_logprobs": [{"g": -0.5, "h": -1.5}, {"d": -0.5, "e": -1.5}],
        "text_offset": [0, 1],
    }
    params = loop.queries[0].params
    assert (params.logprobs, params.prompt_logprobs) == (1, None)


async def test_completion_logprobs_of_none_but_the_token(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "he"
    body = await plain(http, COMPLETIONS, prompt="ab", logprobs=0)
    assert body["choices"][0]["logprobs"]["top_logprobs"] == [{"h": -1.5}, {"e": -1.5}]


async def test_echo_with_logprobs_begins_with_the_prompts(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "h"
    choice = (await plain(http, COMPLETIONS, prompt="ab", logprobs=1, echo=True))["choices"][0]
    assert choice["text"] == "abh"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "h"],
        "token_logprobs": [None, -1.5, -1.5],
        "top_logprobs": [None, {"a": -0.5, "b": -1.5}, {"g": -0.5, "h": -1.5}],
        "text_offset": [0, 1, 2],
    }
    assert loop.queries[0].params.prompt_logprobs == 1


async def test_echo_of_the_prompt_alone(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    """What lm-evaluation-harness asks: how likely is this text."""
    asked = {"prompt": [[97, 98], [99]], "max_tokens": 0, "logprobs": 1, "echo": True}
    body = await plain(http, COMPLETIONS, **asked)
    assert [choice["text"] for choice in body["choices"]] == ["ab", "c"]
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.5]
    assert body["choices"][1]["logprobs"]["token_logprobs"] == [None]
    assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
    assert body["usage"] == usage_body(3, 0)
    assert {query.limit_tokens for query in loop.queries} == {1}
    chunks = await streamed(http, COMPLETIONS, **asked, stream_options={"include_usage": True})
    assert put_together(chunks, 0) == ("ab", body["choices"][0]["logprobs"])
    assert chunks[-1]["usage"]["completion_tokens"] == 0


async def test_chat_logprobs(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "h"
    body = await plain(http, CHAT, **HI, logprobs=True, top_logprobs=2)
    best = [{"token": "g", "logprob": -0.5, "bytes": [103]}, {"token": "h", "logprob": -1.5, "bytes": [104]}]
    assert body["choices"][0]["logprobs"] == {"content": [{**best[1], "top_logprobs": best}], "refusal": None}
    body = await plain(http, CHAT, **HI, logprobs=True)
    assert body["choices"][0]["logprobs"]["content"] == [{**best[1], "top_logprobs": []}]
    assert (await plain(http, CHAT, **HI, logprobs=False))["choices"][0]["logprobs"] is None
    assert [query.params.logprobs for query in loop.queries] == [2, 0, None]


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (COMPLETIONS, {"prompt": "ab", "logprobs": 2}),
        (COMPLETIONS, {"prompt": ["ab", "c"], "n": 2, "logprobs": 2, "echo": True}),
        (COMPLETIONS, {"prompt": "ab", "echo": True}),
        (CHAT, {**HI, "logprobs": True, "top_logprobs": 3, "n": 2}),
    ],
)
async def test_a_streamed_answer_equals_the_plain_one(http: httpx.AsyncClient, path: str, asked: dict) -> None:
    choices = (await plain(http, path, **asked))["choices"]
    chunks = await streamed(http, path, **asked)
    for choice in choices:
        text = choice["text"] if path == COMPLETIONS else choice["message"]["content"]
        assert put_together(chunks, choice["index"]) == (text, choice["logprobs"])


@pytest.mark.parametrize(
    ("path", "asked", "param", "code"),
    [
        (COMPLETIONS, {"logprobs": 21}, "logprobs", "invalid_value"),
        (COMPLETIONS, {"logprobs": -1}, "logprobs", "invalid_value"),
        (COMPLETIONS, {"logprobs": True}, "logprobs", "invalid_value"),
        (COMPLETIONS, {"top_logprobs": 2}, "top_logprobs", "unsupported_parameter"),
        (COMPLETIONS, {"max_tokens": 0}, "max_tokens", "invalid_value"),
        (COMPLETIONS, {"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens", "invalid_value"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        (CHAT, {"logprobs": 2}, "logprobs", "invalid_value"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    http: httpx.AsyncClient, loop: ScriptedLoop, path: str, asked: dict, param: str, code: str
) -> None:
    response = await http.post(path, json={**({"prompt": "a"} if path == COMPLETIONS else HI), **asked})
    assert response.status_code == 400
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (param, code)
    assert loop.queries == []


def test_offsets_are_where_tokens_begin_in_the_text() -> None:
    """A special token that the text does not show takes no place, and halves of a character share theirs."""
    writer = CompletionLogprobs(Letters())
    told = [logprobs_of(token, 0) for token in (97, 1, 2, 98)]
    body = writer.echo([0, 97, 1, 2, 98], "aéb", told)
    assert body["tokens"] == ["<end>", "a", "bytes:\\xc3", "bytes:\\xa9", "b"]
    assert body["text_offset"] == [0, 0, 1, 1, 2]
    assert writer.answer([logprobs_of(token, 0) for token in (99, 0)])["text_offset"] == [3, 4]
    assert writer.answer([logprobs_of(99, 0)])["text_offset"] == [4]
    shown = CompletionLogprobs(Letters()).echo([0, 97], "<end>a", told[:1])
    assert shown["text_offset"] == [0, 5]


def test_of_two_tokens_with_one_text_the_better_is_told() -> None:
    class Deaf(Letters):
        def piece(self, token_id: int) -> bytes:
            return b"same"

    assert CompletionLogprobs(Deaf()).answer([logprobs_of(7, 3)])["top_logprobs"] == [{"same": -0.5}]


def test_the_official_client_reads_them(base_url: str, loop: ScriptedLoop) -> None:
    loop.answer = "hé"
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=20)
    said = client.chat.completions.create(model=MODEL, logprobs=True, top_logprobs=2, **HI)  # type: ignore[call-overload]
    content = said.choices[0].logprobs.content
    assert [token.token for token in content] == ["h", "é"]
    assert (content[1].bytes, content[1].logprob) == ([0xC3, 0xA9], -1.5)
    assert [best.token for best in content[0].top_logprobs] == ["g", "h"]
    with client.chat.completions.stream(model=MODEL, logprobs=True, top_logprobs=2, **HI) as stream:  # type: ignore[call-overload]
        assert stream.get_final_completion().choices[0].logprobs.content == content
    told = client.completions.create(model=MODEL, prompt="a", echo=True, logprobs=1, max_tokens=1).choices[0].logprobs
    assert told is not None and told.tokens == ["a", "h"] and told.token_logprobs == [None, -1.5]
    assert told.text_offset == [0, 1] and told.top_logprobs == [None, {"g": -0.5, "h": -1.5}]
