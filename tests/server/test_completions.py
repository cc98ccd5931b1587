"""POST /v1/completions: what goes to the engine, and what comes back."""

from __future__ import annotations

import json

import httpx
import pytest

from server.scripted import MODEL, ScriptedLoop, usage_body

PATH = "/v1/completions"


async def test_plain_answer(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    response = await http.post(PATH, json={"model": MODEL, "prompt": "abc"})
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "text_completion" and body["model"] == MODEL and body["id"].startswith("cmpl-")
    assert body["choices"] == [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == usage_body(3, 5)
    assert loop.queries[0].prompt == (97, 98, 99)
    assert loop.queries[0].limit_tokens == 16
    assert loop.cancelled == [], "a normal finish is not an abort"


async def test_sampling_reaches_the_engine(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.3,
        "repetition_penalty": 1.2,
        "seed": 5,
        "stop_token_ids": [3],
        "min_tokens": 2,
        "max_tokens": 9,
        "ignore_eos": True,
    }
    response = await http.post(PATH, json={"prompt": "a", "stop": "x", "logit_bias": {"7": -100}, **asked})
    assert response.status_code == 200, response.text
    params = loop.queries[0].params
    assert {name: getattr(params, name) for name in asked} == {**asked, "stop_token_ids": (3,)}
    assert params.stop == ("x",) and dict(params.logit_bias or {}) == {7: -100.0}
    assert loop.queries[0].seed == 5 and loop.queries[0].limit_tokens == 9


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [(97, 98)]),
        (["a", "b"], [(97,), (98,)]),
        ([5, 6], [(5, 6)]),
        ([[5], [6, 7]], [(5,), (6, 7)]),
    ],
)
async def test_forms_of_prompt(
    http: httpx.AsyncClient, loop: ScriptedLoop, prompt: object, expected: list[tuple[int, ...]]
) -> None:
    body = (await http.post(PATH, json={"prompt": prompt})).json()
    assert [query.prompt for query in loop.queries] == expected
    assert [choice["index"] for choice in body["choices"]] == list(range(len(expected)))


async def test_choices_of_several_prompts(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    body = (await http.post(PATH, json={"prompt": ["ab", "c"], "n": 2, "echo": True, "seed": 1})).json()
    assert [choice["text"] for choice in body["choices"]] == ["abhello", "abhello", "chello", "chello"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == usage_body(3, 20)
    assert [query.seed for query in loop.queries] == [1, 2, 1, 2]


async def test_echo_of_token_ids(http: httpx.AsyncClient) -> None:
    body = (await http.post(PATH, json={"prompt": [104, 105], "echo": True})).json()
    assert body["choices"][0]["text"] == "hihello"


async def test_length_is_passed_on(http: httpx.AsyncClient) -> None:
    choice = (await http.post(PATH, json={"prompt": "a", "max_tokens": 2})).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("he", "length")


async def test_baton_usage(http: httpx.AsyncClient) -> None:
    body = (await http.post(PATH, json={"prompt": ["a", "b"], "baton_usage": True})).json()
    assert body["usage"]["baton"] == {
        "useful_slots": 60,
        "idle_slots": 20,
        "idle_ratio": 0.25,
        "queue_seconds": 0.5,
        "prefill_seconds": 0.25,
        "decode_seconds": 1.5,
        "preemptions": 2,
    }


async def test_stream(http: httpx.AsyncClient) -> None:
    asked = {"prompt": ["a", "b"], "stream": True, "echo": True, "max_tokens": 3}
    response = await http.post(PATH, json=asked)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    texts = ["".join(c["text"] for c in choices if c["index"] == index) for index in (0, 1)]
    assert texts == ["ahel", "bhel"]
    ends = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]]
    assert sorted(ends) == [(0, "length"), (1, "length")]


async def test_stream_with_usage(http: httpx.AsyncClient) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}
    response = await http.post(PATH, json={"prompt": "abc", **options})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage_body(3, 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_tokens_of_a_prompt_are_what_none_of_its_choices_computed(
    http: httpx.AsyncClient, loop: ScriptedLoop, stream: bool
) -> None:
    loop.cached = [2, 3, 0, 1]
    asked = {"prompt": ["abcd", "ef"], "n": 2, "max_tokens": 1, "stream": stream}
    response = await http.post(PATH, json=asked | ({"stream_options": {"include_usage": True}} if stream else {}))
    told = json.loads(response.text.split("\n\n")[-3][6:]) if stream else response.json()
    assert told["usage"] == usage_body(6, 4, cached=2)


async def test_stream_with_baton_usage_alone(http: httpx.AsyncClient) -> None:
    response = await http.post(PATH, json={"prompt": "abc", "stream": True, "baton_usage": True})
    assert json.loads(response.text.split("\n\n")[-3][6:])["usage"]["baton"]["idle_ratio"] == 0.25


async def test_text_is_escaped_in_events(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = 'a"\n\n\u2028é🜚'
    response = await http.post(PATH, json={"prompt": "abc", "stream": True})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == loop.answer


async def test_what_is_accepted_without_effect_or_asks_for_nothing(http: httpx.AsyncClient) -> None:
    nothing = {
        "user": "me",
        "metadata": {"a": 1},
        "store": False,
        "logprobs": None,
        "suffix": None,
        "best_of": 1,
        "stop": None,
        "temperature": None,
        "max_tokens": None,
        "priority": 0,
        "deadline_ms": None,
        "response_format": {"type": "text"},
    }
    assert (await http.post(PATH, json={"prompt": "a", **nothing})).status_code == 200
