"""litellm against $BASE_URL: plain, stream, tools, its exception classes."""

from __future__ import annotations

import json
import os
from typing import Any

import litellm

litellm.telemetry = False
COMMON: dict[str, Any] = {
    "model": f"openai/{os.environ['MODEL']}",
    "api_base": f"{os.environ['BASE_URL']}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "What is 17 + 25?"}],
    "temperature": 0,
    "num_retries": 0,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"left": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["left"],
            "additionalProperties": False,
        },
    },
}


def main() -> None:
    whole = litellm.completion(**COMMON).choices[0].message.content
    assert "42" in whole
    pieces = litellm.completion(**COMMON, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
    called = litellm.completion(**COMMON, tools=[TOOL], tool_choice="required").choices[0].message.tool_calls
    assert isinstance(json.loads(called[0].function.arguments)["left"], int)
    try:
        litellm.completion(**{**COMMON, "temperature": 3})
    except litellm.BadRequestError:
        pass
    else:
        raise AssertionError("a bad temperature was taken")
    try:
        litellm.completion(**{**COMMON, "max_tokens": 10**6})
    except litellm.BadRequestError:  # ContextWindowExceededError is one
        pass
    else:
        raise AssertionError("too many tokens were taken")
    print("litellm: plain, stream, tools, errors")


if __name__ == "__main__":
    main()
