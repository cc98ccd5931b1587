"""smolagents against $AGENTS_URL: agents that call tools and agents that write code, plain and streamed."""

from __future__ import annotations

import os
from importlib.metadata import version
from itertools import product

from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

called: list[str] = []


@tool
def get_weather(city: str) -> str:
    """The weather of a city.

    Args:
        city: Which one.
    """
    called.append(city)
    return "sun"


def main() -> None:
    model = OpenAIModel(
        os.environ["MODEL"],
        api_base=f"{os.environ['AGENTS_URL']}/v1",
        api_key="none",
        client_kwargs={"max_retries": 0},
    )
    for at, (kind, stream) in enumerate(product((ToolCallingAgent, CodeAgent), (False, True))):
        agent = kind(tools=[get_weather], model=model, max_steps=3, verbosity_level=0, stream_outputs=stream)
        assert agent.run("How is the weather?") == "sun in Rome", (kind, stream)
        assert len(called) == at + 1 and called[at] == "Rome"
        assert agent.monitor.get_total_token_counts().output_tokens > 0
    print("\nsmolagents", version("smolagents"), "chat: tool calls and code, plain and streamed")


if __name__ == "__main__":
    main()
