"""A model that is loaded and ready to run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from baton.core.generation_defaults import NO_DEFAULTS, GenerationDefaults
from baton.cuda.virtual_memory import Driver
from baton.loader.choose import Choice
from baton.loader.formats import ROUNDED_ACTIVATIONS, WeightFormat
from baton.model.packed_layers import packed_layers
from baton.model.port import Forward
from baton.model.probe import Geometry
from baton.model.tokenizer import ModelTokenizer
from baton.native.forward import NativeForward


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to run.

    `packed`: how its checkpoint's packed layers are kept, and `widened`: why it computes in float32 though it was saved
    in another number format; for people. `driver`: maps memory as rows grow; None if not
    asked for, or for the reason `why_not_mapped`.
    """

    name: str
    model: PreTrainedModel
    choice: Choice
    tokenizer: ModelTokenizer
    end_ids: tuple[int, ...]
    context_tokens: int
    context_source: str
    dtype: torch.dtype
    device: torch.device
    parameters: int
    stamp: str
    weights: str = ""
    generation: GenerationDefaults = NO_DEFAULTS
    packed: str = ""
    widened: str = ""
    driver: Driver | None = None
    why_not_mapped: str = ""

    @property
    def forward(self) -> Forward:
        return self.choice.forward

    @property
    def geometry(self) -> Geometry:
        return self.forward.geometry

    @property
    def format(self) -> WeightFormat:
        return self.choice.format

    @property
    def tolerance(self) -> float:
        """Of logits, relative to the largest, for what the weights' format rounds."""
        return ROUNDED_ACTIVATIONS if self.packed else self.format.tolerance

    @property
    def chosen_share(self) -> float:
        """The share of experts that a token chooses, where only those are read; else 0."""
        return self.forward.program.chosen_share if isinstance(self.forward, NativeForward) else 0.0

    @property
    def chooses_roughly(self) -> bool:
        """Whether tokens choose experts by rounded numbers, so that a near tie may fall the other way than alone."""
        if not self.chosen_share:
            return False
        rounded = self.dtype is not torch.float32 or self.format.rounded_bits is not None
        return rounded or bool(packed_layers(self.model))

    @property
    def description(self) -> str:
        """How the model is run, for people."""
        return "; ".join(filter(None, (self.packed, self.choice.description, self.widened)))

    def fixed(self, rows: int) -> Loaded:
        """Returns the same model, run so that a row's bits do not depend on its company; see `Forward.fixed`."""
        return replace(self, choice=replace(self.choice, forward=self.forward.fixed(rows)))
