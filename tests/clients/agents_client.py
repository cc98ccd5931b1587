"""openai-agents against $SCRIPTED_URL in its default mode, Responses: a loop with a tool, plain and streamed."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version

from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI

called: list[str] = []


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    called.append(city)
    return "sun"


async def main() -> None:
    client = AsyncOpenAI(base_url=f"{os.environ['SCRIPTED_URL']}/v1", api_key="none", max_retries=0)
    set_default_openai_client(client, use_for_tracing=False)
    set_tracing_disabled(True)
    agent = Agent(name="one", instructions="Be kind.", model=os.environ["MODEL"], tools=[get_weather])
    result = await Runner.run(agent, "How is the weather?")
    assert (result.final_output, called) == ("Hello from the script.", ["Rome"])
    streamed = Runner.run_streamed(agent, "How is the weather?")
    kinds = [event.type async for event in streamed.stream_events()]
    assert streamed.final_output == "Hello from the script." and "raw_response_event" in kinds
    again = await Runner.run(agent, [*result.to_input_list(), {"role": "user", "content": "And now?"}])
    assert again.final_output == "Hello from the script." and len(called) == 3
    print("openai-agents", version("openai-agents"), "Responses: tools, streams, a second turn")


if __name__ == "__main__":
    asyncio.run(main())
