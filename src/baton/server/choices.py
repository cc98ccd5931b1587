"""One choice of an answer, and what each update adds to it: the same whether the answer is plain or streamed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from baton.core.events import Update, Usage
from baton.core.query import Query
from baton.server.logprobs import Body, ChatLogprobs, CompletionLogprobs
from baton.server.tool_calls import Call, Parser


class Piece(NamedTuple):
    """Text, the log-probabilities of its tokens where asked for, and tool calls that are complete with it."""

    text: str
    logprobs: Body | None = None
    calls: tuple[Call, ...] = ()


@dataclass(slots=True)
class Choice:
    """`echo`: the text it begins with. `logprobs` writes its log-probabilities; None where not asked for.

    `silent`: only the prompt is told, not the one token that is drawn behind it (`max_tokens` 0 with `echo`).
    `parser` finds tool calls in it; None where there can be none.
    """

    query: Query
    echo: str = ""
    logprobs: CompletionLogprobs | ChatLogprobs | None = None
    silent: bool = False
    parser: Parser | None = None
    begun: bool = field(default=False, init=False)

    def take(self, update: Update) -> list[Piece]:
        """What is new with an update."""
        found: list[Piece] = []
        if not self.begun:
            self.begun = True
            if self.echo or update.prompt_logprobs:
                found.append(Piece(self.echo, self._of_prompt(update)))
        text, calls = self._read(update)
        # Tokens without text yet are news too: clients measure the time between tokens by the chunks.
        if not self.silent and (text or calls or update.logprobs or update.finish_reason is None):
            told = self.logprobs.answer(update.logprobs) if self.logprobs and update.logprobs else None
            found.append(Piece(text, told, calls))
        return found

    def finish_reason(self, update: Update) -> str | None:
        if update.finish_reason == "stop" and self.parser is not None and self.parser.calls:
            return "tool_calls"
        return "length" if self.silent and update.finish_reason else update.finish_reason

    def usage(self, update: Update) -> Usage | None:
        if update.usage is None or not self.silent:
            return update.usage
        return replace(update.usage, generated_tokens=0)

    def _read(self, update: Update) -> tuple[str, tuple[Call, ...]]:
        if self.parser is None:
            return update.text, ()
        said = self.parser.push(update.text)
        if update.finish_reason is None:
            return said
        return said.text + self.parser.finish().text, said.calls

    def _of_prompt(self, update: Update) -> Body | None:
        if not isinstance(self.logprobs, CompletionLogprobs):
            return None
        return self.logprobs.echo(self.query.prompt, self.echo, update.prompt_logprobs)
