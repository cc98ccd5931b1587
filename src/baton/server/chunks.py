"""Streams as OpenAI's completions and chats have them: chunks, and a last line that says they are done."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from baton.core.errors import BatonError
from baton.core.events import Update, Usage
from baton.parsing.deltas import CallArguments, CallStart, Delta, Reasoning, Text
from baton.server.answers import UsageBody, dump_usage
from baton.server.choices import Choice, Piece
from baton.server.errors import error_body
from baton.server.logprobs import Body
from baton.server.written import written

DONE = "data: [DONE]\n\n"
_FEW = 64


class Frames:
    """The events of one stream as bytes. What is the same in all of them is formatted once.

    `head` is what every chunk begins with (id, object, created, model). `usage` makes the body of a last chunk from the
    choices' usages, which OpenAI announces by a null in all others. `so_far`: what each chunk says of the usage
    instead. `tools`: there may be tool calls.
    """

    def __init__(
        self,
        head: Mapping[str, object],
        *,
        chat: bool,
        usage: Callable[[Sequence[Usage]], UsageBody] | None,
        so_far: SoFar | None = None,
        tools: bool = False,
    ) -> None:
        self._usage = usage
        self._so_far = so_far
        self._chat = chat
        self._tools = tools
        self._bare = "data: " + json.dumps(head)[:-1]
        self._head = ""
        self._tell_usage("" if usage is None else "null")
        self._refusal: dict[str, object] = {"refusal": None} if chat else {}
        self._before, self._after = (',"delta":{"content":', "}") if chat else (',"text":', "")

    def _tell_usage(self, usage: str) -> None:
        """What all chunks say of the usage from now on, as JSON; "" for nothing."""
        self._head = self._bare + (f',"usage":{usage}' if usage else "") + ',"choices":[{"index":'

    def count(self, choice: Choice, update: Update) -> None:
        if self._so_far is not None:
            self._tell_usage(self._so_far.add(choice, update))

    def opening(self, index: int) -> str:
        """A chat's first chunk: who speaks."""
        if not self._chat:
            return ""
        # Of an answer that may be nothing but tool calls the content is null until there is some.
        nothing = "null" if self._tools else '""'
        delta = f'{{"role":"assistant","content":{nothing}}}'
        return f'{self._head}{index},"delta":{delta},"logprobs":null,"finish_reason":null}}]}}\n\n'

    def piece(self, index: int, piece: Piece) -> str:
        """One chunk for each delta; the log-probabilities are told with the first."""
        if not piece.deltas and self._tools:
            # Log-probabilities of the last tokens of a call: a text, even an empty one, would be content beside it.
            told = self._logprobs(piece.logprobs)
            return f'{self._head}{index},"delta":{{"content":null}},"logprobs":{told},"finish_reason":null}}]}}\n\n'
        first, *others = piece.deltas or (Text(""),)
        return "".join(
            [self._chunk(index, first, piece.logprobs), *(self._chunk(index, delta, None) for delta in others)]
        )

    def _chunk(self, index: int, delta: Delta, logprobs: Body | None) -> str:
        if isinstance(delta, Text):
            return self._text(index, delta.text, logprobs)
        told, news = self._logprobs(logprobs), json.dumps(_spelt(delta))
        return f'{self._head}{index},"delta":{news},"logprobs":{told},"finish_reason":null}}]}}\n\n'

    def _text(self, index: int, text: str, logprobs: Body | None) -> str:
        told = self._logprobs(logprobs)
        end = f'{self._after},"logprobs":{told},"finish_reason":null}}]}}\n\n'
        return f"{self._head}{index}{self._before}{json.dumps(text)}{end}"

    def _logprobs(self, body: Body | None) -> str:
        if body is None:
            return "null"
        told = self._refusal | body
        return json.dumps(told) if len(next(iter(body.values()))) < _FEW else written(told).decode()

    def finish(self, index: int, reason: str, stopped_by: str | None) -> str:
        rest = '"delta":{}' if self._chat else '"text":""'
        return f'{self._head}{index},{rest},"logprobs":null,"finish_reason":{json.dumps(reason)}}}]}}\n\n'

    def ending(self, usages: Sequence[Usage]) -> str:
        if self._usage is None:
            return DONE
        usage = dump_usage(self._usage(usages))
        return f'{self._bare},"choices":[],"usage":{json.dumps(usage)}}}\n\n{DONE}'

    def error(self, error: BatonError) -> str:
        return f"data: {error_body(error).decode()}\n\n"


def _spelt(delta: Reasoning | CallStart | CallArguments) -> dict[str, object]:
    """A delta as chats spell it."""
    if isinstance(delta, Reasoning):
        return {"reasoning_content": delta.text, "reasoning": delta.text}
    if isinstance(delta, CallStart):
        function = {"name": delta.name, "arguments": ""}
        return {"tool_calls": [{"index": delta.number, "id": delta.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": delta.number, "function": {"arguments": delta.text}}]}


class SoFar:
    """The usage of a stream up to each of its events: what OpenAI's bodies have, and no more is known yet."""

    def __init__(self, choices: Sequence[Choice], n: int) -> None:
        self._prompt = sum(len(choice.query.prompt) for choice in choices[::n])
        self._generated = 0

    def add(self, choice: Choice, update: Update) -> str:
        self._generated += 0 if choice.silent else len(update.token_ids)
        total = self._prompt + self._generated
        counts = {"prompt_tokens": self._prompt, "completion_tokens": self._generated, "total_tokens": total}
        return json.dumps(counts)
