"""Attention of queries over given keys and values, on stock SDPA; written out if SDPA cannot do it.

Shapes: B rows, T queries, S keys, Hq query heads, H key and value heads, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Tensor:
    """q `[B, Hq, T, D]`, k and v `[B, H, S, D]`, mask `[B or 1, 1, T, S]` or `[T, S]` -> `[B, Hq, T, D]`.

    `causal`: the queries are the last of the S tokens, and none sees a later one.
    SDPA knows neither softcaps nor sinks.
    """
    if softcap or sinks is not None:
        return _plain(q, k, v, mask, causal, scale, softcap, sinks)
    if q.shape[2] > 1:
        if causal and q.shape[2] < k.shape[2]:
            mask, causal = _lower_right(q, k), False
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True)
    # The query heads of a group take the place of SDPA's queries, so that no key is read twice.
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    out = scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scale)
    return out.reshape(q.shape[0], q.shape[1], 1, -1)


def _lower_right(q: Tensor, k: Tensor) -> Tensor:
    """The mask `[T, S]` of queries that are the last of the keys' tokens."""
    if q.is_cuda:
        # Kernels of CUDA compute it without a mask in memory. Its module is late because it imports torch's compiler.
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(q.shape[2], k.shape[2])
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
    return seen.tril(k.shape[2] - q.shape[2])


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    softcap: float,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out. `sinks` `[Hq]`: a score per head that takes its share and adds no value."""
    batch, heads, length, dim = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, length, dim)
    scores = grouped @ k.transpose(-1, -2)[:, :, None] * (dim**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(k.shape[2] - length)
    if mask is not None:
        scores = scores.masked_fill(~(mask[:, :, None] if mask.dim() == 4 else mask), -torch.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, k.shape[1], -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    shares = scores.softmax(-1, dtype=torch.float32)[..., : k.shape[2]].to(v.dtype)
    return (shares @ v[:, :, None]).reshape(batch, heads, length, -1)
