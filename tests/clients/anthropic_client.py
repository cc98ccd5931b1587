"""anthropic against $SCRIPTED_URL: plain, streamed, a loop with a tool, thinking, counting, error classes."""

from __future__ import annotations

import os
from typing import Any

import anthropic

MODEL = os.environ["MODEL"]
HI: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"name": "get_weather", "description": "The weather of a city.", "input_schema": SCHEMA}


def main() -> None:
    client = anthropic.Anthropic(base_url=os.environ["SCRIPTED_URL"], api_key="none", max_retries=0)
    message = client.messages.create(model=MODEL, max_tokens=100, messages=HI, system="Be kind.")
    assert [block.type for block in message.content] == ["thinking", "text"], message
    assert message.content[1].text == "Hello from the script." and message.stop_reason == "end_turn"
    with client.messages.stream(model=MODEL, max_tokens=100, messages=HI) as stream:
        assert "".join(stream.text_stream) == "Hello from the script."
        assert stream.get_final_message().usage.output_tokens == message.usage.output_tokens
    looped(client)
    stopped = client.messages.create(model=MODEL, max_tokens=100, messages=HI, stop_sequences=["from"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "from")
    assert client.messages.create(model=MODEL, max_tokens=2, messages=HI).stop_reason == "max_tokens"
    assert client.messages.count_tokens(model=MODEL, messages=HI).input_tokens == message.usage.input_tokens
    for wrong, error in ({"max_tokens": 0}, anthropic.BadRequestError), ({"model": "other"}, anthropic.NotFoundError):
        try:
            client.messages.create(**{"model": MODEL, "max_tokens": 9, "messages": HI, **wrong})
        except error:
            continue
        raise AssertionError(f"{wrong} was taken")
    print("anthropic", anthropic.__version__, "plain, streamed, tools, thinking, stop_sequences, count_tokens, errors")


def looped(client: anthropic.Anthropic) -> None:
    """Calls the tool, plain and streamed, and returns its result."""
    asked: Any = {"model": MODEL, "max_tokens": 100, "tools": [WEATHER], "messages": HI}
    called = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_message().content[-1].input == {"city": "Rome"}
    call = called.content[-1]
    assert called.stop_reason == "tool_use" and (call.name, call.input) == ("get_weather", {"city": "Rome"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sun"}
    history = [*HI, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    answer = client.messages.create(**{**asked, "messages": history})
    assert answer.content[-1].text == "Hello from the script."


if __name__ == "__main__":
    main()
