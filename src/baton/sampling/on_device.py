"""Draws on devices, all rows together in torch.

Sums and noise are in float64, on devices without it (Apple's MPS) in float32. The hash is the same, so draws differ
between devices only if two tokens' scores are equal up to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from baton.sampling.draw import FILTERS, FIRST, FIRST_CANDIDATES, MORE, NO_FILTERS, SECOND, SPREAD, Draw, filters_of

NOT_FINITE = -1
"""In place of a token: the row's logits are not finite."""
TOO_FEW_CANDIDATES = -2
"""In place of a token: the filters left more tokens than were compared. `random_tokens` compares as many as needed."""


class Kind(IntEnum):
    """What a step must compute to draw for all of its rows."""

    GREEDY = 0
    FREE = 1
    FILTERED = 2


@dataclass(frozen=True, slots=True)
class Chances:
    """How each of n rows draws, on the device.

    Attributes:
        temperature: `[n]`, 0: greedy.
        filters: `[filters, n]`, in the order of `FILTERS`.
        keys: `[n]`, `Draw.key` of each.
    """

    temperature: Tensor
    filters: Tensor
    keys: Tensor


def drawn(logits: Tensor, chances: Chances, kind: Kind) -> Tensor:
    """The next token of each row of `[n, vocabulary]`, `[n]`, as `random_tokens` draws it, without asking the host.

    NOT_FINITE or TOO_FEW_CANDIDATES if there is none.
    """
    finite = logits.sum(-1).isfinite()
    picks = logits.argmax(-1)
    if kind is not Kind.GREEDY:
        greedy = chances.temperature == 0
        scaled = _scaled(logits, torch.where(greedy, 1.0, chances.temperature).float())
        every = torch.arange(logits.shape[-1], device=logits.device).expand(len(logits), -1)
        picks = torch.where(greedy, picks, (scaled + _noise(chances.keys, every)).argmax(-1))
        if kind is Kind.FILTERED:
            picked = _draw_filtered(scaled, chances)
            # Compared with one number after the other, because numbers are part of the code and not copied to the
            # device.
            filtered = torch.zeros_like(greedy)
            for values, off in zip(chances.filters, NO_FILTERS, strict=True):
                filtered |= values != off
            picks = torch.where(greedy | ~filtered, picks, picked)
    return torch.where(finite, picks, NOT_FINITE)


@functools.cache
def exact(kind: str) -> bool:
    """Whether a device of this kind hashes to the same bits as the host; tried once."""
    seeds, lengths, ids = torch.tensor([3, -(2**62) - 5]), torch.tensor([7, 2**20]), torch.tensor([[0, 2**17 - 3, 11]])
    device = torch.device(kind)
    try:
        there = _hashed(keys_of(seeds.to(device), lengths.to(device)), ids.to(device)).cpu()
    except (RuntimeError, TypeError):
        return False
    return torch.equal(there, _hashed(keys_of(seeds, lengths), ids))


def _scaled(logits: Tensor, temperatures: Tensor) -> Tensor:
    """`[n, vocabulary]` over temperatures `[n]`, relative to each row's best, so that an overflow is -inf."""
    return (logits - logits.amax(-1, keepdim=True)) / temperatures[:, None]


def _draw_filtered(logits: Tensor, chances: Chances) -> Tensor:
    count = min(FIRST_CANDIDATES, logits.shape[-1])
    best, ids = logits.topk(count)
    precise = _precise(logits.device)
    whole = logits.to(precise).logsumexp(-1, keepdim=True)
    kept = _kept(best, whole, chances.filters.to(precise), logits.shape[-1])
    filtered = best.masked_fill(~kept, -torch.inf)
    chosen = (filtered + _noise(chances.keys, ids)).argmax(-1, keepdim=True)
    enough = ~kept[:, -1] | (count == logits.shape[-1])
    return torch.where(enough, ids.gather(-1, chosen)[:, 0], TOO_FEW_CANDIDATES)


def keys_of(seeds: Tensor, lengths: Tensor) -> Tensor:
    """`Draw.key` of texts of these lengths, `[n]`, from `mixed_seed` as signed numbers."""
    return _finalised((seeds ^ lengths) + _signed(SPREAD))


def random_tokens(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Gumbel-max over `[m, vocabulary]`: adding such noise and taking the best draws from the softmax."""
    logits = _scaled(logits, torch.tensor([draw.temperature for draw in draws], device=logits.device))
    picks = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    free = [i for i, draw in enumerate(draws) if not draw.filters]
    if free:
        every = torch.arange(logits.shape[-1], device=logits.device).expand(len(free), -1)
        picks[free] = (logits[free] + _noise(_keys([draws[i] for i in free], logits.device), every)).argmax(-1)
    filtered = [i for i, draw in enumerate(draws) if draw.filters]
    if filtered:
        some = [draws[i] for i in filtered]
        best, ids = candidates(logits[filtered], some)
        chosen = (best + _noise(_keys(some, logits.device), ids)).argmax(-1, keepdim=True)
        picks[filtered] = ids.gather(-1, chosen)[:, 0]
    return picks


def candidates(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """The best tokens of each row, best first, with those outside top-k, top-p and min-p at -inf: values and ids."""
    vocabulary, device = logits.shape[-1], logits.device
    precise = _precise(device)
    filters = torch.tensor([filters_of(draw.params) for draw in draws], dtype=precise, device=device).T
    whole = logits.to(precise).logsumexp(-1, keepdim=True)
    # All of top-k must be among them from the first, because top-p is a share of what top-k left.
    count = min(max([FIRST_CANDIDATES, *(draw.params.top_k for draw in draws)]), vocabulary)
    while True:
        best, ids = logits.topk(count)
        keep = _kept(best, whole, filters, vocabulary)
        # These are enough if the last one is already filtered out.
        if count == vocabulary or not bool(keep[:, -1].any()):
            return best.masked_fill(~keep, -torch.inf), ids
        count = min(count * MORE, vocabulary)


def _kept(best: Tensor, whole: Tensor, filters: Tensor, vocabulary: int) -> Tensor:
    """Which of each row's `best` logits `[m, count]` the filters leave; `whole` `[m, 1]`: all logits' sum."""
    asked = dict(zip(FILTERS, filters[:, :, None].unbind(), strict=True))
    top_k = torch.where(asked["top_k"] > 0, asked["top_k"], vocabulary)
    share = (best.to(whole.dtype) - whole).exp()
    count = best.shape[-1]
    rank = torch.arange(count, device=best.device)
    # Top-p counts probabilities after top-k, as in the stock warpers' order.
    left = torch.where(rank < top_k, share, 0.0)
    total = torch.where(top_k <= count, left.sum(-1, keepdim=True), 1.0)
    share = left / total
    before = share.cumsum(-1) - share
    # The best token stays even if its share is rounded to 0.
    return (rank < top_k) & (((before < asked["top_p"]) & (share >= asked["min_p"] * share[:, :1])) | (rank == 0))


def _keys(draws: Sequence[Draw], device: torch.device) -> Tensor:
    return torch.tensor([_signed(draw.key) for draw in draws], device=device)


def _noise(keys: Tensor, ids: Tensor) -> Tensor:
    """Gumbel noise `[m, k]` for these token ids: a hash of a row's key, `[m]`, and the token id."""
    return _gumbel(_hashed(keys, ids), _precise(ids.device))


def _hashed(keys: Tensor, ids: Tensor) -> Tensor:
    """53 bits for each key, `[m]`, and token id, `[m, k]`."""
    return (_finalised(ids * _signed(SPREAD) + keys[:, None]) >> 11) & (2**53 - 1)


def _finalised(x: Tensor) -> Tensor:
    """splitmix64's finaliser, in wrapping 64-bit arithmetic; `>>` keeps the sign, so the shifted-in bits are masked."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(FIRST)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(SECOND)
    return x ^ ((x >> 31) & (2**33 - 1))


def _gumbel(bits: Tensor, precise: torch.dtype) -> Tensor:
    """-log(-log u) of the uniform number u = (bits + 0.5) / 2^53."""
    uniform = (bits.to(precise) + 0.5) / 2**53
    if precise is torch.float64:
        return -(-uniform.log()).log()
    # Numbers near 1 would all be 1 in float32; their distance to 1 would not.
    lacking = ((2**53 - 1 - bits).to(precise) + 0.5) / 2**53
    return -torch.where(bits < 2**52, -uniform.log(), -(-lacking).log1p()).log()


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
