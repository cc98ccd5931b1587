"""Tools over HTTP: what is refused, what the model is told, and what becomes of its answer, plain and streamed."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from baton.core.constraint import CALLS
from server.scripted import MODEL, ScriptedLoop

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
HERMES_TEMPLATE = "{{ tools }} {{ messages }} tool_calls <tool_call>"
LLAMA_TEMPLATE = '{{ tools }} tool_calls {"name": function name, "parameters": dictionary}'
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
USED = {"name": "weather", "arguments": '{"city": "Rome"}'}


@pytest.fixture
def loop(loop: ScriptedLoop) -> ScriptedLoop:
    loop.answer, loop.tokenizer.template, loop.context = CALL, HERMES_TEMPLATE, 2000
    return loop


def asked(**more: Any) -> dict[str, Any]:
    return {"messages": HI, "tools": [WEATHER, CLOCK], **more}


async def answer(http: httpx.AsyncClient, **more: Any) -> dict[str, Any]:
    response = await http.post(PATH, json=asked(**more))
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def refusal(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, str, str]:
    response = await http.post(PATH, json=body)
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


async def test_a_call_in_a_plain_answer(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    choice = await answer(http)
    message, (call,) = choice["message"], choice["message"]["tool_calls"]
    assert (choice["finish_reason"], message["content"], message["role"]) == ("tool_calls", None, "assistant")
    assert (call["type"], call["function"]) == ("function", USED)
    assert call["id"].startswith("call_") and set(call) == {"id", "type", "function"}
    assert loop.compiler is not None and loop.compiler.forms == [], "auto without strict tools is free"
    assert loop.tokenizer.tools[0] == WEATHER
    assert loop.tokenizer.tools[1]["function"]["parameters"] == {"type": "object", "properties": {}}


async def test_text_without_a_call_is_an_answer_as_ever(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.answer = "hello"
    choice = await answer(http)
    assert choice["message"] == {"role": "assistant", "content": "hello", "refusal": None}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [("Well. " + CALL, "Well.", 1), (CALL + "\n" + CALL, None, 2), (CALL[:20], CALL[:20], 0)],
)
async def test_text_and_calls(
    http: httpx.AsyncClient, loop: ScriptedLoop, text: str, content: str | None, calls: int
) -> None:
    loop.answer = text
    choice = await answer(http)
    sent = choice["message"].get("tool_calls", [])
    assert (choice["message"]["content"], len(sent)) == (content, calls)
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    assert len({call["id"] for call in sent}) == calls


async def test_a_call_that_is_cut_is_as_much_of_a_call(http: httpx.AsyncClient) -> None:
    choice = await answer(http, max_tokens=CALL.index("Rome") + 2, tool_choice="required")
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Ro'}


@pytest.mark.parametrize(("more", "names"), [({}, []), ({"tool_choice": NAMED}, ["weather"])])
async def test_a_forced_call_that_is_cut_early_shows_no_tags(
    http: httpx.AsyncClient, more: dict[str, Any], names: list[str]
) -> None:
    choice = await answer(http, max_tokens=20, **({"tool_choice": "required"} | more))
    assert choice["finish_reason"] == "length" and not choice["message"]["content"]
    assert [call["function"] for call in choice["message"].get("tool_calls", [])] == [
        {"name": name, "arguments": ""} for name in names
    ]


def added(calls: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """The function that a streamed answer calls, put together as clients do."""
    mine = [call["function"] for call in calls if call["index"] == number]
    assert all(set(function) == {"arguments"} for function in mine[1:])
    return {"name": mine[0]["name"], "arguments": "".join(function["arguments"] for function in mine)}


@pytest.mark.parametrize("text", ["hello", CALL, "Well. " + CALL, CALL + "\n" + CALL + "\nDone.", CALL[:-4]])
async def test_a_streamed_answer_is_the_plain_one(http: httpx.AsyncClient, loop: ScriptedLoop, text: str) -> None:
    loop.answer = text
    plain = await answer(http, n=2, logprobs=True)
    response = await http.post(PATH, json=asked(n=2, logprobs=True, stream=True))
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event[6:])["choices"][0] for event in events[:-2]]
    for index in (0, 1):
        mine = [chunk for chunk in chunks if chunk["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": None}
        assert [chunk["finish_reason"] for chunk in mine if chunk["finish_reason"]] == [plain["finish_reason"]]
        content = "".join(chunk["delta"].get("content") or "" for chunk in mine)
        calls = [call for chunk in mine for call in chunk["delta"].get("tool_calls", [])]
        told = [one for chunk in mine if chunk["logprobs"] for one in chunk["logprobs"]["content"]]
        assert (content or None) == plain["message"]["content"]
        wanted = [call["function"] for call in plain["message"].get("tool_calls", [])]
        assert all(chunk["delta"] for chunk in mine[:-1]) and mine[-1]["delta"] == {}
        assert [added(calls, number) for number in range(len(wanted))] == wanted
        assert {call["index"] for call in calls} == set(range(len(wanted)))
        assert told == plain["logprobs"]["content"] and len(told) == len(text)


@pytest.mark.parametrize(
    ("more", "forced", "several", "names"),
    [
        ({"tool_choice": "required"}, True, True, ["weather", "clock"]),
        ({"tool_choice": "required", "parallel_tool_calls": False}, True, False, ["weather", "clock"]),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, True, True, ["clock"]),
        ({"parallel_tool_calls": False}, False, False, ["weather", "clock"]),
        (
            {"tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]},
            False,
            True,
            ["weather"],
        ),
    ],
)
async def test_what_is_promised_is_enforced(
    http: httpx.AsyncClient, loop: ScriptedLoop, more: dict[str, Any], forced: bool, several: bool, names: list[str]
) -> None:
    await answer(http, **more)
    assert loop.compiler is not None
    ((form),) = loop.compiler.forms
    spec = json.loads(form.text)
    assert (form.kind, form.param) == (CALLS, "tools")
    assert (spec["forced"], spec["several"], [tool["name"] for tool in spec["tools"]]) == (forced, several, names)
    assert loop.queries[0].constraint is not None
    assert "strict" not in json.dumps(loop.tokenizer.tools)


LOOSE = {
    "type": "object",
    "properties": {"city": {"type": "string", "nullable": True, "format": "city"}, "not": {"type": "string"}},
    "propertyOrdering": ["city"],
    "required": ["city"],
}


async def test_a_tool_that_is_not_strict_does_without_what_no_grammar_knows(
    http: httpx.AsyncClient, loop: ScriptedLoop
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": LOOSE}}
    response = await http.post(PATH, json=asked(tools=[tool], tool_choice="required"))
    assert response.headers["x-baton-relaxed"] == "format, nullable, propertyOrdering"
    assert loop.compiler is not None
    (used,) = json.loads(loop.compiler.forms[0].text)["tools"]
    city = {"type": ["string", "null"]}
    assert used["parameters"] == {
        "type": "object",
        "properties": {"city": city, "not": {"type": "string"}},
        "required": ["city"],
    }
    assert loop.tokenizer.tools[0]["function"]["parameters"] == LOOSE, "the model is told all of it"


async def test_a_strict_tool_keeps_its_schema_and_a_free_answer_relaxes_nothing(
    http: httpx.AsyncClient, loop: ScriptedLoop
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": LOOSE, "strict": True}}
    response = await http.post(PATH, json=asked(tools=[tool], tool_choice="required"))
    assert "x-baton-relaxed" not in response.headers
    assert loop.compiler is not None
    assert json.loads(loop.compiler.forms[0].text)["tools"][0]["parameters"] == LOOSE
    del tool["function"]["strict"]  # type: ignore[attr-defined]
    assert "x-baton-relaxed" not in (await http.post(PATH, json=asked(tools=[tool]))).headers


async def test_none_offers_none(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    choice = await answer(http, tool_choice="none")
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
    assert loop.tokenizer.tools == []


async def test_the_other_way_of_writing_calls(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.tokenizer.template = LLAMA_TEMPLATE
    loop.answer = '{"name": "weather", "parameters": {"city": "Rome"}}'
    assert (await answer(http))["message"]["tool_calls"][0]["function"] == USED


ROUND: list[dict[str, Any]] = [
    *HI,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": USED}]},
    {"role": "tool", "tool_call_id": "c1", "content": "warm"},
]


async def test_the_conversation_goes_on_with_results(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    await answer(http, messages=ROUND)
    _, called, result = loop.tokenizer.messages
    assert called == {
        "role": "assistant",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
        ],
    }
    assert result == {"role": "tool", "content": "warm", "tool_call_id": "c1"}


def changed(at: int, **more: Any) -> list[dict[str, Any]]:
    return [{**message, **more} if i == at else message for i, message in enumerate(ROUND)]


def function(**more: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **more}}]


def used(arguments: str) -> list[dict[str, Any]]:
    return [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}]


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"tools": [{"type": "function"}]}, None, "tools[0].function"),
        ({"tools": [{"type": "magic", "function": {"name": "f"}}]}, "invalid_value", "tools[0].type"),
        ({"tools": function(name="a b")}, "invalid_value", "tools[0].function.name"),
        ({"tools": function(name="a" * 65)}, "invalid_value", "tools[0].function.name"),
        ({"tools": function() * 2}, "invalid_value", "tools[1].function.name"),
        ({"tools": function(parameters={"type": "string"})}, "invalid_value", "tools[0].function.parameters"),
        ({"tools": function(parameters=[])}, "invalid_value", "tools[0].function.parameters"),
        ({"tools": function(returns={})}, "unsupported_parameter", "tools[0].function.returns"),
        (
            {"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]},
            "invalid_value",
            "tools",
        ),
        ({"tools": []}, "x", ""),
        ({"tools": [], "tool_choice": "required"}, "invalid_value", "tool_choice"),
        ({"tool_choice": "some"}, "invalid_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "invalid_value", "tool_choice"),
        ({"tool_choice": "required", "min_tokens": 3}, "unsupported_parameter", "min_tokens"),
        ({"tool_choice": "required", "ignore_eos": True}, "unsupported_parameter", "ignore_eos"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        (
            {"messages": changed(1, tool_calls=used("{"))},
            "invalid_value",
            "messages[1].tool_calls[0].function.arguments",
        ),
        (
            {"messages": changed(1, tool_calls=used("[]"))},
            "invalid_value",
            "messages[1].tool_calls[0].function.arguments",
        ),
        ({"messages": changed(1, tool_calls=[])}, "invalid_value", "messages[1].content"),
        ({"messages": changed(2, tool_call_id="c2")}, "invalid_value", "messages[2].tool_call_id"),
        ({"messages": changed(0, tool_call_id="c1")}, "unsupported_parameter", "messages[0].tool_call_id"),
        ({"messages": changed(0, tool_calls=used("{}"))}, "unsupported_parameter", "messages[0].tool_calls"),
    ],
)
async def test_what_is_refused(
    http: httpx.AsyncClient, loop: ScriptedLoop, more: dict[str, Any], code: str | None, param: str
) -> None:
    if code == "x":
        assert (await answer(http, **more))["finish_reason"] == "stop", "an empty list asks for nothing"
        return
    assert await refusal(http, asked(**more)) == (400, code, param)
    assert loop.queries == []


@pytest.mark.parametrize("template", ["{{ messages }}", "{{ tools }} tool_calls <my_call>"])
async def test_models_that_are_not_known_to_call_tools_say_so(
    http: httpx.AsyncClient, loop: ScriptedLoop, template: str
) -> None:
    loop.tokenizer.template = template
    assert await refusal(http, asked()) == (400, "unsupported_parameter", "tools")


async def test_a_template_without_tools_takes_no_results(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.tokenizer.template = "{{ messages }}"
    where = "messages[1].tool_calls"
    assert await refusal(http, {"messages": ROUND}) == (400, "unsupported_parameter", where)


@pytest.fixture
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=20)


def test_the_official_client_reads_calls(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER], tool_choice="required")  # type: ignore
    call = made.choices[0].message.tool_calls[0]
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    messages = [*HI, made.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "warm"}]
    again = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])  # type: ignore
    assert again.choices[0].finish_reason == "tool_calls"


def test_the_official_clients_accumulator_reads_streamed_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=[WEATHER, CLOCK]) as stream:  # type: ignore
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds
    assert (message.tool_calls[0].function.name, message.content) == ("weather", None)
