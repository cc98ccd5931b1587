"""The formats in which a model's weights can be kept, other than as saved; one object for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from baton.core.config import FLOAT8
from baton.core.errors import SettingError
from baton.cuda import float8
from baton.model.device import Device
from baton.native.kept_weights import KeptWeights
from baton.native.packing import AS_SAVED, INT4, INT4_EXACT, INT8, Packing

ROUNDED_TOLERANCE = 2e-1
"""Of logits, relative to the largest, against those of weights in 8 bits that were not rounded. Rounded weights are
other weights: this finds what is broken."""
ROUNDED_ACTIVATIONS = 1e-2
"""Likewise, against the model with the same weights, if products round activations to 16 bits."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How the weights of a model's linear layers are kept.

    `name`: as `--quantize` takes it. `rounded_bits`: of each weight, or None if it keeps the model's number format.
    `dtype`: the number format to load a model in that names none, or None for any.
    `native_only`: whether only native steps compute with it. `packing`: how native steps keep a product's weight.
    `tolerance`: of logits, relative to the largest, against the model with the rounded weights: activations are rounded
    too. `rough_tolerance`: against the model with its own weights, which rounding them changes. `kept`: the file of one
    model's weights in this format.
    """

    name: str
    rounded_bits: float | None = None
    dtype: str | None = None
    native_only: bool = False
    packing: Packing = AS_SAVED
    tolerance: float = 0.0
    rough_tolerance: float = ROUNDED_TOLERANCE
    kept: KeptWeights | None = None

    def check(self, device: Device) -> None:
        """Raises SettingError for a device that does not compute with it."""

    def prepare(self, model: PreTrainedModel, device: torch.device) -> None:
        """Changes a loaded model's layers, if torch computes with the format. Raises LoadError."""


class Float8(WeightFormat):
    """8 bits per weight on newer NVIDIA GPUs; see `cuda/float8.py`."""

    __slots__ = ()

    def check(self, device: Device) -> None:
        if not device.float8:
            message = (
                "--quantize float8 needs an NVIDIA GPU of compute capability 8.9 or newer; CPUs have int8 and int4"
            )
            raise SettingError(message, param="quantize")

    def prepare(self, model: PreTrainedModel, device: torch.device) -> None:
        float8.quantize(model, device)


PLAIN = WeightFormat("none")
_FORMATS = (
    PLAIN,
    # A scale for each output and group of inputs; see native/source/kernels.h.
    WeightFormat("int8", rounded_bits=8, native_only=True, packing=INT8, tolerance=ROUNDED_ACTIVATIONS),
    WeightFormat("int4", rounded_bits=4.5, native_only=True, packing=INT4, tolerance=1e-1, rough_tolerance=1.0),
    WeightFormat(
        "int4:exact",
        rounded_bits=4.5,
        native_only=True,
        packing=INT4_EXACT,
        tolerance=ROUNDED_ACTIVATIONS,
        rough_tolerance=1.0,
    ),
    Float8(FLOAT8, rounded_bits=8, dtype="bfloat16", tolerance=ROUNDED_TOLERANCE),
)
FORMATS: Mapping[str, WeightFormat] = {one.name: one for one in _FORMATS}
"""By the names of `core.config.QUANTIZE`."""
