"""Attention over packed sequences as torch's `varlen_attn` is called, in plain float64, for machines without CUDA."""

from __future__ import annotations

import torch
from torch import Tensor


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """query `[Tq, Hq, D]`, key and value `[Tk, H, D]` -> `[Tq, Hq, D]`; refuses what the kernel would not notice."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and len(cu_seq_q) == len(cu_seq_k)
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1 and query.shape[-1] % 8 == 0
    assert max_q > 1, "the kernel takes each sequence to have a query then"
    left, right = window_size
    assert right == 0
    queries, keys = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert queries == sorted(queries) and keys == sorted(keys)
    assert (queries[0], queries[-1]) == (0, len(query)) and keys[-1] <= len(key)
    out = torch.full_like(query, torch.nan)
    group = query.shape[1] // key.shape[1]
    for at in range(len(queries) - 1):
        fed = slice(queries[at], queries[at + 1])
        count, held = fed.stop - fed.start, keys[at + 1] - keys[at]
        if not count:
            continue
        assert count <= max_q and count <= held <= max_k
        k, v = (some[keys[at] : keys[at + 1]].double().repeat_interleave(group, 1) for some in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[fed].double(), k)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        # Queries are the last of the keys' tokens.
        token, column = torch.arange(held - count, held)[:, None], torch.arange(held)
        seen = (column <= token) & ((column >= token - left) | (left < 0))
        out[fed] = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v).to(out.dtype)
    return out
