"""Which engines hang: those of which nothing is heard, and those that say so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

CHECKS = 4
"""An engine hangs that is silent at so many checks in a row. So a front that was stopped and goes on gives up none."""


@dataclass(slots=True)
class _Heard:
    at: float
    stuck_seconds: float = 0.0
    checks: int = 0


class Silence:
    """An engine may be silent, or stuck, for `most_seconds`. One thread at a time."""

    def __init__(self, most_seconds: float) -> None:
        self._most_seconds = most_seconds
        self._heard: dict[str, _Heard] = {}

    def heard(self, engine: str, now: float, stuck_seconds: float) -> None:
        """There is a message. `stuck_seconds`: for so long the engine has had work and not come round."""
        known = self._heard.setdefault(engine, _Heard(now))
        known.at, known.stuck_seconds = now, stuck_seconds
        if stuck_seconds <= self._most_seconds:
            known.checks = 0

    def lost(self, engine: str) -> None:
        """It is not there any more."""
        self._heard.pop(engine, None)

    def beyond(self, aboard: Collection[str], now: float) -> list[str]:
        """Returns the engines with queries on board that hang."""
        hanging = []
        for engine in sorted(aboard):
            known = self._heard.setdefault(engine, _Heard(now))
            silent = max(now - known.at, known.stuck_seconds)
            known.checks = known.checks + 1 if silent > self._most_seconds else 0
            if known.checks >= CHECKS:
                hanging.append(engine)
        return hanging
