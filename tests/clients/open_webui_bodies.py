"""What Open WebUI 0.12 posts to an OpenAI connection, as its backend builds it, against $SCRIPTED_URL.

The bodies were written down from its routers `openai` and `tasks` and what they call; nothing of it is installed. Each
has the shape that its backend makes of the same setting in its pages.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any

URL, MODEL = f"{os.environ['SCRIPTED_URL']}/v1", os.environ["MODEL"]
SAID, THOUGHT = "Hello from the script.", "A greeting will do."
SYSTEM, ASKED = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "How is the weather?"}
# What its advanced parameters set, behind the casts of `apply_model_params_to_body_openai`.
CONTROLS = {
    "temperature": 0.8,
    "top_p": 0.9,
    "min_p": 0.05,
    "top_k": 40,
    "max_tokens": 200,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "seed": 7,
    "stop": ["###"],
    "logit_bias": {"5": -100},
    "response_format": {"type": "text"},
}
PROPERTIES = {"city": {"type": "string", "description": "Which one."}}
SPEC = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {"type": "object", "properties": PROPERTIES, "required": ["city"]},
}


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error
    if body is None or not body.get("stream"):
        return json.loads(text)
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def chat(messages: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
    """A turn of a chat, which is streamed. Returns the deltas."""
    options = {"stream_options": {"include_usage": True}}
    chunks = ask("/chat/completions", {"stream": True, "model": MODEL, "messages": messages, **options, **more})
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    return [choice["delta"] for chunk in chunks for choice in chunk["choices"]]


def joined(deltas: list[dict[str, Any]], name: str) -> str:
    return "".join(delta.get(name) or "" for delta in deltas)


def task(**more: Any) -> str:
    """A title, tags or the next questions: nobody waits for them token by token."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "### Task: name it."}], "stream": False, **more}
    message = ask("/chat/completions", body)["choices"][0]["message"]
    return str(message["content"])


def with_a_tool() -> None:
    tools = {"tools": [{"type": "function", "function": SPEC}]}
    parts = [part for delta in chat([SYSTEM, ASKED], **tools) for part in delta.get("tool_calls") or []]
    name, identity = parts[0]["function"]["name"], parts[0]["id"]
    arguments = "".join(part["function"].get("arguments") or "" for part in parts)
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Rome"})
    called = {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
    turn = {"role": "assistant", "content": "", "tool_calls": [called]}
    result = {"role": "tool", "tool_call_id": identity, "content": "sun"}
    assert joined(chat([SYSTEM, ASKED, turn, result], **tools), "content") == SAID
    thought = {**turn, "reasoning_content": THOUGHT}
    assert joined(chat([SYSTEM, ASKED, thought, result], **tools), "content") == SAID


def responses() -> None:
    """A connection whose API type is Responses: what its `convert_to_responses_payload` makes of the same chats."""
    parts = [{"type": "input_text", "text": ASKED["content"]}]
    turn: dict[str, Any] = {"type": "message", "role": "user", "content": parts}
    body = {"stream": True, "model": MODEL, "input": [turn], "instructions": "Be kind.", "max_output_tokens": 200}
    events = ask("/responses", {**body, "temperature": 0.8, "top_p": 0.9, "seed": 7})
    assert "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta") == SAID
    tools = {"tools": [{"type": "function", **SPEC, "strict": False}]}
    events = ask("/responses", {**body, **tools})
    (call,) = [item for item in events[-1]["response"]["output"] if item["type"] == "function_call"]
    kept = {name: call[name] for name in ("type", "call_id", "name", "arguments")}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sun"}
    events = ask("/responses", {**body, **tools, "input": [turn, kept, result]})
    assert events[-1]["response"]["output"][-1]["content"][0]["text"] == SAID


def main() -> None:
    assert [model["id"] for model in ask("/models")["data"]] == [MODEL]
    deltas = chat([SYSTEM, {"role": "user", "content": "hi"}])
    assert (joined(deltas, "content"), joined(deltas, "reasoning_content")) == (SAID, THOUGHT)
    assert joined(chat([SYSTEM, {"role": "user", "content": "hi"}], **CONTROLS), "content") == SAID
    assert joined(chat([{"role": "user", "content": [{"type": "text", "text": "hi"}]}]), "content") == SAID
    going_on = {"continue_final_message": True, "add_generation_prompt": False}
    chat([SYSTEM, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello"}], **going_on)
    assert task() == task(max_tokens=1000) == SAID
    with_a_tool()
    responses()
    print("Open WebUI 0.12's bodies: chats, parameters, going on, tasks, native tools; Responses; the list of models")


if __name__ == "__main__":
    main()
