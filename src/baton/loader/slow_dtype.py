"""Number formats in which torch is slower than in float32 on this processor, measured on a model's own product."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from baton.model.device import free_bytes

_HALVES = (torch.bfloat16, torch.float16)
_MOST_NUMBERS = 1 << 23
"""Of the weight that is measured: more than caches hold, read in a few milliseconds."""
_ROWS = (1, 16)
_ROUNDS = 5
# What is left for everything but weights.
_ROOM_BYTES = 1 << 30
WORTHWHILE = 1.2


def float32_gain(model: PreTrainedModel) -> float:
    """How many times as long torch takes for the model's products in its own number format as in float32.

    Measured on a part of its largest product, for one row and for several. Returns 0 if it is float32 already, if it
    has no such layer, or if there is no memory for it in float32.
    """
    linear = [module.weight for module in model.modules() if isinstance(module, nn.Linear) and module.weight.numel()]
    if model.device.type != "cpu" or model.dtype not in _HALVES or not linear:
        return 0.0
    grown = sum(parameter.nbytes for parameter in model.parameters() if parameter.dtype in _HALVES)
    if grown + _ROOM_BYTES > free_bytes(model.device):
        return 0.0
    weight = max(linear, key=Tensor.numel).detach()
    weight = weight[: max(1, _MOST_NUMBERS // weight.shape[1])]
    return _seconds(weight) / _seconds(weight.float())


def _seconds(weight: Tensor) -> float:
    """Of a product with each number of rows; the median, since the first one prepares."""
    took = []
    with torch.inference_mode():
        rows = [torch.ones(count, weight.shape[1], dtype=weight.dtype) for count in _ROWS]
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            for some in rows:
                nn.functional.linear(some, weight)
            took.append(time.perf_counter() - began)
    return statistics.median(took)
