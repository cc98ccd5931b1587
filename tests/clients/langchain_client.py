"""langchain-openai against $BASE_URL: invoke, stream, batch, bound tools, structured output."""

from __future__ import annotations

import os
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Verdict(BaseModel):
    """Whether a sum is right."""

    right: bool
    digit: Literal[1, 2, 3]


@tool
def add(left: int, right: int) -> int:
    """Adds two numbers."""
    return left + right


def main() -> None:
    chat = ChatOpenAI(
        model=os.environ["MODEL"],
        base_url=f"{os.environ['BASE_URL']}/v1",
        api_key="none",  # type: ignore[arg-type]
        temperature=0,
        max_retries=0,
        max_tokens=200,
    )
    whole = chat.invoke("What is 17 + 25?").content
    assert "42" in str(whole)
    assert "".join(str(piece.content) for piece in chat.stream("What is 17 + 25?")) == whole
    assert len(chat.batch(["What is 1 + 1?", "What is 2 + 2?", "What is 3 + 3?"])) == 3
    verdict = chat.with_structured_output(Verdict, method="json_schema").invoke("What is 17 + 25?")
    assert isinstance(verdict, Verdict)
    by_call = chat.with_structured_output(Verdict, method="function_calling").invoke("What is 17 + 25?")
    assert isinstance(by_call, Verdict)
    assert chat.bind_tools([add]).invoke("What is 17 + 25?") is not None
    print("langchain-openai: invoke, stream, batch, structured output, tools")


if __name__ == "__main__":
    main()
