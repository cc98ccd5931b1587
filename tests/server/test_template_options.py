"""What a request hands to the chat template, over HTTP: honoured if the template knows it, else refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.scripted import ScriptedLoop

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
BEGUN = [*HI, {"role": "assistant", "content": "Well,"}]
DOCUMENTS = [{"title": "t", "text": "x"}]


@pytest.fixture
def loop() -> Iterator[ScriptedLoop]:
    loop = ScriptedLoop()
    loop.tokenizer.template = "{{ messages }} {{ enable_thinking }} {{ documents }}"
    loop.context = 200
    yield loop
    loop.close()


async def asked(http: httpx.AsyncClient, **more: Any) -> None:
    response = await http.post(PATH, json={"messages": HI, **more})
    assert response.status_code == 200, response.text


async def refusal(http: httpx.AsyncClient, **more: Any) -> tuple[int, str, str]:
    response = await http.post(PATH, json={"messages": HI, **more})
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


async def test_variables_reach_the_template(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    await asked(http, chat_template_kwargs={"enable_thinking": False}, documents=DOCUMENTS)
    options = loop.tokenizer.options
    assert (options.variables, options.documents) == ({"enable_thinking": False}, DOCUMENTS)
    assert options.generation_prompt and not options.continue_final


async def test_a_prompt_may_end_elsewhere(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    await asked(http, add_generation_prompt=False)
    assert not loop.tokenizer.options.generation_prompt
    await asked(http, messages=BEGUN, continue_final_message=True, add_generation_prompt=False)
    assert loop.tokenizer.options.continue_final


@pytest.mark.parametrize(("effort", "on"), [("none", False), ("low", True), ("high", True)])
async def test_the_effort_is_a_switch_where_the_template_has_one(
    http: httpx.AsyncClient, loop: ScriptedLoop, effort: str, on: bool
) -> None:
    await asked(http, reasoning_effort=effort)
    assert loop.tokenizer.options.variables == {"enable_thinking": on}


async def test_the_effort_goes_by_its_name_where_the_template_knows_it(
    http: httpx.AsyncClient, loop: ScriptedLoop
) -> None:
    loop.tokenizer.template = "{{ messages }} {{ reasoning_effort }} {{ enable_thinking }}"
    await asked(http, reasoning_effort="low")
    assert loop.tokenizer.options.variables == {"reasoning_effort": "low"}


async def test_no_effort_is_what_a_model_without_reasoning_makes(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.tokenizer.template = "{{ messages }}"
    await asked(http, reasoning_effort="none")
    loop.tokenizer.template = "{{ messages }} </think>"
    assert await refusal(http, reasoning_effort="none") == (400, "unsupported_parameter", "reasoning_effort")


async def test_what_an_assistant_thought_is_handed_on(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    for name in ("reasoning_content", "reasoning"):
        turns = [*HI, {"role": "assistant", "content": "A", name: "hm"}, *HI]
        await asked(http, messages=turns)
        assert loop.tokenizer.messages[1] == {"role": "assistant", "content": "A", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"chat_template_kwargs": {"magic": 1}}, "unsupported_parameter", "chat_template_kwargs.magic"),
        ({"chat_template_kwargs": {"messages": []}}, "invalid_value", "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"bos_token": "x"}}, "invalid_value", "chat_template_kwargs.bos_token"),
        ({"chat_template_kwargs": [1]}, "invalid_value", "chat_template_kwargs"),
        ({"reasoning_effort": "some"}, "invalid_value", "reasoning_effort"),
        ({"chat_template": "{{ 1 }}"}, "unsupported_parameter", "chat_template"),
        ({"continue_final_message": True}, "invalid_value", "continue_final_message"),
        (
            {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True},
            "invalid_value",
            "continue_final_message",
        ),
    ],
)
async def test_what_is_refused(
    http: httpx.AsyncClient, loop: ScriptedLoop, more: dict[str, Any], code: str, param: str
) -> None:
    assert await refusal(http, **more) == (400, code, param)
    assert loop.queries == []


async def test_documents_are_for_templates_that_quote_them(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.tokenizer.template = "{{ messages }}"
    assert await refusal(http, documents=DOCUMENTS) == (400, "unsupported_parameter", "documents")
    await asked(http, documents=[])


async def test_tokenize_writes_the_same_prompt(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    body = {"messages": BEGUN, "continue_final_message": True, "chat_template_kwargs": {"enable_thinking": False}}
    assert (await http.post("/tokenize", json=body)).status_code == 200
    assert loop.tokenizer.options.continue_final and loop.tokenizer.options.variables == {"enable_thinking": False}
    wrong = await http.post("/tokenize", json={"prompt": "x", "continue_final_message": True})
    assert wrong.json()["error"]["param"] == "continue_final_message"
