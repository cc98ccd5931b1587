"""How fast this machine reads its memory, which bounds the steps of few rows: each reads all weights once."""

from __future__ import annotations

import time

import torch

_BYTES = 256 << 20  # more than any cache holds
_SECONDS = 0.3


def read_bandwidth(seconds: float = _SECONDS) -> float:
    """Bytes a second that torch's threads read from memory, the best pass of some within `seconds`."""
    numbers = torch.ones(_BYTES // 4)
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        began = time.perf_counter()
        numbers.sum()
        best = max(best, _BYTES / (time.perf_counter() - began))
    return best
