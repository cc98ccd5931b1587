"""The bodies of Responses and Messages, as the API's description shows them too: what it says of their blocks."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class ResponseObject(BaseModel):
    """As the `openai` package describes it. `output`: items of type message, reasoning or function_call."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    usage: dict[str, Any] | None


class ResponseEvent(BaseModel):
    """One event of a streamed response, as the `openai` package describes them by their types."""

    type: str
    sequence_number: int


class MessageObject(BaseModel):
    """As the `anthropic` package describes it. `content`: blocks of type text, thinking or tool_use."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: dict[str, Any]


class MessageEvent(BaseModel):
    """One event of a streamed message, as the `anthropic` package describes them by their types."""

    type: str


class TokenCount(BaseModel):
    """The number of tokens of a conversation."""

    input_tokens: int


class AnthropicErrorDetail(BaseModel):
    """What went wrong, in Anthropic's form."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """The body of errors in Anthropic's form."""

    type: str = "error"
    error: AnthropicErrorDetail
