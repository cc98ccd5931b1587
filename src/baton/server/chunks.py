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
    """The events of one stream as bytes. The part that all of them share is formatted once.

    `head` is what every chunk begins with (id, object, created, model). `usage` makes the body of the last chunk from
    the choices' usages; OpenAI announces it by a null in all other chunks. `so_far`: the usage that each chunk has
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
        """Sets the usage that all chunks have from now on, as JSON; "" for none."""
        self._head = self._bare + (f',"usage":{usage}' if usage else "") + ',"choices":[{"index":'

    def count(self, choice: Choice, update: Update) -> None:
        if self._so_far is not None:
            self._tell_usage(self._so_far.add(choice, update))

    def opening(self, index: int) -> str:
        """Returns a chat's first chunk: its role."""
        if not self._chat:
            return ""
        # If an answer may be nothing but tool calls, its content is null until there is some.
        nothing = "null" if self._tools else '""'
        delta = f'{{"role":"assistant","content":{nothing}}}'
        return f'{self._head}{index},"delta":{delta},"logprobs":null,"finish_reason":null}}]}}\n\n'

    def piece(self, index: int, piece: Piece) -> str:
        """Returns one chunk for each delta; the first has the log-probabilities."""
        if not piece.deltas and self._tools:
            # Only log-probabilities of a call's last tokens: a text, even an empty one, would be content besides the
            # call.
            scores = self._logprobs(piece.logprobs)
            return f'{self._head}{index},"delta":{{"content":null}},"logprobs":{scores},"finish_reason":null}}]}}\n\n'
        first, *others = piece.deltas or (Text(""),)
        return "".join(
            [self._chunk(index, first, piece.logprobs), *(self._chunk(index, delta, None) for delta in others)]
        )

    def _chunk(self, index: int, delta: Delta, logprobs: Body | None) -> str:
        if isinstance(delta, Text):
            return self._text(index, delta.text, logprobs)
        scores, news = self._logprobs(logprobs), json.dumps(_spelt(delta))
        return f'{self._head}{index},"delta":{news},"logprobs":{scores},"finish_reason":null}}]}}\n\n'

    def _text(self, index: int, text: str, logprobs: Body | None) -> str:
        scores = self._logprobs(logprobs)
        end = f'{self._after},"logprobs":{scores},"finish_reason":null}}]}}\n\n'
        return f"{self._head}{index}{self._before}{json.dumps(text)}{end}"

    def _logprobs(self, body: Body | None) -> str:
        if body is None:
            return "null"
        few = len(next(iter(body.values()))) < _FEW
        whole = self._refusal | body
        return json.dumps(whole) if few else written(whole).decode()

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
    """A delta as chats write it."""
    if isinstance(delta, Reasoning):
        return {"reasoning_content": delta.text, "reasoning": delta.text}
    if isinstance(delta, CallStart):
        function = {"name": delta.name, "arguments": ""}
        return {"tool_calls": [{"index": delta.number, "id": delta.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": delta.number, "function": {"arguments": delta.text}}]}


class SoFar:
    """The usage of a stream up to each of its events: the fields of OpenAI's, since no more is known yet."""

    def __init__(self, choices: Sequence[Choice], n: int) -> None:
        self._prompt = sum(len(choice.query.prompt) for choice in choices[::n])
        self._generated = 0

    def add(self, choice: Choice, update: Update) -> str:
        self._generated += 0 if choice.silent else len(update.token_ids)
        total = self._prompt + self._generated
        counts = {"prompt_tokens": self._prompt, "completion_tokens": self._generated, "total_tokens": total}
        return json.dumps(counts)
