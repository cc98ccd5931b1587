"""openai for Python against $SCRIPTED_URL, Responses: plain, streams, a loop with a tool, error classes."""

from __future__ import annotations

import json
import os
from typing import Any

import openai

MODEL = os.environ["MODEL"]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "name": "get_weather", "description": "The weather.", "parameters": SCHEMA}


def main() -> None:
    client = openai.OpenAI(base_url=f"{os.environ['SCRIPTED_URL']}/v1", api_key="none", max_retries=0)
    response = client.responses.create(model=MODEL, input="hi", instructions="Be kind.")
    assert response.output_text == "Hello from the script." and response.status == "completed"
    with client.responses.stream(model=MODEL, input="hi") as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == stream.get_final_response().output_text == "Hello from the script."
    history: list[Any] = [{"role": "user", "content": "How is the weather?"}]
    called = client.responses.create(model=MODEL, input=history, tools=[WEATHER])
    call = called.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Rome"}
    history += [*called.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}]
    answer = client.responses.create(model=MODEL, input=history, tools=[WEATHER])
    assert answer.output_text == "Hello from the script."
    assert client.responses.create(model=MODEL, input="hi", max_output_tokens=2).status == "incomplete"
    for wrong, error in (
        ({"previous_response_id": "resp_1"}, openai.BadRequestError),
        ({"tools": [{"type": "web_search"}]}, openai.BadRequestError),
        ({"model": "other"}, openai.NotFoundError),
    ):
        try:
            client.responses.create(**{"model": MODEL, "input": "hi", **wrong})
        except error:
            continue
        raise AssertionError(f"{wrong} was taken")
    print("openai", openai.__version__, "Responses: plain, streams, tools, errors")


if __name__ == "__main__":
    main()
