"""Draws each row's next token: penalties, temperature, top-k, top-p, min-p, and noise that is a hash.

The noise of a draw is a function of (query's seed, position, token id) alone. So a row's draw does not depend on its
neighbours, and no generator's state has to move with a row (hf-integration, section 8).
Sums and noise are in float64, on devices that have none (Apple's MPS) in float32: the same hash, so that draws differ
between devices only where two tokens' scores are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from baton.query import SamplingParams

# Filters look at this many best tokens first, and at more only when top-p is not reached among them.
_FIRST_LOOK = 128


@dataclass(frozen=True, slots=True)
class Draw:
    """One row's next draw: `tokens` so far (not copied), of which `prompt_tokens` were the prompt."""

    params: SamplingParams
    seed: int
    tokens: Sequence[int]
    prompt_tokens: int


class Sampler:
    """`end_ids`: tokens that end a text; they cannot be drawn before `min_tokens`."""

    def __init__(self, end_ids: Sequence[int]) -> None:
        self._end_ids = tuple(end_ids)

    def __call__(self, logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
        """The next token of each row of `[n, vocabulary]` float32 logits; None where a row's logits are not finite."""
        finite = logits.sum(-1).isfinite()
        if any(_shapes(draw) for draw in draws):
            logits = logits.clone()
            for row, draw in zip(logits, draws, strict=True):
                if _shapes(draw):
                    self._shape(row, draw)
        best = logits.argmax(-1)
        drawn = [row for row, draw in enumerate(draws) if not draw.params.greedy]
        if drawn:
            best[drawn] = _random(logits[drawn], [draws[row] for row in drawn])
        tokens = best.tolist()
        return [token if fine else None for token, fine in zip(tokens, finite.tolist(), strict=True)]

    def _shape(self, row: Tensor, draw: Draw) -> None:
        """Changes one row's logits `[vocabulary]` in place: bias, penalties, the tokens forbidden by min_tokens."""
        params = draw.params
        if params.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(draw.tokens)), device=row.device)
            old = row[seen]
            row[seen] = torch.where(old > 0, old / params.repetition_penalty, old * params.repetition_penalty)
        generated = draw.tokens[draw.prompt_tokens :]
        if generated and (params.frequency_penalty or params.presence_penalty):
            ids, counts = torch.tensor(generated, device=row.device).unique(return_counts=True)
            row[ids] -= params.frequency_penalty * counts + params.presence_penalty
        for token, bias in (params.logit_bias or {}).items():
            row[token] += bias
        if len(generated) < params.min_tokens:
            # A tokenizer may have more tokens than the model; those are never drawn.
            row[[end for end in (*self._end_ids, *params.stop_token_ids) if 0 <= end < len(row)]] = -torch.inf


def _shapes(draw: Draw) -> bool:
    params = draw.params
    return bool(
        params.repetition_penalty != 1
        or params.frequency_penalty
        or params.presence_penalty
        or params.logit_bias
        or len(draw.tokens) - draw.prompt_tokens < params.min_tokens
    )


def _random(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Gumbel-max over `[m, vocabulary]`: adding such noise and taking the best draws from the softmax."""
    temperatures = torch.tensor([draw.params.temperature for draw in draws], device=logits.device)
    logits = logits / temperatures[:, None]
    picks = torch.empty(len(draws), dtype=torch.int64, device=logits.device)
    free = [i for i, draw in enumerate(draws) if not _filters(draw.params)]
    if free:
        every = torch.arange(logits.shape[-1], device=logits.device).expand(len(free), -1)
        picks[free] = (logits[free] + _noise([draws[i] for i in free], every)).argmax(-1)
    held = [i for i, draw in enumerate(draws) if _filters(draw.params)]
    if held:
        some = [draws[i] for i in held]
        best, ids = _candidates(logits[held], some)
        chosen = (best + _noise(some, ids)).argmax(-1, keepdim=True)
        picks[held] = ids.gather(-1, chosen)[:, 0]
    return picks


def _filters(params: SamplingParams) -> bool:
    return bool(params.top_k or params.top_p < 1 or params.min_p)


def _candidates(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
    """The best tokens of each row, best first, with those outside top-k, top-p and min-p at -inf: values and ids."""
    vocabulary, device = logits.shape[-1], logits.device
    top_k = torch.tensor([draw.params.top_k or vocabulary for draw in draws], device=device)[:, None]
    precise = _precise(device)
    top_p = torch.tensor([draw.params.top_p for draw in draws], dtype=precise, device=device)[:, None]
    min_p = torch.tensor([draw.params.min_p for draw in draws], dtype=precise, device=device)[:, None]
    whole = logits.to(precise).logsumexp(-1, keepdim=True)
    # All of top-k must be in sight from the first, because top-p is a share of what top-k left.
    look = min(max([_FIRST_LOOK, *(draw.params.top_k for draw in draws)]), vocabulary)
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
        look = min(look * 8, vocabulary)


def _noise(draws: Sequence[Draw], ids: Tensor) -> Tensor:
    """Gumbel noise `[m, k]` for these token ids: a hash of (seed, position, token id)."""
    keys = [_signed(_mix(_mix(draw.seed & _MASK) ^ len(draw.tokens))) for draw in draws]
    x = ids * -7046029254386353131 + torch.tensor(keys, device=ids.device)[:, None]
    # splitmix64's finaliser, in wrapping 64-bit arithmetic; `>>` keeps the sign, so the shifted-in bits are masked.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -4658895280553007687
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -7723592293110705685
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


_MASK = 2**64 - 1


def _mix(x: int) -> int:
    """splitmix64 (Steele, Lea, Flood 2014) of one 64-bit number."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x
