"""Forms of answers over HTTP: what is refused, and a real engine on random weights whose answers fit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from baton.compose import EngineHandle, open_engine
from baton.core.config import make_config
from baton.server.app import create_app
from baton.server.run import bind, url_of
from bytewise import backend, save_speaking
from server.scripted import ScriptedLoop, app_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}, "size": {"type": "integer", "minimum": 1, "maximum": 40}},
    "required": ["color", "size"],
    "additionalProperties": False,
}


def json_schema(**more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, **more}}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"response_format": "json"}, "invalid_value", "response_format"),
        ({"response_format": {}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "text", "x": 1}}, "unsupported_parameter", "response_format.x"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "unsupported_parameter", "response_format.schema"),
        ({"response_format": {"type": "json_schema"}}, "invalid_value", "response_format.json_schema"),
        ({"response_format": json_schema(name="a b")}, "invalid_value", "response_format.json_schema.name"),
        ({"response_format": json_schema(schema=None)}, "invalid_value", "response_format.json_schema.schema"),
        ({"response_format": json_schema(strict="yes")}, "invalid_value", "response_format.json_schema.strict"),
        ({"response_format": json_schema(mood=1)}, "unsupported_parameter", "response_format.json_schema.mood"),
        ({"response_format": json_schema(), "min_tokens": 2}, "invalid_value", "min_tokens"),
        ({"response_format": json_schema(), "ignore_eos": True}, "invalid_value", "ignore_eos"),
        ({"structured_outputs": {}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, "invalid_value", "structured_outputs"),
        ({"structured_outputs": {"regex": 3}}, "invalid_value", "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "invalid_value", "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "invalid_value", "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "invalid_value", "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True}}, "unsupported_parameter", "structured_outputs.json_object"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "invalid_value",
            "structured_outputs",
        ),
        ({"structured_outputs": {"regex": "a" * 2**17 + "a"}}, "invalid_value", "structured_outputs"),
    ],
)
async def test_what_is_refused(
    http: httpx.AsyncClient, loop: ScriptedLoop, path: str, more: dict[str, Any], code: str, param: str
) -> None:
    response = await http.post(path, json={**({"messages": HI} if path == CHAT else {"prompt": "a"}), **more})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert loop.queries == []


async def test_an_engine_without_a_compiler_refuses_by_name(loop: ScriptedLoop) -> None:
    loop.compiler = None
    transport = httpx.ASGITransport(app=app_of(loop))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        text = await http.post(CHAT, json={"messages": HI, "response_format": {"type": "text"}})
        other = await http.post(CHAT, json={"messages": HI, "response_format": {"type": "json_object"}})
    assert text.status_code == 200, "text is what there is always"
    error = other.json()["error"]
    assert (other.status_code, error["code"], error["param"]) == (400, "unsupported_parameter", "response_format")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHandle]:
    folder: Path = save_speaking(tmp_path_factory.mktemp("speaking"))
    handle = open_engine(make_config({"model": str(folder), "served_model_name": "bytes", "grammar_timeout": 20.0}))
    yield handle
    handle.client.close()


@pytest.fixture(scope="module")
def url(house: EngineHandle) -> Iterator[str]:
    app = create_app(house.client, render_metrics=lambda: (b"", "text/plain"), version="0")
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error"))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    yield url_of(bound)
    server.should_exit = server.force_exit = True
    thread.join(10)
    app.state.close()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def is_thing(text: str) -> bool:
    thing = json.loads(text)
    return list(thing) == ["color", "size"] and thing["color"] in ("red", "green") and 1 <= thing["size"] <= 40


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_schema_plain_and_streamed(client: openai.OpenAI, temperature: float) -> None:
    asked: Any = {
        "model": "bytes",
        "messages": HI,
        "response_format": json_schema(strict=True),
        "temperature": temperature,
        "seed": 5,
        "max_tokens": 150,
        "n": 3,
    }
    plain = client.chat.completions.create(**asked)
    texts = [choice.message.content for choice in plain.choices]
    assert all(is_thing(text) for text in texts) and {choice.finish_reason for choice in plain.choices} == {"stop"}
    assert (len(set(texts)) > 1) == (temperature > 0)
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_a_cut_answer_says_length(client: openai.OpenAI) -> None:
    asked: Any = {"model": "bytes", "messages": HI, "response_format": json_schema(), "max_tokens": 4}
    assert client.chat.completions.create(**asked).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("outputs", "fits"),
    [
        ({"json": SCHEMA}, is_thing),
        ({"regex": "(ab|ba){2}"}, lambda text: text in ("abab", "abba", "baab", "baba")),
        ({"choice": ['a "b"\n', "é"]}, lambda text: text in ('a "b"\n', "é")),
        ({"grammar": 'start: "x" y\ny: "1" | "2"'}, lambda text: text in ("x1", "x2")),
    ],
)
def test_other_forms(client: openai.OpenAI, outputs: dict[str, Any], fits: Any) -> None:
    made = client.completions.create(
        model="bytes", prompt=["a", "b"], max_tokens=150, extra_body={"structured_outputs": outputs}
    )
    assert all(fits(choice.text) and choice.finish_reason == "stop" for choice in made.choices)


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ({"json": {"not": {}}}, "not"),
        ({"json": {"$ref": "http://127.0.0.1:9/x"}}, "127.0.0.1:9"),
        ({"regex": "("}, "unclosed"),
        ({"grammar": "x"}, "cannot be honoured"),
    ],
)
def test_what_cannot_be_honoured(client: openai.OpenAI, outputs: dict[str, Any], why: str) -> None:
    with pytest.raises(openai.BadRequestError, match=why) as bad:
        client.completions.create(model="bytes", prompt="a", extra_body={"structured_outputs": outputs})
    assert (bad.value.code, bad.value.param) == ("invalid_value", "structured_outputs")


TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "paint", "parameters": {**SCHEMA, "properties": {**SCHEMA["properties"]}}},
    },
    {"type": "function", "function": {"name": "stop"}},
]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_random_weights_call_tools_when_they_must(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {
        "model": "bytes",
        "messages": [{"role": "user", "content": "."}],
        "tools": [TOOLS[0]],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "seed": 3,
        "temperature": 1,
        "logprobs": True,
    }
    # The prompt with the tool's schema leaves little of a tiny context.
    made = [client.chat.completions.create(**{**asked, "seed": seed}).choices[0] for seed in range(4)]
    whole = [one for one in made if one.finish_reason == "tool_calls"]
    assert whole
    for one in whole:
        assert one.message.content is None
        (call,) = one.message.tool_calls
        assert call.function.name == "paint" and is_thing(call.function.arguments)
        assert one.logprobs.content[0].token == "<tool_call>", "a special token, seen by the parser and not shown"
    with client.chat.completions.stream(**{**asked, "seed": made.index(whole[0])}) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.tool_calls[0].function.arguments == whole[0].message.tool_calls[0].function.arguments
    assert (streamed.message.content, streamed.finish_reason) == (None, "tool_calls")


def test_of_special_tokens_only_tags_are_text(client: openai.OpenAI) -> None:
    asked: Any = {"model": "bytes", "messages": HI, "tools": [TOOLS[1]], "max_tokens": 3, "temperature": 0}
    said = {}
    for token in ("<tool_call>", "<pad>"):
        bias = {str(backend().token_to_id(token)): 100}
        one = client.chat.completions.create(**asked, logit_bias=bias).choices[0]
        assert (one.finish_reason, one.message.tool_calls) == ("length", None)
        said[token] = one.message.content
    assert said == {"<tool_call>": "<tool_call>" * 3, "<pad>": ""}, "a call that is none is text, to the letter"
