"""Decode steps, as they are and compiled, against the bytes that they must read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from baton.cuda.decode_steps import Steps
from baton.cuda.float8 import Float8Linear
from baton.cuda.slots import Slot, follows
from baton.kv.rectangle import Rectangle, footprint
from baton.loader.loaded import Loaded

from .asks import Ask, lengths_of
from .models import collect, cuda_forward
from .timing import seconds_of


def steps(
    loaded: Loaded, asks: Sequence[Ask], bandwidth: float, columns: int, counts: Sequence[int], compiled: str | None
) -> list[dict[str, Any]]:
    """Decode steps against their floor: the bytes of weights, keys and values over the bandwidth of a copy."""
    weights = _weights(loaded.model)
    token_bytes = footprint(loaded.geometry.shapes, columns, loaded.dtype, loaded.device).token_bytes
    measurements = []
    for rows in counts:
        lens = lengths_of(asks, rows, columns)
        floor = (weights + sum(lens) * token_bytes) / bandwidth
        measurements.append(_of_rows(loaded, lens, columns, compiled, floor))
        collect(loaded.device)
    return measurements


def _weights(model: Any) -> int:
    """Bytes that a step reads: everything except an embedding of which it only takes some rows."""
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    layers = [layer.weight.nbytes for layer in model.modules() if isinstance(layer, Float8Linear)]
    return sum(layers) + sum(p.nbytes for p in model.parameters()) - (0 if tied else embedding.nbytes)


def _of_rows(loaded: Loaded, lens: Sequence[int], columns: int, compiled: str | None, floor: float) -> dict[str, Any]:
    """Steps of rows that are so long."""
    cuda, rows = loaded.device.type == "cuda", len(lens)
    # An engine's, if what is compiled will serve one later.
    capacity = 2 * rows + 1 if compiled else rows
    rectangle = Rectangle(
        loaded.geometry.shapes, capacity=capacity, columns=columns, dtype=loaded.dtype, device=loaded.device
    )
    for buffer in (*rectangle.keys, *rectangle.values):
        buffer.normal_()
    forward = cuda_forward(loaded)
    assert forward.ragged is not None
    run = Steps(forward.torch_forward.hooked, rectangle, forward.ragged, capture=cuda, compiled=compiled)
    began = time.perf_counter()
    run.launch([Slot(row, 5 + row, length) for row, length in enumerate(lens)]).tokens()
    made = time.perf_counter() - began
    times = _with_the_host(run, lens, 30 if cuda else 2)
    *_, step = run._made.values()
    device_seconds = seconds_of(step.run, loaded.device, 20 if cuda else 2)
    return {
        "rows": rows,
        "mean length": statistics.mean(lens),
        "compiled": compiled or "no",
        "step ms": device_seconds * 1e3,
        "with the host ms": statistics.median(times) * 1e3,
        "floor ms": floor * 1e3,
        "of the limit": floor / device_seconds,
        "made in s": made,
        "peak GB": torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0,
    }


def _with_the_host(run: Steps, lens: Sequence[int], count: int) -> list[float]:
    """Seconds of each of so many steps, where each begins before the one before it is waited for."""
    times = []
    last = None
    for turn in range(1, count + 1):
        began = time.perf_counter()
        following = run.launch([Slot(row, follows(row), length + turn) for row, length in enumerate(lens)])
        if last is not None:
            last.tokens()
        times.append(time.perf_counter() - began)
        last = following
    return times


def backend(tiny: bool) -> str:
    """What compiled steps are compiled by."""
    return "eager" if tiny else "inductor"
