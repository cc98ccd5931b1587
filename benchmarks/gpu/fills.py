"""Prompts: attention in one call per layer or request by request; after decode steps, fused with them or beside."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from baton.cuda.forward import CudaForward
from baton.kv.rectangle import Rectangle
from baton.loader.loaded import Loaded
from baton.model.execution import PrefillPlacement
from baton.model.port import Forward
from baton.model.visibility import Span

from .asks import Ask
from .engine import engine_run
from .models import collect, cuda_forward
from .timing import seconds_of

STALL_SECONDS = 0.05
_PROMPTS = (1, 4, 16)


def fills(loaded: Loaded, asks: Sequence[Ask], product: float, columns: int) -> list[dict[str, Any]]:
    """Prompts of the trace in one forward, each way in turn; `product`: operations a second of a large product."""
    forward, cuda = cuda_forward(loaded), loaded.device.type == "cuda"
    operations = 2 * sum(p.numel() for p in _products(loaded.model))
    rectangle = Rectangle(
        loaded.geometry.shapes, capacity=max(_PROMPTS), columns=columns, dtype=loaded.dtype, device=loaded.device
    )
    measurements = []
    try:
        for count, (name, way) in itertools.product(
            _PROMPTS, (("one call", forward.varlen), ("request by request", None))
        ):
            prompts = [ask.prompt for ask in asks[:count]]
            run = partial(_filled, CudaForward(forward.torch_forward, varlen=way), rectangle, prompts)
            seconds, tokens = seconds_of(run, loaded.device, 3 if cuda else 1), sum(map(len, prompts))
            measurements.append(
                {
                    "prompts": len(prompts),
                    "tokens": tokens,
                    "attention": name,
                    "tokens/s": tokens / seconds,
                    "of the products' limit": operations * tokens / product / seconds,
                }
            )
    finally:
        del rectangle
        collect(loaded.device)
    return measurements


def _filled(forward: Forward, rectangle: Rectangle, prompts: Sequence[Sequence[int]]) -> None:
    spans = [Span(row, 0, len(prompt)) for row, prompt in enumerate(prompts)]
    forward.fill(rectangle, spans, [*itertools.chain(*prompts)])[1].commit()


def _products(model: Any) -> list[torch.Tensor]:
    """What every token of a prompt is multiplied by: all matrices but embedding and output layer."""
    ends = {model.get_input_embeddings().weight.data_ptr(), model.get_output_embeddings().weight.data_ptr()}
    return [p for p in model.parameters() if p.dim() > 1 and p.data_ptr() not in ends]


def streams(loaded: Loaded, asks: Sequence[Ask], rows: int, columns: int, cap: float) -> list[dict[str, Any]]:
    """The same queries at one stall bound, prompts wherever they may be computed; and what the start chooses."""
    measurements = []
    for how in (*PrefillPlacement, None):
        some = asks if how is not None else asks[:1]
        of: dict[str, Any] = {"rows": rows, "columns": columns, "cap": cap, "stall_seconds": STALL_SECONDS}
        ran = engine_run(loaded, some, prompts=how, **of)
        gains = {name.value: gain for name, gain in (cuda_forward(loaded).gains or {}).items()}
        measurements.append({"prompts": how or f"as chosen at the start ({gains}), one query", **ran})
    return measurements
