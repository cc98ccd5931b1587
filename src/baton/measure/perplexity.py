"""`baton check --perplexity`: how well a model predicts a text, in its own format and in the one that is served.

The text is cut into windows, each by itself: all tokens of a window but its first are scored. The model alone scores
them with its own weights and stock attention; then the engine scores them as prompts of a batch, by the
log-probabilities that clients can ask for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import DynamicCache, PreTrainedModel

from baton.compose import facts_of, make_engine
from baton.core.config import Config
from baton.core.errors import LoadError, Refused, SettingError
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.core.settings import resolve
from baton.loader.load import Loaded, context_of
from baton.model.probe import call
from baton.model.rotary import as_made
from baton.policy.baton import Baton
from baton.sampling.sampler import Sampler

WINDOW = 512
"""Tokens of a window, or the context if that is shorter."""
ROWS = 4
# The 97.5 % point of the normal distribution.
_BOUND = 1.96

Tell = Callable[[int], None]
"""Called with the number of tokens that were scored since the last call."""


@dataclass(slots=True)
class Scores:
    """What one way of running gives for all scored tokens of a text, in their order.

    `logprobs`: natural logarithms. `likeliest`: the token that it would have said instead.
    """

    logprobs: list[float] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


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


class Text:
    """A text to score. `windows`: its tokens, once it is cut. `alone`: the scores of the model alone."""

    def __init__(self, text: str, window: int = WINDOW, tell: Tell = lambda count: None) -> None:
        """Raises SettingError for a window without a token to score."""
        if window < 2:
            raise SettingError(f"a window of {window} tokens has none to score", param="window")
        self.text = text
        self.window = window
        self.windows: list[tuple[int, ...]] = []
        self.alone = Scores()
        self._tell = tell

    def cut(self, tokens: Sequence[int], model: PreTrainedModel) -> None:
        """Cuts the text's tokens into windows that fit the model's context.

        A last window of a single token is left out. Raises SettingError if none is left.
        """
        # The engine's prompts leave room for the one token that is drawn behind them.
        size = min(self.window, context_of(model.config) - 1)
        pieces = [tuple(tokens[at : at + size]) for at in range(0, len(tokens), size)]
        self.windows = [piece for piece in pieces if len(piece) > 1]
        if not self.windows:
            raise SettingError("the text has less than two tokens", param="perplexity")

    @property
    def scored(self) -> int:
        return sum(len(window) - 1 for window in self.windows)

    def score_alone(self, model: PreTrainedModel) -> None:
        """Scores the windows while the model is still stock, one after the other."""
        as_made(model)
        with torch.inference_mode():
            for window in self.windows:
                ids = torch.tensor([window], device=model.device)
                positions = torch.arange(len(window), device=model.device)[None]
                cache = DynamicCache(config=model.config)
                logprobs = call(model, ids, positions, cache).logits[0, :-1].float().log_softmax(-1)
                self.alone.logprobs += logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
                self.alone.likeliest += logprobs.argmax(-1).tolist()
                self._tell(len(window) - 1)

    def score_served(self, loaded: Loaded, config: Config) -> Scores:
        """Scores the text as clients are told it, several windows at a time."""
        columns = str(max(map(len, self.windows)) + 1)
        asked = replace(config, max_model_len=columns, max_batch_size=str(ROWS), policy="baton", prefix_cache=False)
        settings = resolve(asked, facts_of(loaded))
        engine = make_engine(loaded, replace(settings, max_rows=ROWS), Baton(), sampler=Sampler(end_ids=()))
        by_window: dict[str, Scores] = {str(at): Scores() for at in range(len(self.windows))}

        def deliver(updates: list[Update]) -> None:
            for update in updates:
                if update.error is not None:
                    raise Refused(f"window {update.query_id} failed: {update.error}")
                scores = by_window[update.query_id]
                scores.logprobs += [one.logprob for one in update.prompt_logprobs]
                scores.likeliest += [one.best[0][0] for one in update.prompt_logprobs]
                self._tell(len(update.prompt_logprobs))

        for at, window in enumerate(self.windows):
            engine.accept(_query(at, window), deliver)
        while engine.busy:
            engine.iterate()
            engine.flush()
        served = Scores()
        for one in by_window.values():
            served.logprobs += one.logprobs
            served.likeliest += one.likeliest
        if len(served.logprobs) != self.scored:
            raise LoadError(f"{len(served.logprobs)} of {self.scored} tokens were scored")
        return served


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
