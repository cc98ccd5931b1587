"""What the settings ask of a model, held against its checkpoint and the device; what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import torch

from baton.core.config import ALIGNED, AUTO, NO_COMPILER
from baton.core.errors import SettingError
from baton.core.settings import LoadSettings
from baton.loader.formats import WeightFormat
from baton.loader.gguf_blocks import METHOD
from baton.loader.packed_format import PackedFormat
from baton.loader.packings import packed_format, said_of
from baton.model.device import Device


def saved_dtype(config: Any) -> str:
    """The number format of a checkpoint with this stock config, by name."""
    saved = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None) or "float32"
    return str(saved).removeprefix("torch.")


def kept_packed(asked: LoadSettings, stock: Any, facts: Device) -> PackedFormat | None:
    """The format in which a packed checkpoint is kept; None if it is not packed, or has a quantizer of its own.

    Raises SettingError if its codes would be rounded again.
    """
    if facts.kind != "cpu":
        if said_of(stock).get("quant_method") == METHOD:
            raise SettingError("GGUF files are read on CPUs alone: --device cpu", param="device")
        return None
    packed = packed_format(stock, asked.source)
    if packed is not None and asked.quantize != "none":
        raise SettingError(
            f"--quantize {asked.quantize}: {asked.name} is packed already ({packed.name}), and rounding its numbers"
            " again would lose a second time: leave it out",
            param="quantize",
        )
    return packed


def dtype_of(asked: LoadSettings, stock: Any, facts: Device, format: WeightFormat) -> str:
    """The number format in which weights are loaded. Raises SettingError for one that the device does not have."""
    if asked.dtype == AUTO and facts.kind != "cuda":
        return AUTO
    if asked.dtype == AUTO and getattr(stock, "quantization_config", None):
        return AUTO
    if asked.dtype == AUTO and format.dtype is not None:
        return format.dtype
    return facts.dtype(asked.dtype, saved_dtype(stock))


def step_compiler(asked: LoadSettings, facts: Device) -> str | None:
    """The backend of torch.compile for decode steps. Raises SettingError if no decode steps can be compiled."""
    if asked.step_compiler == NO_COMPILER:
        return None
    why = {
        f"decode steps are compiled on CUDA, not on {facts.kind}": not facts.captures,
        "steps must be of constant shape, without --no-compile": not asked.compile,
        "aligned rows have no steps of constant shape": asked.shaping == ALIGNED,
        "--deterministic fixes shapes in its own way": asked.deterministic,
    }
    for reason, holds in why.items():
        if holds:
            raise SettingError(f"--step-compiler {asked.step_compiler}: {reason}", param="step_compiler")
    return asked.step_compiler


def device_asked(asked: str) -> torch.device:
    """The device of this name, or the best one. Raises SettingError if the device is not there."""
    if asked == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch finds no CUDA device here", param="device")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise SettingError("--device mps: torch finds no MPS device here", param="device")
    return torch.device(asked)
