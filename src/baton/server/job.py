"""A request that is ready for the engine, and how its answer is written: as events or as one body."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from baton.core.events import Update, Usage
from baton.parsing.deltas import Message, message_of
from baton.server.answers import UsageBody, dump_usage, tool_call, usage_body
from baton.server.blocks import BlockWriter
from baton.server.choices import Choice, Piece
from baton.server.chunks import Frames, SoFar
from baton.server.logprobs import joined
from baton.server.schema import ChatRequest, Generation
from baton.server.stream import Events
from baton.server.written import written


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is ready for the engine. Choice j of prompt i has the index i * n + j.

    `writer`: of the one choice, for an API whose answers have blocks. `ignored`: fields that were taken without effect.
    `created`: seconds since 1970. `body_sent`: the request's body, if its answer is kept.
    """

    asked: Generation
    choices: list[Choice]
    model: str
    tools: bool = False
    writer: BlockWriter | None = None
    ignored: Sequence[str] = ()
    relaxed: Sequence[str] = ()
    created: int = field(default_factory=lambda: int(time.time()))
    body_sent: bytes = b""

    def again(self, query_ids: Sequence[str], created: int) -> Job:
        """Returns the job of the same request, whose queries had these ids: it writes the same answer again."""
        for choice, name in zip(self.choices, query_ids, strict=True):
            choice.query = replace(choice.query, id=name)
        if self.writer is not None:
            self.writer.query = self.choices[0].query
        return replace(self, created=created)

    @property
    def chat(self) -> bool:
        return isinstance(self.asked, ChatRequest)

    def events(self) -> Events:
        """How a streamed answer is written."""
        if self.writer is not None:
            self.writer.created = self.created
            return self.writer
        asked = self.asked
        return Frames(
            self.head(chunk=True),
            chat=self.chat,
            usage=self.usage if asked.wants_usage else None,
            so_far=SoFar(self.choices, asked.n) if asked.wants_usage_so_far else None,
            tools=self.tools,
        )

    def body(self, updates: Sequence[Update]) -> bytes:
        """The plain answer, as answers.ChatCompletion and answers.Completion describe it, or as the writer makes it."""
        if self.writer is not None:
            self.writer.created = self.created
            return written(self.writer.whole(self.choices[0], updates))
        results = {choice.query.id: _ChoiceResult(choice) for choice in self.choices}
        for update in updates:
            results[update.query_id].take(update)
        usage = self.usage([one.usage for one in results.values() if one.usage is not None])
        choices = [one.body(index, chat=self.chat) for index, one in enumerate(results.values())]
        return written({**self.head(chunk=False), "choices": choices, "usage": dump_usage(usage)})

    def head(self, *, chunk: bool) -> dict[str, object]:
        name = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {
            # The engine's own id, by which `baton explain` finds the query in a trace.
            "id": f"{prefix}-{self.choices[0].query.id}",
            "object": name,
            "created": self.created,
            "model": self.model,
        }

    def usage(self, usages: Sequence[Usage]) -> UsageBody:
        """The body of these usages, one for each choice, in their order."""
        n = self.asked.n
        prompts = (usages[first : first + n] for first in range(0, len(usages), n))
        reasoned = [choice.reasoning_tokens for choice in self.choices if choice.reasoning_tokens is not None]
        return usage_body(prompts, baton=self.asked.baton_usage, reasoning=sum(reasoned) if reasoned else None)


@dataclass(slots=True)
class _ChoiceResult:
    """What the updates of one choice add up to."""

    choice: Choice
    pieces: list[Piece] = field(default_factory=list)
    reason: str = ""
    usage: Usage | None = None

    def take(self, update: Update) -> None:
        self.pieces += self.choice.take(update)
        self.reason = self.choice.finish_reason(update) or self.reason
        self.usage = self.choice.usage(update) or self.usage

    def body(self, index: int, *, chat: bool) -> dict[str, object]:
        """As answers.ChatChoice and answers.CompletionChoice describe it."""
        message = message_of(delta for piece in self.pieces for delta in piece.deltas)
        said: dict[str, object] = {"message": _message_body(message)} if chat else {"text": message.text}
        logprobs: dict[str, Any] | None = joined(one.logprobs for one in self.pieces if one.logprobs is not None)
        if chat and logprobs is not None:
            logprobs = {**logprobs, "refusal": None}
        return {"index": index, **said, "logprobs": logprobs, "finish_reason": self.reason}


def _message_body(message: Message) -> dict[str, object]:
    """As answers.AssistantMessage describes it."""
    calls = [tool_call(call) for call in message.calls]
    content = message.text or (None if calls else "")
    body: dict[str, object] = {"role": "assistant", "content": content, "refusal": None}
    if message.reasoning:
        body |= {"reasoning_content": message.reasoning, "reasoning": message.reasoning}
    return body | {"tool_calls": calls} if calls else body
