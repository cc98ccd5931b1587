"""`baton info`: a model's shapes, and what fits in this machine."""

from __future__ import annotations

import json
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from baton import builtin
from baton.cli.show import in_units
from baton.compose import model_name, set_threads
from baton.core.config import Config
from baton.loader.choose import planned
from baton.loader.formats import FORMATS
from baton.loader.survey import Survey, survey
from baton.loader.wanted import device_asked
from baton.measure.bandwidth import read_bandwidth
from baton.model.device import device_of, free_bytes


def _quantised(model: Survey, device: torch.device, dtype: torch.dtype) -> dict[str, int]:
    """About the bytes of all weights in each of the CPU's formats with fewer bits; nothing elsewhere."""
    if device.type != "cpu" or model.refused is not None or model.packed is not None:
        return {}
    return {name: model.weight_bytes(dtype, FORMATS[name].packing) for name in ("int8", "int4")}


def _of_each(weights: dict[str, int], read: dict[str, int], free: int, row: int) -> dict[str, Any]:
    """For each format: rows of the whole context that fit, and tokens a second of one row by reading alone.

    `read`: bytes of weights that a step reads. `row`: bytes of a row's keys and values.
    """
    bandwidth = read_bandwidth()
    rows = {name: max(free - size, 0) // row if row else 0 for name, size in weights.items()}
    return {
        "memory_bytes_per_second": int(bandwidth),
        "full_rows_that_fit_by_format": rows,
        "most_tokens_per_second_of_a_row": {name: round(bandwidth / max(size, 1), 1) for name, size in read.items()},
    }


def run_info(config: Config, as_json: bool) -> None:
    """Prints a model's shapes, its bytes per token, and what fits in this machine's memory."""
    set_threads(config)
    device = device_asked(config.device)
    source, code = config.model or str(builtin.path()), config.trust_remote_code
    model = survey(source, trust_remote_code=code, on_cpu=device.type == "cpu")
    asked = device_of(device).dtype(config.dtype, model.saved_dtype)
    dtype = getattr(torch, asked)
    footprint = model.footprint(dtype)
    whole = footprint.of(model.context_tokens)
    weights = model.stored_bytes if model.packed and model.stored_bytes else model.parameters * dtype.itemsize
    free = free_bytes(device)
    room = max(free - weights, 0)
    fewer = _quantised(model, device, dtype)
    kept = model.packed or asked
    by_format: dict[str, Any] = {}
    if device.type == "cpu" and model.refused is None:
        sizes = {kept: weights, **fewer}
        looked_up = model.embedding * dtype.itemsize  # a row of it for each token
        by_format = _of_each(sizes, {name: size - looked_up for name, size in sizes.items()}, free, whole)
    facts: dict[str, Any] = {
        "model": model_name(config),
        "family": model.family,
        "parameters": model.parameters,
        "layers": model.layers,
        "vocabulary": model.vocabulary,
        "context_tokens": model.context_tokens,
        "context_source": model.context_source,
        "device": device.type,
        "dtype": asked,
        "steps": planned(device),
        "packed": model.packed,
        "weight_bytes": weights,
        **{f"weight_bytes_{name}": size for name, size in fewer.items()},
        "kv_bytes_per_token": footprint.token_bytes,
        "state_bytes_per_row": footprint.state_bytes,
        "kv_bytes_of_a_full_row": whole,
        "windows": model.geometry.windows if model.geometry else [],
        "free_memory_bytes": free,
        "full_rows_that_fit": room // whole if whole else 0,
        **by_format,
        "sampling_defaults": dict(model.generation.sampling),
        "sampling_not_honoured": list(model.generation.ignored),
        "batched": model.refused is None,
        "why_not": model.refused,
    }
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{one} {number:g}" for one, number in value.items())
        if value not in (None, [], ""):
            shown = in_units(value) if "bytes" in name else f"{value:,}" if type(value) is int else str(value)
            table.add_row(name.replace("_", " "), shown)
    Console(highlight=False).print(table)
