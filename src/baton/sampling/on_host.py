"""Draws on the CPU, row by row in numpy: one thread, and few passes over a whole row.

Rows are short work: waking other threads for them costs more than they save, and a busy neighbour makes that worse.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baton.sampling.draw import FIRST, FIRST_CANDIDATES, MORE, SECOND, SPREAD, Draw

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.int64]
Bits = NDArray[np.uint64]

# With so many groups per wanted token, few groups contain two of the best.
_GROUPS = 6
# A float64 has 53.
_UNUSED_BITS = 64 - 53
# Scores of forbidden tokens are below it.
_LEAST = np.finfo(np.float32).min
# More than the rounding of scores, and of noise and its bits.
_ROUNDING = 1e-6


def random_token(row: Floats, draw: Draw) -> int:
    """Gumbel-max over logits `[vocabulary]` float32: adding such noise and taking the best draws from the softmax.

    The best logit must be finite. Logits are relative to the best one, so an overflow is -inf and cannot be drawn.
    """
    with np.errstate(over="ignore"):
        if draw.filters:
            values, ids = candidates(row, draw)
            scores: Floats = values + _gumbel(_hashed(draw.key, _spread(ids)))
        else:
            scores, ids = _contenders(row, draw)
    return int(ids[scores.argmax()])


def candidates(row: Floats, draw: Draw) -> tuple[Floats, Ids]:
    """The tokens that top-k, top-p and min-p leave, best first: logits below the best over temperature, and ids."""
    params, vocabulary = draw.params, len(row)
    # Top-p counts probabilities after top-k, as in the stock warpers' order.
    count = min(params.top_k or FIRST_CANDIDATES, vocabulary)
    whole = _sum(row, draw.temperature) if params.top_p < 1 and not params.top_k else 0.0
    while True:
        best, ids = _top(row, count)
        values = (best - best[0]) / np.float32(draw.temperature)
        share = np.exp(values.astype(np.float64))
        keep = share >= params.min_p
        if params.top_p < 1:
            keep &= share.cumsum() - share < params.top_p * (whole or share.sum())
        # The best token stays even if its share is rounded to 0.
        keep[0] = True
        # These are enough if the last one is already filtered out.
        if params.top_k or count == vocabulary or len(ids) < count or not keep[-1]:
            return values[keep], ids[keep]
        count = min(count * MORE, vocabulary)


def _contenders(row: Floats, draw: Draw) -> tuple[Floats, Ids]:
    """Scores and ids of all tokens that might have the best score.

    The best tokens' scores come first. No other logit is above the last of theirs, so any other winner needs enough
    noise to make up for that. Noise grows with its bits, and bits are compared without a logarithm.
    """
    temperature, key = np.float32(draw.temperature), draw.key
    best, ids = _top(row, min(FIRST_CANDIDATES, len(row)))
    values = (best - best[0]) / temperature
    scores = values + _gumbel(_hashed(key, _spread(ids)))
    if len(ids) == len(row) or len(ids) < FIRST_CANDIDATES:
        return scores, ids
    lacking = float(scores.max()) - float(values[-1]) - _ROUNDING
    least = int(max(0.0, 2.0**53 * math.exp(-math.exp(-lacking)) - 8))
    every = _hashed(key, _spread_of_all(len(row)))
    others = np.flatnonzero(every > np.uint64(least << _UNUSED_BITS))
    more = (row[others] - best[0]) / temperature + _gumbel(every[others])
    return np.concatenate([scores, more]), np.concatenate([ids, others])


def _top(row: Floats, count: int) -> tuple[Floats, Ids]:
    """The `count` best of a row, best first, of equals the first: values and ids. Fewer if fewer may be drawn."""
    groups = min(len(row), _GROUPS * count)
    maxima = row[: len(row) // groups * groups].reshape(-1, groups).max(0)
    # So many groups have a value that is at least this, so the best are among all such values.
    bound = np.partition(maxima, groups - count)[groups - count]
    ids = np.flatnonzero(row >= max(bound, _LEAST))
    ids = ids[np.argsort(-row[ids], kind="stable")[:count]]
    return row[ids], ids


def _sum(row: Floats, temperature: float) -> float:
    """The sum over a row of exp((logit - best) / temperature)."""
    shares = row - row.max()
    shares /= np.float32(temperature)
    return float(np.exp(shares, out=shares).sum())


def _hashed(key: int, spread: Bits) -> Bits:
    """64 random bits of each token id that was `_spread`: splitmix64's finaliser."""
    x = spread + np.uint64(key)
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(FIRST)
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= np.uint64(SECOND)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def _spread(ids: Ids) -> Bits:
    return ids.astype(np.uint64) * np.uint64(SPREAD)


@lru_cache(maxsize=2)
def _spread_of_all(vocabulary: int) -> Bits:
    return _spread(np.arange(vocabulary))


def _gumbel(hashed: Bits) -> Floats:
    """-log(-log u) of the uniform number u = (bits + 0.5) / 2^53, of their first 53 bits."""
    return -np.log(-np.log(((hashed >> np.uint64(_UNUSED_BITS)) + 0.5) / 2**53))
