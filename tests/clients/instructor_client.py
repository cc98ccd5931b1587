"""instructor against $BASE_URL: results of a type by Responses and by Messages; forced, so any model will do."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any, Literal

import anthropic
import instructor
import openai
from pydantic import BaseModel


class Verdict(BaseModel):
    """Whether a sum is right."""

    right: bool
    digit: Literal[1, 2, 3]


def main() -> None:
    url, model = os.environ["BASE_URL"], os.environ["MODEL"]
    messages: Any = [{"role": "user", "content": "Is 17 + 25 = 42?"}]
    by_openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    responses = instructor.from_openai(by_openai, mode=instructor.Mode.RESPONSES_TOOLS)
    verdict = responses.create(model=model, messages=messages, response_model=Verdict, max_retries=0)
    assert isinstance(verdict, Verdict)
    by_anthropic = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
    tools = instructor.from_anthropic(by_anthropic, mode=instructor.Mode.ANTHROPIC_TOOLS)
    verdict = tools.create(model=model, messages=messages, max_tokens=200, response_model=Verdict, max_retries=0)
    assert isinstance(verdict, Verdict)
    print("instructor", version("instructor"), "Responses and Messages: typed output")


if __name__ == "__main__":
    main()
