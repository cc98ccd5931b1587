"""The machine: what it is, and the two limits with which steps are compared."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from baton.cuda import ragged_attention as ragged

from .timing import seconds_of


def machine(device: torch.device) -> dict[str, Any]:
    """Names, and the two ceilings: a large copy, bytes read and written, and a large product on random numbers."""
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "device": str(device)}
    cuda = device.type == "cuda"
    if cuda:
        facts |= {"name": torch.cuda.get_device_name(), "triton": ragged.triton_decode is not None}
    size = 2**32 if cuda else 2**22
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * size / seconds_of(lambda: target.copy_(source), device, 20 if cuda else 2)
    side = 8192 if cuda else 128
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    multiplied = 2 * side**3 / seconds_of(lambda: a @ b, device, 10 if cuda else 2)
    return {**facts, "copy GB/s": copied / 1e9, "product TFLOP/s": multiplied / 1e12}
