"""Attention of one token per row over rows of different lengths, in Triton, and the writing of their keys and values.

A row's columns are cut into splits, each attended by a program of its own with an online softmax, and merged in a fixed
order (flash-decoding, Dao et al. 2023). The grid follows from shapes alone and lengths are read on the device, so that
a CUDA graph of it stays valid while rows grow; how a row is cut depends on no other row. Shapes: n tokens, R rows and C
columns of the rectangle, Hq query heads, H key and value heads, G = Hq / H, D and Dv head dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from baton.cuda.triton_kernels import attend_split, keep_tokens, merge_splits
from baton.model.visibility import Visibility

# Matrix units need at least so many rows in a dot's operand; a group of query heads is padded to it.
_LEAST_GROUP = 16
# A split with less work costs more to merge than it gains.
LEAST_COLUMNS = 128
# So many programs keep every multiprocessor of a large GPU busy even after those of short rows have ended.
PROGRAMS = 4096
MOST_SPLITS = 64


def splits_of(tokens: int, heads: int) -> int:
    """The most splits of a row's columns, a power of two, from shapes alone."""
    wanted = max(1, PROGRAMS // (tokens * heads))
    return min(MOST_SPLITS, 1 << (wanted.bit_length() - 1))


def launch_of(dim: int, float32: bool) -> dict[str, int]:
    """How programs of `attend_split` are laid out, as wide as possible without spilling registers on Hopper."""
    if float32:
        return {"BLOCK": 32 if dim <= 128 else 16, "num_warps": 8 if dim > 64 else 4, "num_stages": 2}
    return {"BLOCK": 64 if dim <= 128 else 32, "num_warps": 4, "num_stages": 3 if dim <= 128 else 2}


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    stops: Tensor,
    *,
    scale: float,
    visibility: Visibility,
    ring: bool = False,
    sinks: Tensor | None = None,
    splits: int | None = None,
    least: int = LEAST_COLUMNS,
    launch: dict[str, int] | None = None,
) -> Tensor:
    """q `[n, Hq, D]`, keys `[R, C, H, D]` and values `[R, C, H, Dv]` -> `[n, Hq, Dv]`.

    `rows` `[n]`: each token's row. `stops` `[n]`: tokens in its row, including it; 0: padding, whose output is 0.
    `ring`: token p is in column p % C. The last dimension must be dense. `launch`: num_warps, num_stages and BLOCK
    other than the usual ones.
    """
    tokens, query_heads, dim = q.shape
    heads, value_dim = keys.shape[2], values.shape[3]
    splits = splits or splits_of(tokens, heads)
    chosen = launch_of(max(dim, value_dim), q.dtype is torch.float32) | (launch or {})
    window, chunk = visibility.window, visibility.chunk
    cut: dict[str, Any] = {
        "WINDOW": window,
        "CHUNK": chunk,
        "RING": ring,
        "SPLITS": splits,
        "LEAST": -(-least // chosen["BLOCK"]) * chosen["BLOCK"],
    }
    dims = _padded(dim, value_dim)
    parts = q.new_empty(tokens, query_heads, splits, value_dim, dtype=torch.float32)
    peaks = q.new_empty(2, tokens, query_heads, splits, dtype=torch.float32)
    attend_split[(heads, splits, tokens)](
        q,
        keys,
        values,
        rows,
        stops,
        parts,
        peaks[0],
        peaks[1],
        scale,
        visibility.softcap,
        q.stride(0),
        q.stride(1),
        *keys.stride()[:3],
        *values.stride()[:3],
        heads,
        GROUP=query_heads // heads,
        PAD_GROUP=max(_LEAST_GROUP, triton.next_power_of_2(query_heads // heads)),
        DIM=dim,
        PAD_DIM=dims[0],
        VALUE_DIM=value_dim,
        PAD_VALUE=dims[1],
        SOFTCAP=visibility.softcap > 0,
        PRECISION="ieee",
        **cut,
        **chosen,
    )
    out = q.new_empty(tokens, query_heads, value_dim)
    merge_splits[(query_heads, tokens)](
        parts,
        peaks[0],
        peaks[1],
        stops,
        q if sinks is None else sinks,
        out,
        VALUE_DIM=value_dim,
        PAD_VALUE=dims[1],
        SINKS=sinks is not None,
        BLOCK=chosen["BLOCK"],
        **cut,
    )
    return out


def keep(
    new_keys: Tensor,
    new_values: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    stops: Tensor,
    *,
    ring: int = 0,
) -> None:
    """Writes each token's key `[n, H, D]` and value `[n, H, Dv]` into its row's column stops - 1, or a ring's."""
    tokens, heads, dim = new_keys.shape
    value_dim = new_values.shape[2]
    dims = _padded(dim, value_dim)
    keep_tokens[(heads, tokens)](
        new_keys,
        new_values,
        keys,
        values,
        rows,
        stops,
        *new_keys.stride()[:2],
        *new_values.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        DIM=dim,
        PAD_DIM=dims[0],
        VALUE_DIM=value_dim,
        PAD_VALUE=dims[1],
        RING_COLUMNS=ring,
        num_warps=1,
    )


def _padded(dim: int, value_dim: int) -> tuple[int, int]:
    """Dimensions that a dot accepts."""
    return max(16, triton.next_power_of_2(dim)), max(16, triton.next_power_of_2(value_dim))
