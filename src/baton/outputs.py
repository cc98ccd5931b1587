"""The results of the Python interface, and how an engine's updates fill them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from baton.core.errors import DeadlinePassed, Infeasible, QueryFailed
from baton.core.events import TokenLogprobs, Update, Usage
from baton.core.query import Query, RequestOptions, SamplingParams
from baton.engine.client import Client, Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-softmax of the model's raw logits, before temperature, penalties, bias and filters; `rank` 1 is the best."""

    logprob: float
    rank: int
    decoded_token: str


Logprobs = dict[int, Logprob]
"""At one token: by token id, as many of the best tokens as asked for, and the actual token."""


@dataclass(slots=True)
class Completion:
    """One continuation. `finish_reason` is "stop" or "length"; None while it goes on.

    If it could not be finished, `finish_reason` is "error" (or "expired", "cancelled") and `error` says why; what was
    generated before is kept. `logprobs`: one for each of `token_ids`, and `cumulative_logprob` their tokens' sum; None
    if not asked for.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    cumulative_logprob: float | None = None
    logprobs: list[Logprobs] | None = None
    error: str | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its `n` continuations.

    `prompt_logprobs`: one for each prompt token, None for the first; None if not asked for, or not known yet.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[Completion]
    prompt_logprobs: list[Logprobs | None] | None = None

    @property
    def finished(self) -> bool:
        return all(output.finish_reason is not None for output in self.outputs)


def prepare(
    client: Client,
    prompts: Sequence[tuple[str | None, list[int]]],
    params: Sequence[SamplingParams],
    options: Sequence[RequestOptions],
) -> tuple[list[RequestOutput], dict[str, QueryOutput]]:
    """Empty outputs, and for each query's id the query with the completion that it fills."""
    outputs: list[RequestOutput] = []
    asked: dict[str, QueryOutput] = {}
    for (text, tokens), param, term in zip(prompts, params, options, strict=True):
        queries = client.queries(tokens, param.with_defaults(client.defaults), term)
        completions = [Completion(index) for index in range(len(queries))]
        output = RequestOutput(text, tokens, completions)
        outputs.append(output)
        for query, completion in zip(queries, completions, strict=True):
            asked[query.id] = QueryOutput(query, completion, output)
    return outputs, asked


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """A query, and what its updates fill."""

    query: Query
    completion: Completion
    output: RequestOutput

    def take(self, update: Update, tokenizer: Tokenizer) -> None:
        completion, params = self.completion, self.query.params
        completion.token_ids.extend(update.token_ids)
        completion.text += update.text
        completion.finish_reason, completion.error = update.finish_reason, update.error
        completion.usage = update.usage
        if params.logprobs is not None:
            logprobs = completion.logprobs = completion.logprobs or []
            logprobs.extend(_logprobs(one, tokenizer) for one in update.logprobs)
            own = sum(one.logprob for one in update.logprobs)
            completion.cumulative_logprob = (completion.cumulative_logprob or 0.0) + own
        # The choices of one prompt share its log-probabilities.
        if params.prompt_logprobs is not None and update.token_ids and self.output.prompt_logprobs is None:
            self.output.prompt_logprobs = [None, *(_logprobs(one, tokenizer) for one in update.prompt_logprobs)]


def failure_of(update: Update) -> QueryFailed | None:
    """Returns the error that an update reports, if there is one."""
    if update.error is None:
        return None
    kind = Infeasible if update.infeasible else DeadlinePassed if update.finish_reason == "expired" else QueryFailed
    return kind(update.error)


def _logprobs(entry: TokenLogprobs, tokenizer: Tokenizer) -> Logprobs:
    ranked = {token: (logprob, rank) for rank, (token, logprob) in enumerate(entry.best, 1)}
    ranked.setdefault(entry.token_id, (entry.logprob, entry.rank))
    return {
        token: Logprob(logprob, rank, tokenizer.piece(token).decode(errors="replace"))
        for token, (logprob, rank) in ranked.items()
    }
