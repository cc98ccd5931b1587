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
    """Those of one choice of /v1/completions, as they come. Offsets count the characters of the choice's text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def echo(self, prompt: Sequence[int], text: str, told: Sequence[TokenLogprobs]) -> Body:
        """Those of the prompt, whose first token has none; `text` is what the choice begins with."""
        body: Body = {name: [] for name in _COMPLETION_LISTS}
        for token, one in zip(prompt, (None, *told), strict=True):
            begin = self._offset
            self._add(body, token, one)
            if self._hidden(token) and not text.startswith(self._name(token), begin):
                self._offset = begin  # a special token that the tokenizer added by itself
            elif not begin and self._name(token).startswith(" ") and not text.startswith(" "):
                self._offset -= 1  # as some tokenizers write a text's first word
        self._offset = len(text)
        self._decoder.reset()
        return body

    def answer(self, told: Sequence[TokenLogprobs]) -> Body:
        body: Body = {name: [] for name in _COMPLETION_LISTS}
        for one in told:
            begin = self._offset
            self._add(body, one.token_id, one)
            if self._hidden(one.token_id):
                self._offset = begin
        return body

    def _add(self, body: Body, token: int, told: TokenLogprobs | None) -> None:
        body["tokens"].append(self._name(token))
        body["token_logprobs"].append(None if told is None else _finite(told.logprob))
        body["top_logprobs"].append(None if told is None else self._top(told))
        body["text_offset"].append(self._offset)
        self._offset += len(self._decoder.decode(self._tokenizer.piece(token)))

    def _top(self, told: TokenLogprobs) -> dict[str, float]:
        """The best tokens, best first, and the token itself; of several with the same text the best."""
        top: dict[str, float] = {}
        for token, logprob in (*told.best, (told.token_id, told.logprob)):
            top.setdefault(self._name(token), _finite(logprob))
        return top

    def _hidden(self, token: int) -> bool:
        """Whether it is a special token, which has no text."""
        return not self._tokenizer.decode([token])

    def _name(self, token: int) -> str:
        """The token's text; the bytes of a part of a character, as OpenAI writes them."""
        piece = self._tokenizer.piece(token)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class ChatLogprobs:
    """Those of one choice of /v1/chat/completions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def answer(self, told: Sequence[TokenLogprobs]) -> Body:
        return {"content": [self._token(one) for one in told]}

    def _token(self, told: TokenLogprobs) -> dict[str, object]:
        best = [self._one(token, logprob) for token, logprob in told.best]
        return {**self._one(told.token_id, told.logprob), "top_logprobs": best}

    def _one(self, token: int, logprob: float) -> dict[str, object]:
        piece = self._tokenizer.piece(token)
        return {"token": piece.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(piece)}


def _finite(logprob: float) -> float:
    """JSON has no infinity: a token that cannot come has the number that OpenAI and vLLM give it."""
    return max(logprob, _IMPOSSIBLE)


def joined(bodies: Iterable[Body]) -> Body | None:
    """Pieces of one choice's as one; None where there are none."""
    whole: Body = {}
    for body in bodies:
        for name, values in body.items():
            whole.setdefault(name, []).extend(values)
    return whole or None
