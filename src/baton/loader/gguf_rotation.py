"""How a GGUF file's positions are turned, in transformers' words: plain, linear, yarn, or as in Llama 3.1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from baton.core.errors import LoadError

_ORIGINAL = "take the original checkpoint, with --quantize int4"
_SCALING = "rope.scaling."
_USUAL_BASE = 1e4
# What a file says beside its kind that changes nothing in its usual value; other values are refused.
_USUAL = {"finetuned": None, "attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0}
_FACTOR_DIGITS = 1e-5


def rotation(told: Mapping[str, Any], turned: int, head_dim: int, factors: Any) -> dict[str, Any]:
    """The rope_parameters of a file. Raises LoadError for rotations that transformers does not know.

    `turned`: numbers of a head that are turned. `factors`: by which wavelengths are longer, `[turned / 2]`, or None.
    """
    base = float(told.get("rope.freq_base", _USUAL_BASE))
    said = {key.removeprefix(_SCALING): value for key, value in told.items() if key.startswith(_SCALING)}
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if turned != head_dim:
        plain["partial_rotary_factor"] = turned / head_dim
    for key, usual in _USUAL.items():
        value = said.pop(key, usual)
        if usual is not None and value != usual:
            raise LoadError(f"has {_SCALING}{key} {value}, which is not read: {_ORIGINAL}")
    kind, factor = said.pop("type", "none"), float(said.pop("factor", 1.0) or 1.0)
    before = said.pop("original_context_length", None)
    beta = {name: said.pop(f"yarn_{name}") for name in ("beta_fast", "beta_slow") if f"yarn_{name}" in said}
    if said or (factors is not None and kind != "none") or kind not in ("none", "linear", "yarn"):
        what = f"{_SCALING}{min(said)}" if said else f"rotations of the kind {str(kind)[:40]!r}"
        raise LoadError(f"has {what}, which is not read: {_ORIGINAL}")
    if factors is not None:
        return {**plain, **_of_llama3(np.asarray(factors, np.float64).ravel(), base, turned)}
    if kind == "none" or factor == 1.0:
        return plain
    if kind == "linear":
        return {**plain, "rope_type": "linear", "factor": factor}
    if before is None:
        raise LoadError(f"has yarn without {_SCALING}original_context_length: {_ORIGINAL}")
    yarn = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(before)}
    return {**plain, **yarn, **beta}


def _of_llama3(factors: np.ndarray, base: float, turned: int) -> dict[str, Any]:
    """The parameters of which Llama 3.1 makes these factors. Raises LoadError if there are none.

    Only their ratios show in the factors, so the lower one is 1, as in all models of Llama.
    """
    wavelengths = 2 * math.pi * base ** (np.arange(0, turned, 2) / turned)
    factor = float(factors.max(initial=1.0))
    inside = (factors > 1 + _FACTOR_DIGITS) & (factors < factor * (1 - _FACTOR_DIGITS))
    tried = [(4.0, 8192)]
    if len(factors) == len(wavelengths) and inside.sum() >= 2:
        # 1 / factor is linear in 1 / wavelength between the two bounds.
        smooth = (1 / factors[inside] - 1 / factor) / (1 - 1 / factor)
        rise, start = np.polyfit(1 / wavelengths[inside], smooth, 1)
        tried.insert(0, (round(1 - 1 / start, 4), round(-rise / start)))
    for high, before in tried:
        if len(factors) == len(wavelengths) and np.allclose(
            _llama3(wavelengths, factor, high, before), factors, 1e-4, 0
        ):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 4),
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": int(before),
            }
    raise LoadError(f"has rope_freqs that are not those of Llama 3, which are not read: {_ORIGINAL}")


def _llama3(wavelengths: np.ndarray, factor: float, high: float, before: float) -> np.ndarray:
    smooth = np.clip((before / wavelengths - 1) / (high - 1), 0, 1)
    made: np.ndarray = 1 / ((1 - smooth) / factor + smooth)
    return made
