"""What computing costs, measured while it runs."""

from __future__ import annotations

from baton.policy.port import Costs

# Weight of the newest measurement: about ten iterations of memory.
_NEWEST = 0.1


class CostMeter:
    """Moving averages; `costs` is the frozen view that policies get."""

    def __init__(self) -> None:
        self.costs = Costs()

    def stepped(self, seconds: float) -> None:
        """A step in which each row was fed one token."""
        self.costs = Costs(_moved(self.costs.step_seconds, seconds), self.costs.fill_token_seconds)

    def filled(self, tokens: int, seconds: float) -> None:
        """A prefill of so many tokens. Small ones say little about a token's cost and count for less."""
        before = self.costs.fill_token_seconds
        weight = min(1.0, tokens / 64)
        self.costs = Costs(self.costs.step_seconds, _moved(before, seconds / tokens, weight))


def _moved(before: float | None, now: float, weight: float = 1.0) -> float:
    return now if before is None else before + _NEWEST * weight * (now - before)
