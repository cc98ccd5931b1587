"""As much of the memory as the engine would take, and more work than fits."""

from __future__ import annotations

from typing import Any

import torch

from baton.kv.rectangle import footprint
from baton.model.load import Loaded

from .asks import Ask, prompt_of
from .engine import engine_run


def memory(loaded: Loaded, columns: int, cap: float) -> dict[str, Any]:
    """A budget of all memory that is free, and three times as much work at once: nothing may overflow."""
    cuda = loaded.device.type == "cuda"
    per_row = footprint(loaded.geometry.shapes, columns, loaded.dtype, loaded.device).of(columns)
    free_bytes = torch.cuda.mem_get_info()[0] if cuda else 64 * per_row
    # What `resolve` would choose: a rectangle of 80 % of it, with as many rows beside the batch as in it.
    rows = max(1, (int(free_bytes * 0.8) // per_row - 1) // 2)
    rows = min(rows, 384) if cuda else 4
    answer = columns // 32
    work = [Ask(prompt_of(columns - answer, at), answer) for at in range(3 * rows)]
    ran = engine_run(loaded, work, rows=rows, columns=columns, cap=cap, kv_bytes=rows * per_row)
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    return {"rows": rows, "free GB": free_bytes / 1e9, "peak GB": peak, **ran}
