"""openai for Python against $BASE_URL: plain, streams, raw responses, errors, abort, tools, structured output."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from typing import Any, Literal

import openai
from pydantic import BaseModel

BASE, MODEL = os.environ["BASE_URL"], os.environ["MODEL"]
CLIENT = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0, timeout=60)
SUM: list[Any] = [{"role": "user", "content": "What is 17 + 25?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}


class Sum(BaseModel):
    left: Literal[17, 18]
    right: int
    carry: bool


def main() -> None:
    checks = [plain, stream, raw, errors, abort, tools, structured]
    for check in checks:
        check()
        print("passed:", check.__name__)
    print(f"openai {openai.__version__}: {len(checks)} checks")


def plain() -> None:
    answer = CLIENT.chat.completions.create(model=MODEL, messages=SUM, temperature=0)
    assert "42" in str(answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"
    assert CLIENT.models.list().data[0].id == MODEL
    several = CLIENT.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=3, logprobs=2, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage is not None and several.usage.completion_tokens <= 12


def stream() -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": SUM, "temperature": 0}
    whole = CLIENT.chat.completions.create(**asked).choices[0].message.content
    chunks = list(CLIENT.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage is not None and not chunks[-1].choices
    with CLIENT.chat.completions.stream(**asked) as events:
        assert events.get_final_completion().choices[0].message.content == whole


def raw() -> None:
    response = CLIENT.chat.completions.with_raw_response.create(model=MODEL, messages=SUM, max_tokens=1)
    assert response.headers["x-request-id"] and response.parse().choices[0].finish_reason == "length"


def errors() -> None:
    def raised(kind: type[openai.APIStatusError], **fields: Any) -> openai.APIStatusError:
        try:
            CLIENT.chat.completions.create(**{"model": MODEL, "messages": SUM, **fields})
        except kind as error:
            return error
        raise AssertionError(f"no {kind.__name__} for {fields}")

    assert raised(openai.BadRequestError, temperature=3).param == "temperature"
    assert raised(openai.BadRequestError, extra_body={"nonsense": 1}).code == "unsupported_parameter"
    assert raised(openai.NotFoundError, model="gpt").code == "model_not_found"
    assert raised(openai.BadRequestError, max_tokens=10**6).code == "context_length_exceeded"


def abort() -> None:
    async def run() -> None:
        client = openai.AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
        stream = await client.completions.create(
            model=MODEL, prompt="Once", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        async for _ in stream:
            break
        await stream.close()
        await client.close()

    asyncio.run(run())
    end = time.monotonic() + 5
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{BASE}/load") as answer:
            if json.load(answer)["running"] == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the query still runs after its client went away")


def tools() -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": SUM, "tools": [TOOL], "temperature": 0, "seed": 1}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = CLIENT.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False)
        message = answer.choices[0].message
        (call,) = message.tool_calls or []
        assert answer.choices[0].finish_reason == "tool_calls" and call.type == "function"
        assert set(json.loads(call.function.arguments)) == {"city", "unit"}
    pieces = CLIENT.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False, stream=True)
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    parts = [part for delta in deltas for part in delta.tool_calls or []]
    assert parts[0].id and parts[0].function and parts[0].function.name == "get_weather"
    assert "".join((part.function and part.function.arguments) or "" for part in parts) == call.function.arguments
    later = [*SUM, message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    again = CLIENT.chat.completions.create(model=MODEL, messages=later, tools=[TOOL], max_tokens=8)
    assert again.choices[0].finish_reason


def structured() -> None:
    answer = CLIENT.chat.completions.parse(model=MODEL, messages=SUM, response_format=Sum, max_tokens=60)
    assert answer.choices[0].message.parsed is not None and answer.choices[0].message.parsed.left in (17, 18)
    text = CLIENT.chat.completions.create(
        model=MODEL, messages=SUM, response_format={"type": "json_object"}, max_tokens=200, temperature=0
    )
    if text.choices[0].finish_reason == "stop":
        json.loads(str(text.choices[0].message.content))


if __name__ == "__main__":
    main()
