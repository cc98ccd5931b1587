"""Whether a model's numbers depend on its cache's length, apart from the masks that stock makes from it.

Only if they do not can rows of different lengths share a call.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, cache_utils, masking_utils

from baton.model.probe import PROBE_TOKENS, call

# One more shows comparisons and look-ups; very many show rounding and effects that begin late.
_BEYOND = (1, 1 << 20)
_WHO_ASKS_FOR_OTHERS = (__name__, cache_utils.__name__)


def length_matters(model: PreTrainedModel) -> bool:
    """Runs the model with caches that report a longer length to the model's own code, but not to the mask.

    Code that fails then is taken to depend on the length too.
    """
    try:
        truth, asked = _logits(model, 0)
        return asked and not all(truth.equal(_logits(model, beyond)[0]) for beyond in _BEYOND)
    except Exception:
        return True


def _logits(model: PreTrainedModel, beyond: int) -> tuple[Tensor, bool]:
    """The logits of a prompt and one token after it, `[tokens, vocabulary]`, and whether the model's own code asked."""
    cache = DynamicCache(config=model.config)
    answers = []
    for layer in cache.layers:
        if hasattr(layer, "get_seq_length"):
            answers.append(_Longer(layer.get_seq_length, beyond))
            layer.get_seq_length = answers[-1]  # type: ignore[method-assign]
    tokens = torch.arange(PROBE_TOKENS + 1, device=model.device)[None]
    masked = "attention_mask" in inspect.signature(model.forward).parameters
    logits = []
    with torch.inference_mode():
        for fed in (slice(0, PROBE_TOKENS), slice(PROBE_TOKENS, PROBE_TOKENS + 1)):
            # With a mask, as where rows are not equally long.
            mask = {"attention_mask": torch.ones_like(tokens[:, : fed.stop])} if masked else {}
            logits.append(call(model, tokens[:, fed], tokens[:, fed], cache, **mask).logits[0])
    return torch.cat(logits), any(answer.asked for answer in answers)


class _Longer:
    """A cache layer's `get_seq_length`; `beyond` is added to its answer unless a mask is made of it.

    `asked`: whether anything else was.
    """

    def __init__(self, stock: Callable[[], int], beyond: int) -> None:
        self._stock = stock
        self._beyond = beyond
        self.asked = False

    def __call__(self) -> int:
        if _for_a_mask(sys._getframe(1)):
            return self._stock()
        self.asked = True
        return self._stock() + self._beyond


def _for_a_mask(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_globals.get("__name__") in _WHO_ASKS_FOR_OTHERS:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == masking_utils.__name__
