"""AutoGen against $SCRIPTED_URL: its client plain and streamed, and an agent with a tool."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.messages import ModelClientStreamingChunkEvent
from autogen_core.models import CreateResult, ModelInfo, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

SAID = "Hello from the script."
called: list[str] = []


async def get_weather(city: str) -> str:
    """The weather of a city."""
    called.append(city)
    return "sun"


async def main() -> None:
    info = ModelInfo(vision=False, function_calling=True, json_output=True, family="unknown", structured_output=True)
    client = OpenAIChatCompletionClient(
        model=os.environ["MODEL"],
        base_url=f"{os.environ['SCRIPTED_URL']}/v1",
        api_key="none",
        max_retries=0,
        model_info=info,
    )
    asked = [UserMessage(content="hi", source="user")]
    plain = await client.create(asked)
    assert plain.content == SAID and plain.usage.completion_tokens > 0
    *pieces, whole = [piece async for piece in client.create_stream(asked, include_usage=True)]
    assert isinstance(whole, CreateResult) and whole.content == SAID and whole.usage == plain.usage
    # What the model thought comes first, between tags of AutoGen's own.
    assert "".join(map(str, pieces)) == f"<think>{whole.thought}</think>{SAID}"

    agent = AssistantAgent("one", client, tools=[get_weather], reflect_on_tool_use=True)
    result = await agent.run(task="How is the weather?")
    assert (result.messages[-1].to_text(), called) == (SAID, ["Rome"])
    streaming = AssistantAgent("two", client, tools=[get_weather], reflect_on_tool_use=True, model_client_stream=True)
    told = [one async for one in streaming.run_stream(task="How is the weather?")]
    assert isinstance(told[-1], TaskResult) and told[-1].messages[-1].to_text() == SAID and len(called) == 2
    assert any(isinstance(one, ModelClientStreamingChunkEvent) for one in told)
    await client.close()
    print("autogen-ext", version("autogen-ext"), "chat: plain, streams, an agent with a tool, plain and streamed")


if __name__ == "__main__":
    asyncio.run(main())
