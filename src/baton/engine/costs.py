"""What computing costs and how long answers become, measured while the engine runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from baton.policy.port import Costs

# Weight of the newest step: a memory of about ten iterations.
_NEWEST = 0.1
_FILLS_KEPT = 48
_ANSWERS_KEPT = 64
_ANSWERS_NEEDED = 16
_HIGH = 0.9
_SWEEPS = 60
# Less than this part of the largest weight, and a fit is done.
_SETTLED = 1e-4


class CostMeter:
    """Measures costs; `costs` is the frozen view that policies get.

    A fill's seconds are fitted as fixed + a token's + a token's column's + the experts' that are chosen, each at least
    0, over the last fills and by relative error, so that one outlier counts little. The fit is then raised until nine
    of ten fills took no longer. `chosen_share`: of the experts, by one token; 0 without experts.
    """

    def __init__(self, chosen_share: float = 0.0) -> None:
        self.costs = Costs(chosen_share=chosen_share)
        self._fills: deque[tuple[int, float, float]] = deque(maxlen=_FILLS_KEPT)

    def stepped(self, seconds: float, rows: int) -> None:
        """Takes the seconds of a step in which each of these rows was fed one token."""
        by_rows = dict(self.costs.step_seconds_by_rows)
        by_rows[rows] = _moved(by_rows.get(rows), seconds)
        self.costs = replace(
            self.costs,
            step_seconds=_moved(self.costs.step_seconds, seconds),
            step_seconds_by_rows=tuple(sorted(by_rows.items())),
        )

    def filled(self, tokens: int, columns: float, seconds: float) -> None:
        """Takes a fill of so many tokens. `columns`: the sum over its tokens of the columns that each attended to."""
        self._fills.append((tokens, columns, max(seconds, 1e-9)))
        measured = [(self._features(tokens, columns), seconds) for tokens, columns, seconds in self._fills]
        fits = _fitted(measured)
        ratios = [seconds / (_sum(fits, features) or 1e-9) for features, seconds in measured]
        fixed, token, column, *experts = (fit * max(1.0, high(ratios)) for fit in fits)
        self.costs = replace(
            self.costs,
            fill_fixed_seconds=fixed,
            fill_token_seconds=token,
            fill_column_seconds=column,
            fill_experts_seconds=sum(experts),
            fill_tokens=max(tokens for tokens, _, _ in self._fills),
        )

    def _features(self, tokens: int, columns: float) -> tuple[float, ...]:
        if not self.costs.chosen_share:
            return 1.0, float(tokens), columns
        return 1.0, float(tokens), columns, self.costs.share_chosen(tokens)


class AnswerMeter:
    """How much of their limit queries really generate. `share` is the high end of it, 1 at first."""

    def __init__(self) -> None:
        self.share = 1.0
        self._shares: deque[float] = deque(maxlen=_ANSWERS_KEPT)

    def finished(self, generated: int, limit: int) -> None:
        self._shares.append(generated / limit)
        if len(self._shares) >= _ANSWERS_NEEDED:
            self.share = high(self._shares)


def _moved(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST * (now - before)


def high(values: Iterable[float]) -> float:
    """The value that nine of ten of these do not exceed."""
    ordered = sorted(values)
    return ordered[math.ceil(_HIGH * len(ordered)) - 1]


def _fitted(measured: Sequence[tuple[tuple[float, ...], float]]) -> list[float]:
    """Fits weights, at least 0, of the features to the seconds, by relative error.

    Coordinate descent on the normal equations, each feature scaled to its own size.
    """
    rows = [[feature / seconds for feature in features] for features, seconds in measured]
    every = range(len(rows[0]))
    sizes = [math.sqrt(sum(row[i] ** 2 for row in rows)) or 1.0 for i in every]
    gram = [[sum(row[i] * row[j] for row in rows) / sizes[i] / sizes[j] for j in every] for i in every]
    aims = [sum(row[i] for row in rows) / sizes[i] for i in every]
    weights = [0.0 for _ in every]
    for _ in range(_SWEEPS):
        most = 0.0
        for i in (*every[1:], 0):
            rest = aims[i] - sum(gram[i][j] * weights[j] for j in every if j != i)
            weight = max(0.0, rest / (gram[i][i] or 1.0))
            most = max(most, abs(weight - weights[i]))
            weights[i] = weight
        if most <= _SETTLED * max(weights):
            break
    return [weight / size for weight, size in zip(weights, sizes, strict=True)]


def _sum(weights: Sequence[float], features: Sequence[float]) -> float:
    return sum(weight * feature for weight, feature in zip(weights, features, strict=True))
