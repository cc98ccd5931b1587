"""Answers from an engine in this process."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from baton.chat.port import Message, Piece
from baton.core.errors import QueryFailed
from baton.core.query import SamplingParams
from baton.engine.client import Client
from baton.parsing.deltas import message_of
from baton.parsing.reading import reading_of
from baton.parsing.reasoning import PlainText

# The default, unless the model's author or the user sets others: the likeliest tokens, up to the context's end.
_PLAIN: dict[str, Any] = {"temperature": 0.0, "max_tokens": None}


class Here:
    """Asks the engine's client. Raises RequestError at once if the model has no chat template."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.name = client.model_name
        client.tokenizer.chat([{"role": "user", "content": "Hi"}])

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        params = SamplingParams(**{**_PLAIN, **self._client.defaults, **sampling})
        tokenizer = self._client.tokenizer
        reading = reading_of(tokenizer, None, formed=False, reasoning=self._client.settings.reasoning)
        prompt = tokenizer.chat(messages)
        queries = self._client.queries(prompt, params, visible_special_tokens=reading.visible_special_tokens)
        parser = reading.parser_of(prompt, "") or PlainText()
        with closing(self._client.run(queries)) as updates:
            for update in updates:
                if update.finish_reason in ("error", "expired", "cancelled"):
                    raise QueryFailed(update.error or "the query was ended")
                deltas = parser.push(update.text)
                if update.finish_reason is not None:
                    deltas += parser.finish()
                said, spent = message_of(deltas), update.usage
                if spent is None:
                    yield Piece(said.text, said.reasoning, update.finish_reason)
                    continue
                yield Piece(
                    said.text,
                    said.reasoning,
                    update.finish_reason,
                    prompt_tokens=spent.prompt_tokens,
                    generated_tokens=spent.generated_tokens,
                    queue_seconds=spent.queue_seconds,
                    idle_ratio=spent.idle_ratio,
                )
