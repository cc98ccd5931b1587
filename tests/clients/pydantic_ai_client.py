"""pydantic-ai by Responses and by Messages: a tool against $SCRIPTED_URL, a result of a type against $BASE_URL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from importlib.metadata import version
from typing import Literal

from anthropic import AsyncAnthropic
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider


class Verdict(BaseModel):
    """Whether a sum is right."""

    right: bool
    digit: Literal[1, 2, 3]


async def loop(model: Model) -> None:
    called: list[str] = []
    agent = Agent(model, system_prompt="Be kind.")

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        called.append(city)
        return "sun"

    assert (await agent.run("How is the weather?")).output == "Hello from the script." and called == ["Rome"]
    async with Agent(model).run_stream("hi") as result:
        assert await result.get_output() == "Hello from the script."


def models(url: str) -> Iterator[Model]:
    name = os.environ["MODEL"]
    yield OpenAIResponsesModel(name, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))
    client = AsyncAnthropic(base_url=url, api_key="none", max_retries=0)
    yield AnthropicModel(name, provider=AnthropicProvider(anthropic_client=client))


async def main() -> None:
    for model in models(os.environ["SCRIPTED_URL"]):
        await loop(model)
    for model in models(os.environ["BASE_URL"]):
        typed = await Agent(model, output_type=Verdict).run("Is 17 + 25 = 42?")
        assert isinstance(typed.output, Verdict)
    print("pydantic-ai", version("pydantic-ai-slim"), "Responses and Messages: tools, streams, typed output")


if __name__ == "__main__":
    asyncio.run(main())
