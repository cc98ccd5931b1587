"""The attention kernel alone, as its programs may be laid out."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from baton.cuda import ragged_attention as ragged
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.cuda.virtual_memory import CudaDriver
from baton.loader.loaded import Loaded
from baton.model.visibility import EVERYTHING
from baton.testing.host_driver import HostDriver

from .asks import Ask, lengths_of
from .timing import replayed

_LAUNCHES = [
    {"BLOCK": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK": 32, "num_warps": 4, "num_stages": 4},
    {"BLOCK": 128, "num_warps": 4, "num_stages": 2},
    {"BLOCK": 128, "num_warps": 8, "num_stages": 2},
]


def kernel(loaded: Loaded, asks: Sequence[Ask], bandwidth: float, columns: int) -> list[dict[str, Any]]:
    """Attention alone at this shape, as programs may be laid out, against the bytes it must read."""
    decode, config = ragged.triton_decode, loaded.model.config
    cuda = loaded.device.type == "cuda"
    if decode is None or not (cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return [{"left out": "no Triton, or no GPU"}]
    heads, dim = config.num_key_value_heads, loaded.geometry.shapes[0].key_dim
    measurements = []
    for rows in (8, 32, 128) if cuda else (2,):
        lens = lengths_of(asks, rows, columns)
        # Several, so that none is still in the cache when it is read again.
        layers = [torch.randn(2, rows, columns, heads, dim, dtype=loaded.dtype, device=loaded.device) for _ in range(4)]
        q = torch.randn(rows, config.num_attention_heads, dim, dtype=loaded.dtype, device=loaded.device)
        places, stops = torch.arange(rows, device=loaded.device), torch.tensor(lens, device=loaded.device)
        read = 2 * sum(lens) * heads * dim * loaded.dtype.itemsize
        asked = (q, layers, places, stops)
        for launch, least in itertools.product(_LAUNCHES, (128, 256)):
            options = {"launch": launch, "least": least, "scale": dim**-0.5, "visibility": EVERYTHING}
            seconds = replayed(partial(_attend_all, *asked, options), loaded.device) / len(layers)
            one = {"rows": rows, **launch, "least": least, "splits": decode.splits_of(rows, heads)}
            measurements.append({**one, "us": seconds * 1e6, "of bandwidth": read / bandwidth / seconds})
    measurements.sort(key=lambda one: (one["rows"], one["us"]))
    return measurements + [_as_mapped(loaded, asks, bandwidth, columns, rows) for rows in ((8, 32) if cuda else (2,))]


def _as_mapped(loaded: Loaded, asks: Sequence[Ask], bandwidth: float, columns: int, rows: int) -> dict[str, Any]:
    """The same if all layers' keys and values of a token are together, in memory that was mapped for the rows.

    A layer's part of a token is then as far from that of the next token as all layers' parts are long.
    """
    config, driver = loaded.model.config, CudaDriver(loaded.device) if loaded.device.type == "cuda" else HostDriver()
    of: dict[str, Any] = {"capacity": rows, "columns": columns, "dtype": loaded.dtype, "device": loaded.device}
    rectangle = MappedRectangle(loaded.geometry.shapes, driver=driver, **of)
    lens = lengths_of(asks, rows, columns)
    began = time.perf_counter()
    for row, length in enumerate(lens):
        rectangle.reserve(row, length)
    seconds = time.perf_counter() - began
    layers = [*zip(rectangle.keys, rectangle.values, strict=True)]
    for row, length in enumerate(lens):
        for buffer in (*rectangle.keys, *rectangle.values):
            buffer[row, :length].normal_()
    heads, dim = rectangle.keys[0].shape[2:]
    q = torch.randn(rows, config.num_attention_heads, dim, dtype=loaded.dtype, device=loaded.device)
    asked = (q, layers, torch.arange(rows, device=loaded.device), torch.tensor(lens, device=loaded.device))
    attend = partial(_attend_all, *asked, {"scale": dim**-0.5, "visibility": EVERYTHING})
    taken = replayed(attend, loaded.device) / len(layers)
    read = 2 * sum(lens) * heads * dim * loaded.dtype.itemsize
    pages = sum(map(rectangle.mapped_pages, range(rows)))
    return {
        "rows": rows,
        "layout": "interleaved, mapped",
        "us": taken * 1e6,
        "of bandwidth": read / bandwidth / taken,
        "page MiB": rectangle.footprint.page / 2**20,
        "mapped in us a page": seconds / pages * 1e6,
    }


def _attend_all(
    q: torch.Tensor, layers: Sequence[Any], places: torch.Tensor, stops: torch.Tensor, options: dict[str, Any]
) -> None:
    for keys, values in layers:
        ragged.triton_decode.attend(q, keys, values, places, stops, **options)
