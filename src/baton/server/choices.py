"""One choice of an answer, and what each update adds to it: the same whether the answer is plain or streamed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from baton.core.events import Update, Usage
from baton.core.query import Query
from baton.parsing.deltas import CallStart, Delta, Parser, Text, merged
from baton.server.logprobs import Body, ChatLogprobs, CompletionLogprobs, joined


class Piece(NamedTuple):
    """What an update says, see `parsing/deltas.py`, and the log-probabilities of its tokens if they were asked for.

    Without deltas: tokens that have no text yet.
    """

    deltas: tuple[Delta, ...]
    logprobs: Body | None = None


@dataclass(slots=True)
class Choice:
    """`echo`: the text it begins with. `logprobs` writes its log-probabilities; None if they were not asked for.

    `silent`: only the prompt is returned, not the one token that is drawn after it (`max_tokens` 0 with `echo`).
    `parser` finds reasoning and tool calls; None if there can be none.
    """

    query: Query
    echo: str = ""
    logprobs: CompletionLogprobs | ChatLogprobs | None = None
    silent: bool = False
    parser: Parser | None = None
    begun: bool = field(default=False, init=False)
    reasoning_tokens: int | None = field(default=None, init=False)
    _pending_logprobs: list[Body] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.parser is not None and self.parser.reasons:
            self.reasoning_tokens = 0

    def take(self, update: Update) -> list[Piece]:
        """Returns what an update adds."""
        pieces: list[Piece] = []
        if not self.begun:
            self.begun = True
            if self.echo or update.prompt_logprobs:
                pieces.append(Piece(_text(self.echo), self._of_prompt(update)))
        deltas = self._read(update)
        if not self.silent and (deltas or update.logprobs or update.finish_reason is None):
            if self.logprobs and update.logprobs:
                self._pending_logprobs.append(self.logprobs.answer(update.logprobs))
            # Tokens without text yet are sent too: clients measure the time between tokens by the chunks. But what a
            # parser holds back is no chunk; its log-probabilities come with the next one.
            if deltas or self.parser is None or update.finish_reason is not None:
                logprobs, self._pending_logprobs = joined(self._pending_logprobs), []
                pieces.append(Piece(deltas, logprobs))
        return pieces

    def finish_reason(self, update: Update) -> str | None:
        if update.finish_reason == "stop" and self.parser is not None and self.parser.calls:
            return "tool_calls"
        return "length" if self.silent and update.finish_reason else update.finish_reason

    def usage(self, update: Update) -> Usage | None:
        if update.usage is None or not self.silent:
            return update.usage
        return replace(update.usage, generated_tokens=0)

    def _read(self, update: Update) -> tuple[Delta, ...]:
        if self.parser is None:
            return _text(update.text)
        reasoned = self.parser.reasoning
        deltas = self.parser.push(update.text)
        if self.reasoning_tokens is not None and (reasoned or self.parser.reasoning):
            self.reasoning_tokens += len(update.token_ids)
        if update.finish_reason is not None:
            deltas += self.parser.finish()
        return tuple(self._named(delta) for delta in merged(deltas))

    def _named(self, delta: Delta) -> Delta:
        """Calls get ids that depend on the query alone, so that an answer that is written again has the same."""
        if not isinstance(delta, CallStart):
            return delta
        name = hashlib.blake2b(f"{self.query.id} {delta.number}".encode(), digest_size=12).hexdigest()
        return delta._replace(id=f"call_{name}")

    def _of_prompt(self, update: Update) -> Body | None:
        if not isinstance(self.logprobs, CompletionLogprobs):
            return None
        return self.logprobs.echo(self.query.prompt, self.echo, update.prompt_logprobs)


def _text(text: str) -> tuple[Delta, ...]:
    return (Text(text),) if text else ()
