"""Answers of /v1/responses: items, and the events of their making."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from baton.core.errors import BatonError
from baton.core.events import Usage
from baton.core.query import Query
from baton.server.answers import UsageBody
from baton.server.blocks import Block, BlockWriter, Kind
from baton.server.errors import MAX_MESSAGE_CHARACTERS, cut
from baton.server.responses import ResponsesRequest

IN_PROGRESS, COMPLETED, INCOMPLETE, FAILED = "in_progress", "completed", "incomplete", "failed"
_PREFIXES: Mapping[Kind, str] = {Kind.TEXT: "msg", Kind.REASONING: "rs", Kind.CALL: "fc"}
_ERROR_CODES: Mapping[int, str] = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponseWriter(BlockWriter):
    """`sent`: the request that is answered."""

    def __init__(
        self, sent: ResponsesRequest, query: Query, model: str, usage_of: Callable[[Sequence[Usage]], UsageBody]
    ) -> None:
        super().__init__(query, model, usage_of)
        self._sent = sent
        self._sequence = 0

    def body(self, usage: UsageBody) -> dict[str, Any]:
        return self._response(self._status, usage)

    def began(self) -> Iterator[str]:
        yield self._event("response.created", response=self._response(IN_PROGRESS))
        yield self._event("response.in_progress", response=self._response(IN_PROGRESS))

    def block_began(self, block: Block) -> Iterator[str]:
        yield self._of_item("response.output_item.added", block, item=self._item(block, IN_PROGRESS))
        if block.kind is not Kind.CALL:
            yield self._of_part("response.content_part.added", block, part=_part(block.kind, ""))

    def block_grew(self, block: Block, text: str, logprobs: list[Any]) -> Iterator[str]:
        if block.kind is Kind.CALL:
            yield self._of_item("response.function_call_arguments.delta", block, item_id=self._id(block), delta=text)
        elif block.kind is Kind.REASONING:
            yield self._of_part("response.reasoning_text.delta", block, delta=text)
        else:
            yield self._of_part("response.output_text.delta", block, delta=text, logprobs=logprobs)

    def block_ended(self, block: Block) -> Iterator[str]:
        text = block.text
        if block.kind is Kind.CALL:
            done = {"item_id": self._id(block), "name": self._sent.called(block.name)["name"], "arguments": text}
            yield self._of_item("response.function_call_arguments.done", block, **done)
        elif block.kind is Kind.REASONING:
            yield self._of_part("response.reasoning_text.done", block, text=text)
        else:
            yield self._of_part("response.output_text.done", block, text=text, logprobs=block.logprobs)
        if block.kind is not Kind.CALL:
            part = _part(block.kind, text, block.logprobs)
            yield self._of_part("response.content_part.done", block, part=part)
        yield self._of_item("response.output_item.done", block, item=self._item(block))

    def ended(self, usage: UsageBody) -> Iterator[str]:
        yield self._event(f"response.{self._status}", response=self._response(self._status, usage))

    def error(self, error: BatonError) -> str:
        fields = {
            "code": _ERROR_CODES.get(error.status, "server_error"),
            "message": cut(error.message, MAX_MESSAGE_CHARACTERS),
        }
        return self._event("response.failed", response=self._response(FAILED) | {"error": fields})

    @property
    def _status(self) -> str:
        return INCOMPLETE if self.reason == "length" else COMPLETED

    def _event(self, kind: str, **fields: object) -> str:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return f"event: {kind}\ndata: {json.dumps(event)}\n\n"

    def _of_item(self, kind: str, block: Block, **fields: object) -> str:
        return self._event(kind, output_index=block.number, **fields)

    def _of_part(self, kind: str, block: Block, **fields: object) -> str:
        return self._event(kind, item_id=self._id(block), output_index=block.number, content_index=0, **fields)

    def _id(self, block: Block) -> str:
        return f"{_PREFIXES[block.kind]}_{self.query.id}-{block.number}"

    def _item(self, block: Block, status: str | None = None) -> dict[str, Any]:
        begun = status == IN_PROGRESS
        status = status or (INCOMPLETE if block.cut else COMPLETED)
        head = {"id": self._id(block), "status": status}
        if block.kind is Kind.CALL:
            called = {"call_id": block.id, **self._sent.called(block.name), "arguments": block.text}
            return {"type": "function_call", **head, **called}
        content = [] if begun else [_part(block.kind, block.text, block.logprobs)]
        if block.kind is Kind.REASONING:
            return {"type": "reasoning", **head, "summary": [], "content": content, "encrypted_content": None}
        return {"type": "message", **head, "role": "assistant", "content": content}

    def _response(self, status: str, usage: UsageBody | None = None) -> dict[str, Any]:
        sent, params = self._sent, self.query.params
        ended = status in (COMPLETED, INCOMPLETE)
        blocks = self.blocks if status != IN_PROGRESS else []
        return {
            # The engine's own id, by which `baton explain` finds the query in a trace.
            "id": f"resp_{self.query.id}",
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if ended else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == INCOMPLETE else None,
            "instructions": sent.instructions,
            "max_output_tokens": sent.max_output_tokens,
            "metadata": {},
            "model": self.model,
            "output": [self._item(block) for block in blocks],
            "parallel_tool_calls": sent.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": sent.reasoning.effort if sent.reasoning else None, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": sent.form},
            "tool_choice": sent.tool_choice_body,
            "tools": sent.tools_body,
            "top_logprobs": sent.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
            "user": sent.user,
        }


def _part(kind: Kind, text: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
    if kind is Kind.REASONING:
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def _usage(usage: UsageBody) -> dict[str, Any]:
    details = usage.completion_tokens_details
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": details.reasoning_tokens if details else 0},
        "total_tokens": usage.total_tokens,
    }
