"""Waits under load: first tokens and gaps between tokens, with a bound on stalls and without one."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any

from baton.loader.loaded import Loaded

from .asks import Ask
from .engine import engine_run


def online(
    loaded: Loaded, asks: Sequence[Ask], rows: int, columns: int, rate: float, cap: float
) -> list[dict[str, Any]]:
    """Arrivals at random at 50 and 80 % of what went through at most, with a stall bound and without one."""
    measurements = []
    per_second = rate / statistics.mean(ask.tokens for ask in asks)
    for share, bound in itertools.product((0.5, 0.8), (0.05, 10.0)):
        dice = random.Random(1)
        at, arrivals = 0.0, list[float]()
        while at < 0.8 * cap and len(arrivals) < len(asks):
            arrivals.append(at)
            at += dice.expovariate(per_second * share)
        ran = engine_run(
            loaded, asks[: len(arrivals)], rows=rows, columns=columns, cap=cap, arrivals=arrivals, stall_seconds=bound
        )
        measurements.append({"load": share, "stall bound s": bound, "queries": len(arrivals), **ran})
    return measurements
