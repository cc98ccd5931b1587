"""`baton check --perplexity`: how well a model predicts a text, in its own format and in the one that is served.

The model alone scores the text with its own weights and stock attention (`loader/scores.py`). The engine scores the
same windows as prompts of a batch, by the log-probabilities that clients can ask for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from baton.compose import make_engine
from baton.core.config import Config
from baton.core.errors import Refused
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.core.settings import resolve
from baton.loader.facts import facts_of
from baton.loader.loaded import Loaded
from baton.loader.scores import Scores, Tell
from baton.policy.baton import Baton
from baton.sampling.sampler import Sampler

ROWS = 4
# The 97.5 % point of the normal distribution.
_BOUND = 1.96


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of the engine against those of the model alone.

    `ratio`: of the two perplexities. `ratio_bound`: so far it may be off with 95 % confidence, as far as tokens are a
    sample of all texts like this one. `same_likeliest`: share of tokens for which both would have said the same.
    """

    tokens: int
    alone: float
    served: float
    ratio: float
    ratio_bound: float
    same_likeliest: float


def served(
    loaded: Loaded, config: Config, windows: Sequence[tuple[int, ...]], tell: Tell = lambda count: None
) -> Scores:
    """Scores windows of a text as clients are told it, several at a time. `tell` is called as they are scored."""
    columns = str(max(map(len, windows)) + 1)
    asked = replace(config, max_model_len=columns, max_batch_size=str(ROWS), policy="baton", prefix_cache=False)
    settings = resolve(asked, facts_of(loaded))
    engine = make_engine(loaded, replace(settings, max_rows=ROWS), Baton(), sampler=Sampler(end_ids=()))
    by_window = {str(at): Scores() for at in range(len(windows))}

    def deliver(updates: list[Update]) -> None:
        for update in updates:
            if update.error is not None:
                raise Refused(f"window {update.query_id} failed: {update.error}")
            scores = by_window[update.query_id]
            scores.logprobs += [one.logprob for one in update.prompt_logprobs]
            scores.likeliest += [one.best[0][0] for one in update.prompt_logprobs]
            tell(len(update.prompt_logprobs))

    for at, window in enumerate(windows):
        engine.accept(_query(at, window), deliver)
    while engine.busy:
        engine.iterate()
        engine.flush()
    scores = Scores()
    for one in by_window.values():
        scores.logprobs += one.logprobs
        scores.likeliest += one.likeliest
    return scores


def compared(alone: Scores, served: Scores) -> Compared:
    """Raises ValueError for scores of different texts."""
    pairs = list(zip(alone.logprobs, served.logprobs, strict=True))
    differences = [one - other for one, other in pairs]
    count = len(differences)
    mean = sum(differences) / count
    spread = math.sqrt(sum((one - mean) ** 2 for one in differences) / max(count - 1, 1) / count)
    same = sum(one == other for one, other in zip(alone.likeliest, served.likeliest, strict=True))
    return Compared(
        tokens=count,
        alone=alone.perplexity,
        served=served.perplexity,
        ratio=math.exp(mean),
        ratio_bound=math.exp(mean) * math.expm1(_BOUND * spread),
        same_likeliest=same / count,
    )


def _query(at: int, window: tuple[int, ...]) -> Query:
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, prompt_logprobs=1)
    return Query(id=str(at), prompt=window, params=params, seed=at, limit_tokens=1, arrived=0.0)
