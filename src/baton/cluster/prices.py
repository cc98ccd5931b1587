"""What it costs to compute tokens again, and to move their keys and values: measured by engines, for the front."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_KEPT = 16


@dataclass(frozen=True, slots=True)
class Line:
    """So many seconds whatever the amount, and for each token."""

    fixed: float
    each: float

    def seconds(self, tokens: int) -> float:
        return self.fixed + self.each * tokens


@dataclass(frozen=True, slots=True)
class Prices:
    """What one engine has measured; None before the first time.

    `fill`: computing tokens. `column`: seconds more for each token and each one before it, of a fill. `put`, `get`:
    laying down keys and values of tokens, and fetching them.
    """

    fill: Line | None = None
    column: float = 0.0
    put: Line | None = None
    get: Line | None = None


class Carried:
    """The last parcels that were laid down, or fetched. One thread at a time."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def add(self, tokens: int, seconds: float) -> None:
        self._last.append((tokens, seconds))

    def line(self) -> Line | None:
        """The line through these by least squares, of which neither part is below 0. None before the first."""
        if not self._last:
            return None
        count = len(self._last)
        tokens, seconds = (sum(one[at] for one in self._last) / count for at in (0, 1))
        spread = sum((one - tokens) ** 2 for one, _ in self._last)
        each = sum((one - tokens) * (took - seconds) for one, took in self._last) / spread if spread else -1.0
        if each < 0:  # of one size, or noise: by bandwidth alone
            return Line(0.0, seconds / max(tokens, 1))
        if seconds < each * tokens:
            return Line(0.0, sum(one * took for one, took in self._last) / sum(one**2 for one, _ in self._last))
        return Line(seconds - each * tokens, each)


class PriceBook:
    """What engines say that they have measured. What lost engines said of parcels is kept. One thread at a time."""

    def __init__(self) -> None:
        self._prices: dict[str, Prices] = {}
        self._last = Prices()

    def heard(self, engine: str, prices: Prices) -> None:
        self._prices[engine] = prices
        last = self._last
        fill, column = (last.fill, last.column) if prices.fill is None else (prices.fill, prices.column)
        self._last = Prices(fill, column, prices.put or last.put, prices.get or last.get)

    def lost(self, engine: str) -> None:
        self._prices.pop(engine, None)

    def keys_pay(self, tokens: int, engine: str | None = None) -> bool:
        """Whether so many tokens' keys and values come sooner than they are computed. They do until both are known.

        `engine`: whose speed counts, if it has computed something; else what was heard last counts.
        """
        own = self._prices.get(engine or "", self._last)
        own = self._last if own.fill is None else own
        put, get = self._last.put, self._last.get
        if own.fill is None or put is None or get is None:
            return True
        again = own.fill.seconds(tokens) + own.column * tokens * (tokens + 1) / 2
        return put.seconds(tokens) + get.seconds(tokens) <= again


def prices_told(prices: Prices) -> Mapping[str, Any]:
    """As plain JSON."""
    lines = {name: getattr(prices, name) for name in ("fill", "put", "get")}
    told = {name: None if line is None else [line.fixed, line.each] for name, line in lines.items()}
    return {**told, "column": prices.column}


def prices_heard(told: Mapping[str, Any]) -> Prices:
    """Raises KeyError, TypeError and ValueError for what is not as `prices_told` returns it."""
    lines: dict[str, Any] = {}
    for name in ("fill", "put", "get"):
        lines[name] = None if told[name] is None else Line(*map(float, told[name]))
    return Prices(column=float(told["column"]), **lines)
