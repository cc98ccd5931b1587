"""The bodies of plain answers, as the API's description shows them too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, Field

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


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "baton"
    max_model_len: int
    sampling_defaults: dict[str, float] = Field(
        default_factory=dict, description="Sampling of requests that name nothing else, as the model's author set it."
    )


class ModelList(BaseModel):
    """The models that are served."""

    object: str = "list"
    data: list[ModelCard]


class Tokens(BaseModel):
    """The token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]


class Prompt(BaseModel):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(BaseModel):
    """`special_tokens`: ids by name. `chat_template`: its source, null if the model has none."""

    tokenizer_class: str
    vocab_size: int
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    special_tokens: dict[str, int]
    chat_template: str | None


class Status(BaseModel):
    """The server's state, in one word."""

    status: str


class Version(BaseModel):
    """The version of baton."""

    version: str


class FileObject(BaseModel):
    """A file that is kept."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"
    expires_at: None = None


class FileList(BaseModel):
    """A part of all files."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StreamDropped(BaseModel):
    """An answer that is kept no longer."""

    id: str
    deleted: bool


class FileDeleted(BaseModel):
    """What became of a file."""

    id: str
    object: str = "file"
    deleted: bool


class BatchCounts(BaseModel):
    """Lines of a batch, by what came of them so far."""

    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    """What is wrong with a line of a batch, or with its file."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """The first of all that is wrong."""

    object: str = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """A batch. Times are in seconds since 1970. A batch never expires."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts
    metadata: dict[str, str] | None = None


class BatchList(BaseModel):
    """A part of all batches."""

    object: str = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ErrorDetail(BaseModel):
    """What is wrong, and in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class Load(BaseModel):
    """The engine's state now, and counts since its start. The page draws rates from the difference of two."""

    server_load: int
    rows: int
    rows_occupied: int
    columns: int
    running: int
    waiting: int
    prefilling: int
    ready: int
    preempted: int
    kv_bytes_used: int
    kv_bytes_budget: int
    iterations: int
    generated_tokens: int
    useful_slots: int
    idle_slots: int


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
