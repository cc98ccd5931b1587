"""POST /v1/responses: what it makes of a chat, plain and streamed, each event as the openai package types it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from server.by_hand import Wire, submitted
from server.scripted import MODEL, Letters, ScriptedLoop

PATH = "/v1/responses"
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TEMPLATE = "{{ tools }} {{ messages }} tool_calls <tool_call> </think>"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "d", "parameters": CITY}
ANSWER = '<think>hm</think>so\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture
def loop(loop: ScriptedLoop) -> ScriptedLoop:
    loop.tokenizer.template, loop.context = TEMPLATE, 400
    return loop


async def plain(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    Response.model_validate(answer)
    return answer


async def streamed(http: httpx.AsyncClient, **body: Any) -> list[dict[str, Any]]:
    """All events, each of which has its type's fields, its number and its name."""
    response = await http.post(PATH, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for number, frame in enumerate(response.text.split("\n\n")[:-1]):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}" and event["sequence_number"] == number
        assert EVENT.validate_python(event).type == event["type"]
        events.append(event)
    return events


async def refused(http: httpx.AsyncClient, **body: Any) -> tuple[str, str]:
    response = await http.post(PATH, json={"input": "hi", **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] in error["message"]
    return error["code"], error["param"]


async def test_a_text(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    body = await plain(http, input="hi", instructions="be kind", model=MODEL, max_output_tokens=50)
    assert body["id"] == f"resp_{loop.queries[0].id}" and body["status"] == "completed"
    (item,) = body["output"]
    assert (item["type"], item["role"], item["content"][0]["text"]) == ("message", "assistant", "hello")
    assert body["usage"]["input_tokens"] == len(loop.queries[0].prompt) and body["usage"]["output_tokens"] == 5
    assert loop.queries[0].prompt == tuple(Letters().encode("<system>be kind<user>hi"))
    assert (body["store"], body["instructions"], body["max_output_tokens"]) == (False, "be kind", 50)


async def test_events_of_a_text_add_up_to_the_plain_answer(http: httpx.AsyncClient) -> None:
    events = await streamed(http, input="hi")
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 5,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    whole, told = await plain(http, input="hi"), events[-1]["response"]
    for response in (whole, told):
        for name in ("id", "created_at", "completed_at"):
            response.pop(name)
        response["output"][0].pop("id")
    assert told == whole
    assert "".join(event["delta"] for event in events if "delta" in event) == "hello"


async def test_a_stream_ends_with_the_usage_whether_it_is_asked_for_or_not(http: httpx.AsyncClient) -> None:
    """Some benchmarks ask for it as they do of chats."""
    for options in ({}, {"stream_options": {"include_usage": True}}):
        response = await http.post(PATH, json={"input": "hi", "stream": True, **options})
        assert response.status_code == 200, response.text
        last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["response"]["usage"]["output_tokens"] > 0


async def test_reasoning_text_and_a_call(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = ANSWER
    asked: dict[str, Any] = {"input": "hi", "tools": [WEATHER]}
    body = await plain(http, **asked)
    assert [item["type"] for item in body["output"]] == ["reasoning", "message", "function_call"]
    thought, said, call = body["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "hm"}] and thought["summary"] == []
    assert said["content"][0]["text"] == "so"
    assert (call["name"], json.loads(call["arguments"])) == ("weather", {"city": "Rome"})
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    assert body["tools"][0]["name"] == "weather" and body["tool_choice"] == "auto"
    events = await streamed(http, **asked)
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    ids = {"id": None, "call_id": None}
    assert [item | ids for item in items] == [item | ids for item in body["output"]]
    assert events[-1]["response"]["output"] == items
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call["arguments"] and len(pieces) > 1
    indexes = [event["output_index"] for event in events if "output_index" in event]
    assert indexes == sorted(indexes) and set(indexes) == {0, 1, 2}


async def test_a_cut_answer_is_incomplete(http: httpx.AsyncClient) -> None:
    body = await plain(http, input="hi", max_output_tokens=2)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["output"][0]["status"] == "incomplete" and body["output"][0]["content"][0]["text"] == "he"
    assert (await streamed(http, input="hi", max_output_tokens=2))[-1]["type"] == "response.incomplete"


async def test_items_are_the_turns_of_a_chat(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    items: list[dict[str, Any]] = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": ""},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "rain"}]},
    ]
    response = await http.post(PATH, json={"input": items, "instructions": "i", "tools": [WEATHER]})
    assert response.status_code == 200, response.text
    turns = loop.tokenizer.messages
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "tool"]
    assert turns[0]["content"] == "i\nd" and turns[2]["content"] == "so"
    assert [call["id"] for call in turns[2]["tool_calls"]] == ["c1", "c2"]
    assert [turn["content"] for turn in turns[3:]] == ["sun", "rain"]
    assert "input.id" in response.headers["x-baton-ignored"]


async def test_forms_and_choices(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    form = {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}
    body = await plain(http, input="hi", text={"format": form, "verbosity": "low"})
    assert body["text"]["format"] == form
    assert loop.compiler is not None and json.loads(loop.compiler.forms[0].text) == CITY
    loop.answer = ANSWER.partition("so")[2].strip()
    body = await plain(http, input="hi", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    assert body["output"][0]["type"] == "function_call" and body["tool_choice"]["name"] == "weather"


async def test_functions_in_a_namespace(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = '<tool_call>\n{"name": "sky__weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    tools = [{"type": "namespace", "name": "sky", "description": "d", "tools": [WEATHER]}]
    (call,) = (await plain(http, input="hi", tools=tools))["output"]
    assert (call["name"], call["namespace"]) == ("weather", "sky")
    assert loop.tokenizer.tools[0]["function"]["name"] == "sky__weather"
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sun"}
    await plain(http, input=[{"role": "user", "content": "hi"}, call, result], tools=tools)
    assert loop.tokenizer.messages[1]["tool_calls"][0]["function"]["name"] == "sky__weather"
    wrong = [{**tools[0], "tools": [WEATHER, {"type": "function", "name": "a b"}]}]
    assert await refused(http, tools=wrong) == ("invalid_value", "tools[0].tools[1].name")


async def test_log_probabilities(http: httpx.AsyncClient) -> None:
    body = await plain(http, input="hi", top_logprobs=2, include=["message.output_text.logprobs"])
    told = body["output"][0]["content"][0]["logprobs"]
    assert "".join(one["token"] for one in told) == "hello" and len(told[0]["top_logprobs"]) == 2
    events = await streamed(http, input="hi", top_logprobs=2)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"][0]["token"] for event in deltas] == list("hello")


STATE: dict[str, Any] = {
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "background": True,
    "prompt": {"id": "p"},
    "context_management": [{"type": "compaction"}],
    "truncation": "auto",
}


@pytest.mark.parametrize("name", STATE)
async def test_what_needs_stored_state_is_refused_by_name(http: httpx.AsyncClient, name: str) -> None:
    assert await refused(http, **{name: STATE[name]}) == ("unsupported_parameter", name)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": [WEATHER, {"type": "function", "name": "a b"}]}, "invalid_value", "tools[1].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp"}}, "unsupported_parameter", "tool_choice.type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_parameter", "input[0].type"),
        ({"input": [{"role": "king", "content": "a"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "unsupported_parameter",
         "input[0].content[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "invalid_value", "input[0]"),
        ({"input": [{"type": "function_call", "call_id": "x", "name": "a", "arguments": "["}]}, "invalid_value",
         "input[0]"),
        ({"input": 5}, "invalid_value", "input"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "invalid_value", "text.format.name"),
        ({"reasoning": {"mood": 1}}, "unsupported_parameter", "reasoning.mood"),
        ({"temperature": 9}, "invalid_value", "temperature"),
        ({"n": 2}, "unsupported_parameter", "n"),
    ],
)  # fmt: skip
async def test_refusals_name_what_was_sent(http: httpx.AsyncClient, body: Any, code: str, param: str) -> None:
    assert await refused(http, **body) == (code, param)


async def test_a_prompt_that_does_not_fit_is_the_input(http: httpx.AsyncClient) -> None:
    error = (await http.post(PATH, json={"input": "a" * 500})).json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_a_failure_in_a_stream_is_its_last_event(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.held = True
    wire = Wire(loop, {"input": "hi", "stream": True}, PATH)
    await submitted(loop)
    loop.say("a")
    await wire.heard(2)
    loop.fail_after = 0
    loop.release()
    await wire.task
    event = json.loads(wire.bodies[-1].partition(b"data: ")[2])
    assert EVENT.validate_python(event).type == "response.failed"
    assert event["response"]["status"] == "failed" and event["response"]["error"]["code"] == "server_error"
    assert "NaN" in event["response"]["error"]["message"] and event["response"]["output"][0]["type"] == "message"
    loop.held = False
    assert (await http.post(PATH, json={"input": "hi", "stream": True})).status_code == 500


def test_the_openai_client(base_url: str, loop: ScriptedLoop) -> None:
    client = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0)
    assert client.responses.create(model=MODEL, input="hi").output_text == "hello"
    with client.responses.stream(model=MODEL, input="hi") as stream:
        assert [event.delta for event in stream if event.type == "response.output_text.delta"] == list("hello")
        assert stream.get_final_response().output_text == "hello"
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
