"""POST /v1/messages: what it makes of a chat, plain and streamed, each event as the anthropic package types it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from baton.server.auth import Access
from server.by_hand import Wire, submitted
from server.listening import listening
from server.scripted import MODEL, ScriptedLoop, app_of

anthropic = pytest.importorskip("anthropic")

PATH = "/v1/messages"
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TEMPLATE = "{{ tools }} {{ messages }} tool_calls <tool_call> </think>"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "weather", "description": "d", "input_schema": CITY}
ANSWER = '<think>hm</think>so\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def loop(loop: ScriptedLoop) -> ScriptedLoop:
    loop.tokenizer.template, loop.context = TEMPLATE, 400
    return loop


async def plain(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(PATH, json={"messages": HI, "max_tokens": 100, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    anthropic.types.Message.model_validate(answer)
    return answer


async def streamed(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """All events, each of which has its type's fields and its name."""
    adapter: TypeAdapter[Any] = TypeAdapter(anthropic.types.RawMessageStreamEvent)
    response = await http.post(PATH, json={"messages": HI, "max_tokens": 100, **body, "stream": True})
    assert response.status_code == 200, response.text
    events = []
    for frame in response.text.split("\n\n")[:-1]:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] != "error":
            assert adapter.validate_python(event).type == event["type"]
        events.append(event)
    return events


async def refused(http: httpx.AsyncClient, **body: Any) -> str:
    response = await http.post(PATH, json={"messages": HI, "max_tokens": 100, **body})
    assert response.status_code == 400, response.text
    told = response.json()
    assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    return str(told["error"]["message"])


async def test_a_text(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.cached = [3, 3]
    body = await plain(http, model=MODEL, system="be kind")
    assert body["id"] == f"msg_{loop.queries[0].id}" and body["content"] == [{"type": "text", "text": "hello"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    prompt = len(loop.queries[0].prompt)
    usage = body["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (prompt - 3, 3, 5)
    assert [turn["role"] for turn in loop.tokenizer.messages] == ["system", "user"]
    events = await streamed(http, system="be kind")
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 5,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[-2]["usage"] == usage and events[-2]["delta"]["stop_reason"] == "end_turn"


async def test_thinking_text_and_a_call(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = ANSWER
    body = await plain(http, tools=[WEATHER], thinking={"type": "enabled", "budget_tokens": 1024})
    thought, said, call = body["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "hm")
    assert said == {"type": "text", "text": "so"}
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})
    assert body["stop_reason"] == "tool_use"
    events = await streamed(http, tools=[WEATHER])
    began = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in began] == ["thinking", "text", "tool_use"] and began[2]["input"] == {}
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "hm"
    assert json.loads("".join(delta.get("partial_json", "") for delta in deltas)) == {"city": "Rome"}
    assert [event["index"] for event in events if event["type"] == "content_block_stop"] == [0, 1, 2]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_why_an_answer_stopped(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    assert (await plain(http, max_tokens=2))["stop_reason"] == "max_tokens"
    loop.stopped_by = "END"
    body = await plain(http, stop_sequences=["END", "x"])
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", "END")
    assert loop.queries[-1].params.stop == ("END", "x")
    assert (await streamed(http, stop_sequences=["END"]))[-2]["delta"]["stop_sequence"] == "END"


async def test_an_answer_ends_where_the_context_does(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "a" * 1000
    body = await plain(http, max_tokens=32000)
    assert body["stop_reason"] == "model_context_window_exceeded"
    assert body["usage"]["input_tokens"] + body["usage"]["output_tokens"] == loop.context


async def test_blocks_are_the_turns_of_a_chat(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "so"},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}]},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": True},
            {"type": "text", "text": "and?"},
        ]},
    ]  # fmt: skip
    asked = {"messages": messages, "max_tokens": 9, "tools": [WEATHER], "system": [{"type": "text", "text": "s"}]}
    response = await http.post(PATH, json=asked)
    assert response.status_code == 200, response.text
    turns = loop.tokenizer.messages
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert [turn["content"] for turn in turns] == ["s", "a\nb", "so", "sun", "", "and?"]
    assert [call["function"]["arguments"] for call in turns[2]["tool_calls"]] == [{"city": "Rome"}, {}]
    told = response.headers["x-baton-ignored"].split(", ")
    assert told == ["messages.content.cache_control", "messages.content.is_error", "messages.content.signature"]


@pytest.mark.parametrize(("kind", "variables"), [("enabled", True), ("adaptive", True), ("disabled", False)])
async def test_thinking_is_a_switch_where_the_template_has_one(
    http: httpx.AsyncClient, loop: ScriptedLoop, kind: str, variables: bool
) -> None:
    loop.tokenizer.template = TEMPLATE + " {{ enable_thinking }}"
    await plain(http, thinking={"type": kind})
    assert loop.tokenizer.options.variables == {"enable_thinking": variables}
    loop.tokenizer.template = TEMPLATE.replace("</think>", "")
    await plain(http, thinking={"type": kind})
    assert loop.tokenizer.options.variables == {}, "a model that never thinks has nothing to switch"
    effort = await refused(http, output_config={"effort": "high"})
    assert "output_config.effort" in effort


async def test_the_assistants_words_are_gone_on_with(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    await plain(http, messages=[*HI, {"role": "assistant", "content": "Well,"}])
    assert loop.tokenizer.options.continue_final and loop.tokenizer.messages[-1]["content"] == "Well,"


async def test_tool_choices(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    assert loop.compiler is not None
    for choice, forms in (("auto", 0), ("any", 1), ("tool", 1), ("none", 0)):
        loop.compiler.forms.clear()
        named = {"name": "weather"} if choice == "tool" else {}
        await plain(http, tools=[WEATHER], tool_choice={"type": choice, **named})
        assert len(loop.compiler.forms) == forms, choice
    assert "tool_choice.name" in await refused(http, tools=[WEATHER], tool_choice={"type": "tool"})


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].type 'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
         "messages[0].content[0]"),
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens is required"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"stop_sequences": ["a"] * 9}, "stop_sequences"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"mood": 1}, "mood"),
    ],
)  # fmt: skip
async def test_refusals_name_what_was_sent(http: httpx.AsyncClient, body: Any, named: str) -> None:
    assert named in await refused(http, **body)


async def test_counting(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    asked = {"messages": HI, "system": "be kind", "tools": [WEATHER], "model": MODEL}
    response = await http.post(f"{PATH}/count_tokens", json=asked)
    assert response.json() == {"input_tokens": len(loop.tokenizer.chat(loop.tokenizer.messages))}
    body = await plain(http, system="be kind", tools=[WEATHER])
    assert response.json()["input_tokens"] == body["usage"]["input_tokens"]
    assert (await http.post(f"{PATH}/count_tokens", json={"messages": HI, "max_tokens": 5})).status_code == 400


async def test_errors_have_anthropics_form(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    missing = await http.post(PATH, json={"messages": HI, "max_tokens": 5, "model": "gpt"})
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "not_found_error"
    wrong = await http.get(PATH)
    assert wrong.status_code == 405 and wrong.json()["type"] == "error" and wrong.headers["allow"] == "POST"
    loop.fail_after = 2
    failed = await http.post(PATH, json={"messages": HI, "max_tokens": 5})
    assert (failed.status_code, failed.json()["error"]["type"]) == (500, "api_error")


async def test_a_failure_in_a_stream_is_its_last_event(loop: ScriptedLoop) -> None:
    loop.held = True
    wire = Wire(loop, {"messages": HI, "max_tokens": 5, "stream": True}, PATH)
    await submitted(loop)
    loop.say("a")
    await wire.heard(2)
    loop.fail_after = 0
    loop.release()
    await wire.task
    name, data = wire.bodies[-1].decode().strip().split("\n")
    assert name == "event: error"
    error = json.loads(data.removeprefix("data: "))
    assert error == {"type": "error", "error": {"type": "api_error", "message": "the row had NaN logits"}}


async def test_the_key_may_come_as_x_api_key(loop: ScriptedLoop) -> None:
    app = app_of(loop, access=Access(keys=("secret",)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        asked = {"messages": HI, "max_tokens": 5}
        assert (await http.post(PATH, json=asked, headers={"x-api-key": "secret"})).status_code == 200
        assert (await http.post(PATH, json=asked, headers={"authorization": "Bearer secret"})).status_code == 200
        refusal = await http.post(PATH, json=asked, headers={"x-api-key": "other"})
        assert refusal.status_code == 401 and refusal.json()["error"]["type"] == "authentication_error"
        chat = await http.post("/v1/chat/completions", json={"messages": HI}, headers={"x-api-key": "secret"})
        assert chat.status_code == 401, "elsewhere the key comes as OpenAI's clients send it"


def test_the_anthropic_client(loop: ScriptedLoop) -> None:
    loop.answer = ANSWER
    with listening(app_of(loop, access=Access(keys=("secret",)))) as url:
        client = anthropic.Anthropic(base_url=url, api_key="secret", max_retries=0)
        asked: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": HI, "tools": [WEATHER]}
        message = client.messages.create(**asked)
        assert [block.type for block in message.content] == ["thinking", "text", "tool_use"]
        with client.messages.stream(**asked) as stream:
            assert "".join(stream.text_stream) == "so"
            final = stream.get_final_message()
        assert final.content[2].input == {"city": "Rome"} and final.usage.output_tokens == len(ANSWER)
        assert client.messages.count_tokens(model=MODEL, messages=HI).input_tokens == 8
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            client.messages.create(model=MODEL, max_tokens=0, messages=HI)
