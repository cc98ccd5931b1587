"""Log-probabilities of tokens, of the model's own logits: before temperature, penalties, bias and filters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, finfo, float32, tensor

from baton.core.events import TokenLogprobs
from baton.core.query import Query

_LEAST = finfo(float32).min


def token_logprobs(logits: Tensor, tokens: Sequence[int], best: Sequence[int]) -> list[TokenLogprobs]:
    """For each row of `[n, vocabulary]` float32 raw logits: its token's log-softmax, its rank, and so many `best`."""
    shares = logits - logits.logsumexp(-1, keepdim=True)
    # A difference that overflows becomes a finite number: JSON has no infinity.
    shares = shares.clamp(min=_LEAST)
    own = shares.gather(-1, tensor(tokens, device=logits.device)[:, None])
    ranks = (shares > own).sum(-1) + 1
    values, ids = shares.topk(min(max(best), logits.shape[-1]))
    rows = zip(tokens, own[:, 0].tolist(), ranks.tolist(), ids.tolist(), values.tolist(), best, strict=True)
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(top[:count], theirs, strict=False)))
        for token, logprob, rank, top, theirs, count in rows
    ]


def drawn_logprobs(logits: Tensor, queries: Sequence[Query], drawn: Sequence[int | None]) -> dict[str, TokenLogprobs]:
    """Log-probabilities of tokens drawn from these logits `[n, vocabulary]`, for the queries that ask."""
    asked = [
        (row, query.id, token, query.params.logprobs)
        for row, (query, token) in enumerate(zip(queries, drawn, strict=True))
        if query.params.logprobs is not None and token is not None
    ]
    if not asked:
        return {}
    rows, names, tokens, best = zip(*asked, strict=True)
    return dict(zip(names, token_logprobs(logits[list(rows)], tokens, best), strict=True))
