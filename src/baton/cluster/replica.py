"""What an engine's process offers to fronts, as the class on Ray Serve sees it. Its body is `cli/serve_replica.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from baton.cluster.port import Depot
from baton.cluster.served import ServedEngine
from baton.cluster.wire import Message


class Replica(Protocol):
    """A running engine. Safe to call from any thread."""

    def introduction(self) -> Message:
        """As `wire.introduction`."""

    def served(self, send: Callable[[Message], None], depot: Depot) -> ServedEngine:
        """The engine for one front, to which `send` brings messages."""

    def metrics(self) -> Message:
        """Values of all metrics since its start, as plain JSON."""

    def live(self, serial: int, time: float) -> bytes:
        """What the live page draws, as JSON."""

    def rows_wanted(self) -> float:
        """How many such engines the last minute's load would keep busy."""

    def trouble(self) -> str | None:
        """Why the process must be replaced; None if all is well. A full queue is no trouble."""

    def close(self) -> None: ...


Open = Callable[[Mapping[str, Any]], Replica]
"""Loads a model by these settings and starts its engine. Raises BatonError."""
