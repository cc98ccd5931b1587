"""Answers of an engine in this process."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from baton.chat.port import Message, Piece
from baton.core.errors import QueryFailed
from baton.core.query import SamplingParams
from baton.engine.client import Client

# Unless the model's author or the user says otherwise: the likeliest tokens, up to the context's end.
_PLAIN: dict[str, Any] = {"temperature": 0.0, "max_tokens": None}


class Here:
    """Asks the engine's client. Raises RequestError at once where the model has no chat template."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.name = client.model_name
        client.tokenizer.chat([{"role": "user", "content": "Hi"}])

    def answer(self, messages: Sequence[Message], sampling: Mapping[str, Any]) -> Generator[Piece, None, None]:
        params = SamplingParams(**{**_PLAIN, **self._client.defaults, **sampling})
        queries = self._client.queries(self._client.tokenizer.chat(messages), params)
        with closing(self._client.run(queries)) as updates:
            for update in updates:
                if update.finish_reason in ("error", "expired", "cancelled"):
                    raise QueryFailed(update.error or "the query was ended")
                spent = update.usage
                if spent is None:
                    yield Piece(update.text, update.finish_reason)
                    continue
                yield Piece(
                    update.text,
                    update.finish_reason,
                    prompt_tokens=spent.prompt_tokens,
                    generated_tokens=spent.generated_tokens,
                    queue_seconds=spent.queue_seconds,
                    idle_ratio=spent.idle_ratio,
                )
