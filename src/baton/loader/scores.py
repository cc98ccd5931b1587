"""How well a stock model alone predicts a text, with its own weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import DynamicCache, PreTrainedModel

from baton.core.errors import SettingError
from baton.loader.gguf_file import place_of
from baton.loader.load import context_of
from baton.loader.stock import read_tokenizer
from baton.model.probe import call
from baton.model.rotary import as_made

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


class Alone:
    """Scores a text while the model is still stock; see `load`.

    The text is cut into windows of so many tokens, each by itself; all tokens of a window but its first are scored.
    `windows`: of token ids. `on_begin` is called with the number of tokens to score, and `tell` as they are scored.
    """

    def __init__(
        self,
        text: str,
        window: int,
        tokenize: Callable[[str], Sequence[int]],
        *,
        on_begin: Tell = lambda count: None,
        tell: Tell = lambda count: None,
    ) -> None:
        self.windows: list[tuple[int, ...]] = []
        self.scores = Scores()
        self._text = text
        self._window = window
        self._tokenize = tokenize
        self._on_begin = on_begin
        self._tell = tell

    def __call__(self, model: PreTrainedModel) -> None:
        """Raises SettingError for a text of less than two tokens."""
        self.scores = Scores()
        # The engine's prompts leave room for the one token that is drawn behind them.
        self.windows = cut(self._tokenize(self._text), min(self._window, context_of(model.config) - 1))
        self._on_begin(self.scored)
        as_made(model)
        with torch.inference_mode():
            for window in self.windows:
                ids = torch.tensor([window], device=model.device)
                positions = torch.arange(len(window), device=model.device)[None]
                cache = DynamicCache(config=model.config)
                logprobs = call(model, ids, positions, cache).logits[0, :-1].float().log_softmax(-1)
                self.scores.logprobs += logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()
                self.scores.likeliest += logprobs.argmax(-1).tolist()
                self._tell(len(window) - 1)

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return sum(len(window) - 1 for window in self.windows)


def cut(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Returns windows of so many tokens, without a last one of a single token. Raises SettingError if none is left."""
    pieces = [tuple(tokens[at : at + size]) for at in range(0, len(tokens), size)]
    windows = [piece for piece in pieces if len(piece) > 1]
    if not windows:
        raise SettingError("the text has less than two tokens", param="perplexity")
    return windows


def tokenizer_of(source: str, *, code: bool) -> Callable[[str], list[int]]:
    """Returns what makes tokens of a text, with the special tokens that the model's tokenizer adds by itself.

    `code`: whether Python code that comes with the model may run. Raises LoadError.
    """
    tokenizer = read_tokenizer(place_of(source, code=code), trust_remote_code=code)
    return lambda text: list(tokenizer(text)["input_ids"])
