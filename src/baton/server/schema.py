"""What requests may say: one strict model per route, whose fields are honoured.

A field set to null is as if it were left out. `field_rules.py` says what is done with other fields that clients know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import FailFast, Field, WithJsonSchema, create_model

from baton.core.errors import InvalidValue, Unsupported
from baton.core.generation_defaults import NO_DEFAULTS
from baton.core.limits import Limits
from baton.core.origin import NO_ORIGIN, Origin
from baton.core.query import RequestOptions
from baton.core.sampling import SAMPLING_FIELDS, SamplingParams
from baton.core.template_options import TemplateOptions, check_variables, with_effort
from baton.engine.client import Tokenizer
from baton.server.field_rules import STREAM, TOOL, Place
from baton.server.field_types import FORMAT_SCHEMA, OUTPUTS_SCHEMA, PROMPT_SCHEMA, Stop, User, prompts_in
from baton.server.fields import Strict, place_of
from baton.server.messages import MESSAGE_PLACE, Message, Messages, turns_of
from baton.server.tools import FunctionNamed, FunctionOffered, ToolNamed, ToolOffered, Tools, chosen


class StreamOptions(Strict):
    """What a stream has besides the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="Each event has the usage up to it.")


# `core/constraint.py` says which fields a form may have.
_ANY_FORM = Place("response_format", inner={"json_schema": Place("response_format.json_schema")})
STREAM_PLACE = place_of(StreamOptions, "stream_options", STREAM)
_INSIDE = {"stream_options": STREAM_PLACE, "response_format": _ANY_FORM}
_TOOLS = place_of(ToolOffered, "tools", TOOL, {"function": place_of(FunctionOffered, "tools.function", TOOL)})
_CHOICE = place_of(ToolNamed, "tool_choice", {}, {"function": place_of(FunctionNamed, "tool_choice.function", {})})
_INSIDE_CHAT = {**_INSIDE, "messages": MESSAGE_PLACE, "tools": _TOOLS, "tool_choice": _CHOICE}


# These mean something else in a request, or differ by route.
_OWN = ("n", "max_tokens", "logprobs", "prompt_logprobs", "skip_special_tokens")
_NUMBERS = {
    known.name: (
        known.kind | None if known.nullable else known.kind,
        Field(known.default, description=known.about),
    )
    for known in SAMPLING_FIELDS
    if known.kind in (int, float, bool) and known.name not in _OWN
}
_Numbers: Any = create_model("_Numbers", __base__=Strict, **_NUMBERS)  # type: ignore[call-overload]


class Sampled(_Numbers):  # type: ignore[misc]
    """The fields of all generating routes. `SamplingParams` and `Limits` say which values they may have."""

    model: str | None = None
    stream: bool = False
    logit_bias: dict[str, float] = Field(default_factory=dict)
    stop: Stop = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], FailFast()] = Field(default_factory=list)
    priority: int = Field(0, description="Lower runs first, under the policies priority and slo.")
    deadline_ms: int | None = Field(None, description="Given up with 504 if it is not done so long after it came.")
    user: User | None = Field(None, description="Users share the rows, under the policies priority and slo.")
    cache_salt: str | None = Field(None, description="Stored prefixes are shared with requests of this salt alone.")


class Generation(Sampled):
    """The fields of completions and chats."""

    inner: ClassVar[Mapping[str, Place]] = _INSIDE
    operation: ClassVar[str] = ""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int = 1
    best_of: int | None = Field(None, description="Only the same as n: all answers come back.")
    response_format: Annotated[dict[str, Any] | None, WithJsonSchema(FORMAT_SCHEMA)] = None
    structured_outputs: Annotated[dict[str, Any] | None, WithJsonSchema(OUTPUTS_SCHEMA)] = None
    baton_usage: bool = Field(False, description="Adds usage.baton, what the engine spent on this request.")

    def sampling(
        self,
        max_tokens: int | None,
        defaults: Mapping[str, float],
        *,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """`defaults`: of the model's author, for fields that were not sent. Raises InvalidValue."""
        if self.stream_options is not None and not self.stream:
            raise InvalidValue("stream_options is only for stream: true", param="stream_options")
        if self.best_of is not None and self.best_of != self.n:
            message = f"best_of {self.best_of} is not honoured with n {self.n}: all answers come back"
            raise Unsupported(message, param="best_of")
        sent = {name: getattr(self, name) for name in ("n", *_NUMBERS, "response_format", "structured_outputs")}
        unsent = {name: value for name, value in defaults.items() if name not in self.model_fields_set}
        return SamplingParams(
            **(sent | unsent),
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            logit_bias={_token_id(key): value for key, value in self.logit_bias.items()} or None,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def request_options(self, key: str, limits: Limits, origin: Origin = NO_ORIGIN) -> RequestOptions:
        """`key`: whose request it is, see `RequestOptions`. `origin`: from its headers. Raises InvalidValue."""
        return RequestOptions(
            self.priority,
            self.deadline_ms,
            self.user or "",
            queue_seconds=limits.queue_timeout,
            total_seconds=limits.query_timeout,
            key=key,
            cache_salt=self.cache_salt,
            origin=replace(origin, operation=self.operation),
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk: as asked, or because usage.baton needs it."""
        return self.baton_usage or (self.stream_options is not None and self.stream_options.include_usage)

    @property
    def wants_usage_so_far(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats


class CompletionRequest(Generation):
    """The body of `/v1/completions`."""

    operation: ClassVar[str] = "text_completion"

    prompt: Annotated[Any, WithJsonSchema(PROMPT_SCHEMA)]
    max_tokens: int = Field(16, description="0 only with echo: the prompt alone comes back.")
    echo: bool = False
    logprobs: int | None = Field(
        None,
        ge=0,
        description="Of so many best tokens at each token, and of that token; with echo of the prompt's tokens too.",
    )

    @property
    def silent(self) -> bool:
        """Whether only the prompt is returned."""
        return self.echo and self.max_tokens == 0

    def params(self, defaults: Mapping[str, float] = NO_DEFAULTS.sampling) -> SamplingParams:
        """Raises InvalidValue or Unsupported."""
        if self.silent and self.min_tokens:
            raise InvalidValue(f"min_tokens {self.min_tokens} is more than max_tokens 0", param="min_tokens")
        of_prompt = self.logprobs if self.echo else None
        most = 1 if self.silent else self.max_tokens
        return self.sampling(most, defaults, logprobs=self.logprobs, prompt_logprobs=of_prompt)

    def prompts(self, limits: Limits) -> list[str | list[int]]:
        """The prompts, each text or token ids. Raises InvalidValue."""
        return prompts_in(self.prompt, self.n, limits)


class ChatRequest(Generation):
    """The body of `/v1/chat/completions`."""

    inner: ClassVar[Mapping[str, Place]] = _INSIDE_CHAT
    operation: ClassVar[str] = "chat"

    messages: Messages
    tools: Annotated[list[ToolOffered], FailFast()] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | ToolNamed | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="As the chat template takes it: under this name, or as reasoning turned on or off."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Variables of the chat template, such as enable_thinking."
    )
    add_generation_prompt: bool | None = Field(
        None,
        description="Whether the prompt ends where the assistant's turn begins; true, unless a message is continued.",
    )
    continue_final_message: bool = Field(False, description="The answer goes on with the last message, an assistant's.")
    documents: Annotated[list[dict[str, Any]], FailFast()] = Field(
        default_factory=list, description="Documents, for chat templates that quote them."
    )
    logprobs: bool = Field(False, description="Adds the log-probability of each token of the answer.")
    top_logprobs: int = Field(0, ge=0, description="With logprobs: of so many best tokens at each token too.")

    def params(self, defaults: Mapping[str, float] = NO_DEFAULTS.sampling) -> SamplingParams:
        """Raises InvalidValue or Unsupported."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidValue("top_logprobs is only for logprobs: true", param="top_logprobs")
        try:
            return self.sampling(self.limit(), defaults, logprobs=self.top_logprobs if self.logprobs else None)
        except InvalidValue as error:
            names = {"logprobs": "top_logprobs"}
            if self.max_tokens is None:
                names["max_tokens"] = "max_completion_tokens"
            old = error.param or ""
            if old not in names:
                raise
            raise InvalidValue(error.message.replace(old, names[old]), param=names[old]) from None

    def turns(self) -> list[dict[str, Any]]:
        """Raises InvalidValue."""
        return turns_of(self.messages)

    def template_options(self, tokenizer: Tokenizer, *, reasons: bool) -> TemplateOptions:
        """How the chat template writes the prompt. Raises InvalidValue or Unsupported.

        `reasons`: whether the model is known to reason.
        """
        known = tokenizer.template_variables
        check_variables(self.chat_template_kwargs, known, "chat_template_kwargs")
        variables = with_effort(self.chat_template_kwargs, self.reasoning_effort, known, reasons=reasons)
        if self.documents and "documents" not in known:
            message = "documents are not honoured: this model's chat template says nothing of them"
            raise Unsupported(message, param="documents")
        return template_options(
            self.messages,
            variables=variables,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            documents=self.documents,
        )

    def offered(self, tokenizer: Tokenizer, limits: Limits) -> Tools | None:
        """The tools that the answer may call. Raises InvalidValue or Unsupported."""
        limits.hold("max_tools", len(self.tools), "the number of tools", "tools")
        tools = chosen(self.tools, self.tool_choice, self.parallel_tool_calls, tokenizer)
        if tools is not None:
            self._check_alone(tools)
        return tools

    def _check_alone(self, tools: Tools) -> None:
        for name in ("response_format", "structured_outputs"):
            # An answer of nothing but calls has no text that could have a form.
            if getattr(self, name) not in (None, {"type": "text"}) and not tools.forced:
                raise Unsupported(f"{name} is not honoured together with tools", param=name)
        for name in ("min_tokens", "ignore_eos"):
            if tools.form is not None and getattr(self, name):
                raise Unsupported(f"{name} is not honoured if tools give the answer a form", param=name)

    def limit(self) -> int | None:
        """The most tokens asked for, under its old or new name. Raises InvalidValue if the two disagree."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            message = f"max_tokens {old} and max_completion_tokens {new} disagree: send one"
            raise InvalidValue(message, param="max_completion_tokens")
        return old if new is None else new


def template_options(
    messages: list[Message],
    *,
    variables: Mapping[str, Any],
    add_generation_prompt: bool | None,
    continue_final_message: bool,
    documents: Sequence[Mapping[str, Any]] = (),
) -> TemplateOptions:
    """Raises InvalidValue for options that contradict each other."""
    param = "continue_final_message"
    if continue_final_message and add_generation_prompt:
        raise InvalidValue(f"{param} and add_generation_prompt cannot both be true", param=param)
    if continue_final_message and messages[-1].role != "assistant":
        raise InvalidValue(f"{param} needs an assistant's message at the end", param=param)
    return TemplateOptions(
        variables=variables,
        generation_prompt=add_generation_prompt is not False,
        continue_final=continue_final_message,
        documents=documents,
    )


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 10 and str(int(key)) == key):
        raise InvalidValue(f"logit_bias: {key!r} is not a token id", param="logit_bias")
    return int(key)
