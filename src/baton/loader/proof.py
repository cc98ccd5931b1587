"""What a way to run a model must give: the logits of the stock model alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from baton.core.errors import LoadError
from baton.loader.formats import ROUNDED_ACTIVATIONS
from baton.loader.selfcheck import (
    STEPS,
    TOLERANCE,
    at_once,
    check_texts,
    self_check,
    stock_logits,
    tolerance_of,
    use_reference_attention,
)
from baton.model.packed_layers import packed_layers
from baton.model.port import Forward
from baton.model.probe import own_words


@dataclass(frozen=True, slots=True)
class Reason:
    """`why` this way to run a model was not taken, though it is faster than the one that was."""

    way: str
    why: str

    def __str__(self) -> str:
        return f"not {self.way}: {self.why}"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a way must give: `expected[i]` logits `[STEPS + 1, vocabulary]` for the text `texts[i]` `[tokens]`.

    `tolerance`: of logits relative to the largest; None takes that of the model's number format.
    """

    model: PreTrainedModel
    texts: list[Tensor]
    expected: list[Tensor]
    tolerance: float | None = None

    def check(self, forward: Forward, tolerance: float | None = None, *, choosing: bool = False) -> None:
        """Raises LoadError for other logits. `choosing`: see `self_check`."""
        within = tolerance or self.tolerance
        self_check(self.model, forward, self.texts, self.expected, tolerance=within, choosing=choosing)


def proof_of(model: PreTrainedModel, tolerance: float | None = None) -> Proof:
    """Runs the stock model alone. Raises LoadError if it does not run."""
    use_reference_attention(model)
    texts = check_texts(model)
    # Packed layers are unpacked for each forward, so the whole model runs once.
    packed = bool(packed_layers(model))
    texts = texts[:1] if packed else texts
    try:
        expected = [at_once(model, text) for text in texts] if packed else stock_logits(model, texts)
    except Exception as error:
        raise LoadError(own_words("it does not run with a stock cache", error)) from error
    if packed:
        tolerance = max(ROUNDED_ACTIVATIONS, TOLERANCE.get(model.dtype, ROUNDED_ACTIVATIONS))
    elif tolerance is None and model.dtype is not torch.float32:
        tolerance = tolerance_of(model, texts, [len(text) - STEPS for text in texts], expected)
    return Proof(model, texts, expected, tolerance)
