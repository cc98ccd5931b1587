"""A query's output: tokens become text, ends are recognised, updates are gathered and handed over together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from baton.core.events import TokenLogprobs, Update, Usage
from baton.core.query import Query
from baton.core.text import TextStream
from baton.engine.inbox import Deliver

STOP, LENGTH = "stop", "length"
TextOf = Callable[[Query], TextStream]


@dataclass(slots=True)
class OutputStream:
    """One query's output, and what of it was not delivered yet."""

    query: Query
    text: TextStream
    deliver: Deliver
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    generated: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)

    def append(self, token: int, end_ids: Collection[int], logprobs: TokenLogprobs | None = None) -> str | None:
        """Takes the next token. Returns the finish reason if it was the last."""
        params = self.query.params
        self.tokens.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        self.generated += 1
        ends = token in params.stop_token_ids or (token in end_ids and not params.ignore_eos)
        if not ends:
            self.pieces.append(self.text.push(token, may_stop=self.generated > params.min_tokens))
            if self.text.stopped:
                return STOP
        if ends or self.generated >= self.query.limit_tokens:
            self.pieces.append(self.text.finish())
            return STOP if ends or self.text.stopped else LENGTH
        return None

    def update(
        self,
        reason: str | None = None,
        error: str | None = None,
        usage: Usage | None = None,
        *,
        infeasible: bool = False,
    ) -> Update:
        """Returns everything that is new since the last update."""
        update = Update(
            self.query.id,
            tuple(self.tokens),
            "".join(self.pieces),
            reason,
            error,
            usage,
            tuple(self.logprobs),
            tuple(self.prompt_logprobs),
            infeasible,
            self.text.stopped_by if reason == STOP else None,
        )
        for new_items in (self.tokens, self.pieces, self.logprobs, self.prompt_logprobs):
            new_items.clear()
        return update


class OutputProcessor:
    """The outputs of all live queries. `flush` hands over everything once per iteration and subscriber."""

    def __init__(self, text_of: TextOf, end_ids: Collection[int]) -> None:
        self._text_of = text_of
        self._end_ids = frozenset(end_ids)
        self._live: dict[str, OutputStream] = {}
        self._out: dict[Deliver, list[Update]] = {}

    def open(self, query: Query, deliver: Deliver, told: Sequence[int] = ()) -> None:
        """Opens a query's stream.

        `told`: tokens that its asker was told before, by another engine. They are taken silently, so that half a
        character and what may begin a stop string are held back as they were there. Raises what the decoder does.
        """
        stream = OutputStream(query, self._text_of(query), deliver)
        for token in told:
            stream.generated += 1
            stream.text.push(token, may_stop=stream.generated > query.params.min_tokens)
        self._live[query.id] = stream

    def append(self, query_id: str, token: int, logprobs: TokenLogprobs | None = None) -> str | None:
        """Takes the query's next token. Returns the finish reason if it was the last. Raises the decoder's errors."""
        return self._live[query_id].append(token, self._end_ids, logprobs)

    def append_prompt(self, query_id: str, logprobs: Sequence[TokenLogprobs]) -> None:
        """Takes log-probabilities of the next prompt tokens. They are delivered with the first token."""
        self._live[query_id].prompt_logprobs.extend(logprobs)

    def close(self, query_id: str, reason: str, error: str | None, usage: Usage, *, infeasible: bool = False) -> None:
        stream = self._live.pop(query_id)
        self._out.setdefault(stream.deliver, []).append(stream.update(reason, error, usage, infeasible=infeasible))

    def flush(self) -> None:
        """Delivers everything that is new, once per subscriber."""
        for stream in self._live.values():
            if stream.tokens:
                self._out.setdefault(stream.deliver, []).append(stream.update())
        out, self._out = self._out, {}
        for deliver, updates in out.items():
            deliver(updates)
