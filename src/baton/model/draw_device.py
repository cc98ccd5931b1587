"""Draws on devices, all rows together in torch.

Sums and noise are in float64, on devices that have none (Apple's MPS) in float32: the same hash, so that draws differ
between devices only where two tokens' scores are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baton.model.draw import FIRST, FIRST_LOOK, MORE, SECOND, SPREAD, Draw


def random_tokens(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Gumbel-max over `[m, vocabulary]`: adding such noise and taking the best draws from the softmax."""
    temperatures = torch.tensor([draw.params.temperature for draw in draws], device=logits.device)
    logits = logits / temperatures[:, None]
    picks = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    free = [i for i, draw in enumerate(draws) if not draw.filters]
    if free:
        every = torch.arange(logits.shape[-1], device=logits.device).expand(len(free), -1)
        picks[free] = (logits[free] + _noise([draws[i] for i in free], every)).argmax(-1)
    held = [i for i, draw in enumerate(draws) if draw.filters]
    if held:
        some = [draws[i] for i in held]
        best, ids = candidates(logits[held], some)
        chosen = (best + _noise(some, ids)).argmax(-1, keepdim=True)
        picks[held] = ids.gather(-1, chosen)[:, 0]
    return picks


def candidates(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """The best tokens of each row, best first, with those outside top-k, top-p and min-p at -inf: values and ids."""
    vocabulary, device = logits.shape[-1], logits.device
    top_k = torch.tensor([draw.params.top_k or vocabulary for draw in draws], device=device)[:, None]
    precise = _precise(device)
    top_p = torch.tensor([draw.params.top_p for draw in draws], dtype=precise, device=device)[:, None]
    min_p = torch.tensor([draw.params.min_p for draw in draws], dtype=precise, device=device)[:, None]
    whole = logits.to(precise).logsumexp(-1, keepdim=True)
    # All of top-k must be in sight from the first, because top-p is a share of what top-k left.
    look = min(max([FIRST_LOOK, *(draw.params.top_k for draw in draws)]), vocabulary)
    while True:
        best, ids = logits.topk(look)
        share = (best.to(precise) - whole).exp()
        rank = torch.arange(look, device=device)
        # Probabilities after top-k are of what top-k left, as in the stock warpers' order.
        left = torch.where(rank < top_k, share, 0.0)
        limited = top_k <= look
        total = torch.where(limited, left.sum(-1, keepdim=True), 1.0)
        share = left / total
        before = share.cumsum(-1) - share
        keep = (rank < top_k) & (before < top_p) & (share >= min_p * share[:, :1])
        # Enough was looked at where the last one looked at is already out.
        if look == vocabulary or not bool(keep[:, -1].any()):
            return best.masked_fill(~keep, -torch.inf), ids
        look = min(look * MORE, vocabulary)


def _noise(draws: Sequence[Draw], ids: Tensor) -> Tensor:
    """Gumbel noise `[m, k]` for these token ids: a hash of (seed, position, token id)."""
    x = ids * _signed(SPREAD) + torch.tensor([_signed(draw.key) for draw in draws], device=ids.device)[:, None]
    # splitmix64's finaliser, in wrapping 64-bit arithmetic; `>>` keeps the sign, so the shifted-in bits are masked.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(FIRST)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(SECOND)
    x = x ^ ((x >> 31) & (2**33 - 1))
    return _gumbel((x >> 11) & (2**53 - 1), _precise(ids.device))


def _gumbel(bits: Tensor, precise: torch.dtype) -> Tensor:
    """-log(-log u) of the uniform number u = (bits + 0.5) / 2^53."""
    uniform = (bits.to(precise) + 0.5) / 2**53
    if precise is torch.float64:
        return -(-uniform.log()).log()
    # Numbers near 1 would all be 1 in float32; what they lack to 1 is not.
    lacking = ((2**53 - 1 - bits).to(precise) + 0.5) / 2**53
    return -torch.where(bits < 2**52, -uniform.log(), -(-lacking).log1p()).log()


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
