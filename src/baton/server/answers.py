"""The bodies of completions and chats, plain and streamed, as the API's description shows them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from baton.core.events import Usage
from baton.parsing.deltas import Call


class BatonUsage(BaseModel):
    """What the engine spent on a request.

    Slots and preemptions are summed over the choices. Seconds are the longest, since choices run side by side.
    """

    useful_slots: int
    idle_slots: int
    idle_ratio: float
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    preemptions: int


class PromptTokensDetails(BaseModel):
    """`cached_tokens`: prompt tokens that were not computed, because an earlier text began with them."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """`reasoning_tokens`: from the token that completes the opening tag to the one that completes the closing tag."""

    reasoning_tokens: int


class UsageBody(BaseModel):
    """The tokens of a request. `completion_tokens_details` is there only for a model that reasons."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None
    baton: BatonUsage | None = None


class CompletionLogprobs(BaseModel):
    """One of each for every token. A prompt's first token has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One text that continues a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str


class Completion(BaseModel):
    """The result of `/v1/completions`."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody


class CalledFunction(BaseModel):
    """The function that a tool call names; `arguments` is a JSON object, as text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """One call of a tool."""

    id: str
    type: str = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """`content` is null if there are only tool calls. Without calls there is no `tool_calls`.

    `reasoning_content` is what the model thought before the answer, and is left out if it did not think. `reasoning` is
    the same text.
    """

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was drawn, and the likeliest tokens at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The log-probabilities of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """One message that continues a conversation."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    """The result of `/v1/chat/completions`."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageBody


class CompletionChunk(BaseModel):
    """One event of a streamed completion. The usage, if asked for, comes in a last event without choices."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: UsageBody | None = None


class ChunkChoice(BaseModel):
    """The new part of one text in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class ChatChunk(BaseModel):
    """One event of a streamed chat. The usage, if asked for, comes in a last event without choices."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: UsageBody | None = None


class ChatChunkChoice(BaseModel):
    """The new part of one message in a stream."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class Delta(BaseModel):
    """The new part of a message; `role` comes first and only once."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class FunctionDelta(BaseModel):
    """A part of a function call."""

    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """`id`, `type` and the name come first and only once; then come the arguments, piece by piece."""

    index: int
    id: str | None = None
    type: str | None = None
    function: FunctionDelta


def usage_body(prompts: Iterable[Sequence[Usage]], *, baton: bool, reasoning: int | None = None) -> UsageBody:
    """Usage of a request, from the usages of each prompt's choices. Prompts are counted once; choices are summed.

    `reasoning`: tokens of all choices' reasoning; None for a model that does not reason.

    Of a prompt with several choices, the part that no choice had to compute counts as cached.
    """
    of_prompts = list(prompts)
    each = [usage for choices in of_prompts for usage in choices]
    asked = sum(choices[0].prompt_tokens for choices in of_prompts)
    generated = sum(usage.generated_tokens for usage in each)
    cached = sum(min(usage.cached_tokens for usage in choices) for choices in of_prompts)
    return UsageBody(
        prompt_tokens=asked,
        completion_tokens=generated,
        total_tokens=asked + generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=None if reasoning is None else CompletionTokensDetails(reasoning_tokens=reasoning),
        baton=_baton(each) if baton else None,
    )


def tool_call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def dump_usage(usage: UsageBody) -> dict[str, object]:
    return usage.model_dump(exclude_none=True)


def _baton(usages: list[Usage]) -> BatonUsage:
    useful = sum(usage.useful_slots for usage in usages)
    idle = sum(usage.idle_slots for usage in usages)
    return BatonUsage(
        useful_slots=useful,
        idle_slots=idle,
        idle_ratio=idle / (useful + idle) if useful + idle else 0.0,
        queue_seconds=max(usage.queue_seconds for usage in usages),
        prefill_seconds=max(usage.prefill_seconds for usage in usages),
        decode_seconds=max(usage.decode_seconds for usage in usages),
        preemptions=sum(usage.preemptions for usage in usages),
    )
