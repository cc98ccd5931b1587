"""LiteLLM's proxy in front of $SCRIPTED_URL, asked by the openai package: plain, streamed, a loop with a tool."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from typing import Any

from openai import OpenAI

SAID = "Hello from the script."
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def main() -> None:
    client = OpenAI(base_url=f"{os.environ['PROXY_URL']}/v1", api_key="sk-proxy", max_retries=0)
    asked: dict[str, Any] = {"model": "ours", "messages": [{"role": "user", "content": "hi"}]}
    plain = client.chat.completions.create(**asked)
    assert plain.choices[0].message.content == SAID and plain.usage is not None and plain.usage.completion_tokens > 0
    assert plain.choices[0].message.model_extra["reasoning_content"] == "A greeting will do."
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == SAID
    assert pieces[-1].usage.completion_tokens == plain.usage.completion_tokens

    calling = client.chat.completions.create(**asked, tools=[TOOL]).choices[0].message
    (call,) = calling.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Rome"})
    turns = [*asked["messages"], calling.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "sun"}]
    assert client.chat.completions.create(model="ours", messages=turns, tools=[TOOL]).choices[0].message.content == SAID
    arguments = [
        part.function.arguments or ""
        for piece in client.chat.completions.create(**asked, tools=[TOOL], stream=True)
        for choice in piece.choices
        for part in choice.delta.tool_calls or []
    ]
    assert json.loads("".join(arguments)) == {"city": "Rome"}
    print("litellm's proxy", version("litellm"), "chat: plain, streams, a loop with a tool, plain and streamed")


if __name__ == "__main__":
    main()
