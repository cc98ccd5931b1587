"""Decode steps of a mixture of experts: in one grouped product, and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from baton.cuda.decode_steps import Steps
from baton.cuda.slots import Slot
from baton.kv.rectangle import Rectangle, footprint
from baton.loader.loaded import Loaded
from baton.model.hooked import BY_TOKEN, EXPERTS

from .models import MIXTURE, build, collect, cuda_forward
from .timing import seconds_of

# Tokens of each row.
_LENGTH = 512


def experts(device: torch.device, bandwidth: float, counts: Sequence[int], tiny: bool) -> list[dict[str, Any]]:
    """Steps of some layers of Qwen3-30B-A3B against their floor: the bytes that are read, over a copy's bandwidth.

    It reads as many different experts as rows choose on average, if all are equally likely.
    """
    loaded = build(MIXTURE, device, tiny)
    forward, config = cuda_forward(loaded), loaded.model.config
    length = 32 if tiny else _LENGTH
    of_experts = sum(p.nbytes for name, p in loaded.model.named_parameters() if ".experts." in name)
    others: Any = sum(p.nbytes for name, p in loaded.model.named_parameters() if ".experts." not in name)
    others -= loaded.model.get_input_embeddings().weight.nbytes
    chosen = config.num_experts_per_tok / config.num_experts
    measurements = []
    for rows in counts:
        columns = footprint(loaded.geometry.shapes, length, loaded.dtype, device).token_bytes * rows * length
        touched = 1 - (1 - chosen) ** rows
        floor = (others + touched * of_experts + columns) / bandwidth
        for how in dict.fromkeys((forward.torch_forward.hooked.experts, BY_TOKEN)):
            seconds = _seconds(loaded, rows, length, how)
            one = {
                "rows": rows,
                "experts": EXPERTS.get(how or "", how),
                "step ms": seconds * 1e3,
                "floor ms": floor * 1e3,
            }
            measurements.append({**one, "of the limit": floor / seconds, "experts read": touched})
    return measurements


def _seconds(loaded: Loaded, rows: int, length: int, how: str | None) -> float:
    cuda = loaded.device.type == "cuda"
    rectangle = Rectangle(
        loaded.geometry.shapes, capacity=rows, columns=length, dtype=loaded.dtype, device=loaded.device
    )
    for buffer in (*rectangle.keys, *rectangle.values):
        buffer.normal_()
    forward = cuda_forward(loaded)
    assert forward.ragged is not None
    run = Steps(forward.torch_forward.hooked, rectangle, forward.ragged, capture=cuda, experts=how)
    try:
        run.launch([Slot(row, 5 + row, length) for row in range(rows)]).tokens()
        (step,) = run._made.values()
        return seconds_of(step.run, loaded.device, 20 if cuda else 2)
    finally:
        del run
        collect(loaded.device)
