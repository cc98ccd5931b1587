"""What requests may say: one model per route, strict, and no field that is not honoured.

A field set to null is as if it were left out. Fields that OpenAI's or vLLM's users know and that are not
honoured are refused by name, unless they have the value that asks for nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    FailFast,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from baton.errors import InvalidValue, RequestError, Unsupported
from baton.query import MAX_LOGPROBS, SamplingParams, Terms
from baton.server.fields import MESSAGE_NEUTRAL, STREAM_NEUTRAL, Strict, without_neutral

MAX_PROMPTS = 128
MAX_CHOICES = 128
MAX_STOP_TOKENS = 128

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    ]
}


class StreamOptions(Strict):
    include_usage: bool = False

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, sent: object) -> object:
        return without_neutral(sent, cls, STREAM_NEUTRAL, "stream_options.") if isinstance(sent, dict) else sent


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Stop = Annotated[
    list[str],
    FailFast(),  # as on every list: a long one of the wrong kind would else become as many errors
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Generation(Strict):
    """What both generating routes take. Limits are those of `SamplingParams`."""

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[str, float] = Field(default_factory=dict)
    seed: int | None = None
    stop: _Stop = Field(default_factory=list)
    stop_token_ids: Annotated[list[int], FailFast()] = Field(default_factory=list, max_length=MAX_STOP_TOKENS)
    min_tokens: int = 0
    ignore_eos: bool = False
    priority: int = Field(0, description="Lower runs first, under the policies priority and slo.")
    deadline_ms: int | None = Field(None, description="Given up with 504 if it is not done so long after it came.")
    baton_usage: bool = Field(False, description="Adds usage.baton, what the engine spent on this request.")
    user: str | None = Field(None, description="Users share the rows, under the policies priority and slo.")
    metadata: dict[str, Any] | None = Field(None, description="Accepted without effect.")
    store: bool | None = Field(None, description="Accepted without effect: nothing is stored.")

    def sampling(
        self, max_tokens: int | None, *, logprobs: int | None = None, prompt_logprobs: int | None = None
    ) -> SamplingParams:
        """Raises InvalidValue."""
        if self.stream_options is not None and not self.stream:
            raise InvalidValue("stream_options is only for stream: true", param="stream_options")
        same = ("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty")
        also = ("repetition_penalty", "seed", "min_tokens", "ignore_eos")
        return SamplingParams(
            **{name: getattr(self, name) for name in same + also},
            stop=tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            logit_bias={_token_id(key): value for key, value in self.logit_bias.items()} or None,
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )

    def terms(self, asker: str) -> Terms:
        """`asker`: whose request it is, where it names no user. Raises InvalidValue."""
        return Terms(self.priority, self.deadline_ms, self.user or asker)

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a usage chunk: as asked, or because usage.baton needs the place."""
        return self.baton_usage or (self.stream_options is not None and self.stream_options.include_usage)


class CompletionRequest(Generation):
    prompt: Annotated[Any, WithJsonSchema(_PROMPT_SCHEMA)]
    max_tokens: int = Field(16, description="0 only with echo: the prompt alone comes back.")
    echo: bool = False
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Of so many best tokens at each token, and of that token; with echo of the prompt's tokens too.",
    )

    @property
    def silent(self) -> bool:
        """Whether only the prompt is to come back."""
        return self.echo and self.max_tokens == 0

    def params(self) -> SamplingParams:
        """Raises InvalidValue or Unsupported."""
        if self.silent and self.min_tokens:
            raise InvalidValue(f"min_tokens {self.min_tokens} is more than max_tokens 0", param="min_tokens")
        of_prompt = self.logprobs if self.echo else None
        return self.sampling(1 if self.silent else self.max_tokens, logprobs=self.logprobs, prompt_logprobs=of_prompt)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each text or token ids. Raises InvalidValue."""
        return prompts_in(self.prompt, self.n)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]


def _plain_messages(value: object) -> object:
    """Messages with their neutral fields dropped and their text parts joined by line ends."""
    if not isinstance(value, list):
        return value
    numbered = enumerate(value)
    return [_plain_message(m, f"messages[{at}]") if isinstance(m, dict) else m for at, m in numbered]


_Messages = Annotated[list[Message], FailFast(), BeforeValidator(_plain_messages), Field(min_length=1)]


class ChatRequest(Generation):
    messages: _Messages
    max_completion_tokens: int | None = None
    logprobs: bool = Field(False, description="Adds the log-probability of each token of the answer.")
    top_logprobs: int = Field(
        0, ge=0, le=MAX_LOGPROBS, description="With logprobs: of so many best tokens at each token too."
    )

    def params(self) -> SamplingParams:
        """Raises InvalidValue or Unsupported."""
        if self.top_logprobs and not self.logprobs:
            raise InvalidValue("top_logprobs is only for logprobs: true", param="top_logprobs")
        return self.sampling(self.limit(), logprobs=self.top_logprobs if self.logprobs else None)

    def turns(self) -> list[dict[str, str]]:
        return _turns(self.messages)

    def limit(self) -> int | None:
        """The most tokens asked for, under its old or new name. Raises InvalidValue if the two disagree."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            message = f"max_tokens {old} and max_completion_tokens {new} disagree: send one"
            raise InvalidValue(message, param="max_completion_tokens")
        return old if new is None else new


class TokenizeRequest(Strict):
    """Either a text or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: _Messages = Field(default_factory=list)

    def turns(self) -> list[dict[str, str]] | None:
        if (self.prompt is None) == (not self.messages):
            raise RequestError("send either prompt or messages", param="prompt")
        return _turns(self.messages) if self.messages else None


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Annotated[list[int], FailFast()]


def prompts_in(value: object, n: int) -> list[str | list[int]]:
    """Text, token ids, or a list of either, as a list of prompts. Raises InvalidValue."""
    prompts: list[Any] = value if isinstance(value, list) and not _token_ids(value) else [value]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InvalidValue(f"a request takes 1 to {MAX_PROMPTS} prompts, got {len(prompts)}", param="prompt")
    if not all(isinstance(p, str) for p in prompts) and not all(_token_ids(p) for p in prompts):
        message = "prompt must be a text, a list of texts, a list of token ids, or a list of such lists"
        raise InvalidValue(message, param="prompt")
    if n * len(prompts) > MAX_CHOICES:
        message = f"n x prompts is {n * len(prompts)}, the limit is {MAX_CHOICES}"
        raise InvalidValue(message, param="n")
    return prompts


def _turns(messages: list[Message]) -> list[dict[str, str]]:
    """The conversation as a chat template takes it; a developer's message is a system's."""
    role = {"developer": "system"}
    return [{"role": role.get(m.role, m.role), "content": str(m.content)} for m in messages]


def _token_ids(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= 10):
        raise InvalidValue(f"logit_bias: {key!r} is not a token id", param="logit_bias")
    return int(key)


def _plain_message(sent: dict[str, object], where: str) -> dict[str, object]:
    message = without_neutral(sent, Message, MESSAGE_NEUTRAL, f"{where}.")
    if message.get("role") in ("tool", "function"):
        raise Unsupported(f"{where}.role {message['role']!r} is not honoured", param=f"{where}.role")
    content = message.get("content")
    if isinstance(content, list):
        texts = [_part_text(part, f"{where}.content[{at}]") for at, part in enumerate(content)]
        message["content"] = "\n".join(texts)
    elif not isinstance(content, str):
        where += ".content"
        raise InvalidValue(f"{where} must be a text or a list of text parts", param=where)
    return message


def _part_text(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise Unsupported(f"{where}.type {kind!r} is not honoured: only text is", param=f"{where}.type")
    try:
        return TextPart.model_validate(part).text
    except ValidationError:
        raise InvalidValue(f'{where} must be {{"type": "text", "text": "..."}}', param=where) from None
