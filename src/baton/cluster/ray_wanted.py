"""How many engines Ray Serve is to have: what the engines themselves want, summed and rounded up."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingContext


def wanted(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Serve's policy. Bounds and delays are Serve's: here is only the number.

    Each engine says how many engines its own load would keep busy (`observe/replicas.py`).
    """
    told = (context.aggregated_metrics or {}).get("rows_wanted", {})
    total = sum(told.values())
    return max(1, math.ceil(total - 1e-9)), {"rows_wanted": total}
