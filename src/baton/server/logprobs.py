"""Log-probabilities as the API writes them: for completions four lists side by side, for chat a list of tokens."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from baton.core.events import TokenLogprobs
from baton.engine.client import Tokenizer

Body = dict[str, list[Any]]
"""`logprobs` of a choice, or of a piece of it."""

_IMPOSSIBLE = -9999.0
_COMPLETION_LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


class CompletionLogprobs:
    """Log-probabilities of one choice of /v1/completions. Offsets count the characters of the choice's text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def echo(self, prompt: Sequence[int], text: str, scored: Sequence[TokenLogprobs]) -> Body:
        """Log-probabilities of the prompt, whose first token has none; `text` is what the choice begins with."""
        body: Body = {name: [] for name in _COMPLETION_LISTS}
        for token, one in zip(prompt, (None, *scored), strict=True):
            begin = self._offset
            self._add(body, token, one)
            if self._hidden(token) and not text.startswith(self._name(token), begin):
                self._offset = begin  # a special token that the tokenizer added by itself
            elif not begin and self._name(token).startswith(" ") and not text.startswith(" "):
                self._offset -= 1  # as some tokenizers write a text's first word
        self._offset = len(text)
        self._decoder.reset()
        return body

    def answer(self, scored: Sequence[TokenLogprobs]) -> Body:
        body: Body = {name: [] for name in _COMPLETION_LISTS}
        for one in scored:
            begin = self._offset
            self._add(body, one.token_id, one)
            if self._hidden(one.token_id):
                self._offset = begin
        return body

    def _add(self, body: Body, token: int, entry: TokenLogprobs | None) -> None:
        body["tokens"].append(self._name(token))
        body["token_logprobs"].append(None if entry is None else _finite(entry.logprob))
        body["top_logprobs"].append(None if entry is None else self._top(entry))
        body["text_offset"].append(self._offset)
        self._offset += len(self._decoder.decode(self._tokenizer.piece(token)))

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The best tokens, best first, and the token itself. Of several with the same text the best one stays."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.best, (entry.token_id, entry.logprob)):
            top.setdefault(self._name(token), _finite(logprob))
        return top

    def _hidden(self, token: int) -> bool:
        """Whether it is a special token, which has no text."""
        return not self._tokenizer.decode([token])

    def _name(self, token: int) -> str:
        """The token's text; for a part of a character its bytes, as OpenAI writes them."""
        piece = self._tokenizer.piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class ChatLogprobs:
    """Log-probabilities of one choice of /v1/chat/completions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def answer(self, scored: Sequence[TokenLogprobs]) -> Body:
        return {"content": [self._token(one) for one in scored]}

    def _token(self, entry: TokenLogprobs) -> dict[str, object]:
        best = [self._one(token, logprob) for token, logprob in entry.best]
        return {**self._one(entry.token_id, entry.logprob), "top_logprobs": best}

    def _one(self, token: int, logprob: float) -> dict[str, object]:
        piece = self._tokenizer.piece(token)
        return {"token": piece.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(piece)}


def _finite(logprob: float) -> float:
    """JSON has no infinity: an impossible token has the number that OpenAI and vLLM give it."""
    return max(logprob, _IMPOSSIBLE)


def joined(bodies: Iterable[Body]) -> Body | None:
    """Joins the log-probabilities of one choice's pieces; None if there are none."""
    whole: Body = {}
    for body in bodies:
        for name, values in body.items():
            whole.setdefault(name, []).extend(values)
    return whole or None
