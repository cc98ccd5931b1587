"""The answers and errors of /v1/messages, in Anthropic's form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from baton.core.errors import BatonError
from baton.core.events import Usage
from baton.core.query import Query
from baton.server.answers import UsageBody
from baton.server.anthropic import MessagesRequest
from baton.server.blocks import Block, BlockWriter, Kind
from baton.server.errors import MESSAGES, error_body

_REASONS: Mapping[str, str] = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens"}
CONTEXT_FULL = "model_context_window_exceeded"


class MessageWriter(BlockWriter):
    """`sent`: the request that is answered."""

    def __init__(
        self, sent: MessagesRequest, query: Query, model: str, usage_of: Callable[[Sequence[Usage]], UsageBody]
    ) -> None:
        super().__init__(query, model, usage_of)
        self._sent = sent

    def body(self, usage: UsageBody) -> dict[str, Any]:
        content = [self._block(block, block.text) for block in self.blocks]
        return {**self._message(content, _usage(usage)), **self._end_of(usage)}

    def began(self) -> Iterator[str]:
        # The cached part of the prompt is known only at the end.
        usage = {"input_tokens": len(self.query.prompt), "output_tokens": 0}
        yield _event("message_start", message=self._message([], usage))

    def block_began(self, block: Block) -> Iterator[str]:
        yield _event("content_block_start", index=block.number, content_block=self._block(block, ""))

    def block_grew(self, block: Block, text: str, logprobs: list[Any]) -> Iterator[str]:
        if block.kind is Kind.CALL:
            delta = {"type": "input_json_delta", "partial_json": text}
        elif block.kind is Kind.REASONING:
            delta = {"type": "thinking_delta", "thinking": text}
        else:
            delta = {"type": "text_delta", "text": text}
        yield _event("content_block_delta", index=block.number, delta=delta)

    def block_ended(self, block: Block) -> Iterator[str]:
        yield _event("content_block_stop", index=block.number)

    def ended(self, usage: UsageBody) -> Iterator[str]:
        yield _event("message_delta", delta=self._end_of(usage), usage=_usage(usage))
        yield _event("message_stop")

    def error(self, error: BatonError) -> str:
        return f"event: error\ndata: {error_body(error, MESSAGES).decode()}\n\n"

    def _message(self, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            # The engine's own id, by which `baton explain` finds the query in a trace.
            "id": f"msg_{self.query.id}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _end_of(self, usage: UsageBody) -> dict[str, Any]:
        if self.stopped_by is not None and self.reason == "stop":
            return {"stop_reason": "stop_sequence", "stop_sequence": self.stopped_by}
        reason = _REASONS.get(self.reason, self.reason)
        if self.reason == "length" and usage.completion_tokens < self._sent.max_tokens:
            reason = CONTEXT_FULL
        return {"stop_reason": reason, "stop_sequence": None}

    def _block(self, block: Block, text: str) -> dict[str, Any]:
        if block.kind is Kind.CALL:
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": _object(text)}
        if block.kind is Kind.REASONING:
            return {"type": "thinking", "thinking": text, "signature": ""}
        return {"type": "text", "text": text}


def _object(arguments: str) -> dict[str, Any]:
    """Returns the arguments as an object. Arguments that were cut off are not JSON; they become an empty object."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _event(kind: str, **fields: object) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def _usage(usage: UsageBody) -> dict[str, Any]:
    cached = usage.prompt_tokens_details.cached_tokens
    return {
        "input_tokens": usage.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
