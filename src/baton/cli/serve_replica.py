"""One of several engines, in the process that Ray Serve gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from baton.cli.live import live_view, read_bytes_per_second
from baton.cli.logs import start_logging
from baton.cluster.port import Depot
from baton.cluster.served import ServedEngine
from baton.cluster.wire import Message, introduction
from baton.compose import model_name, open_engine, set_threads
from baton.core.clock import monotonic
from baton.core.config import make_config
from baton.core.errors import EngineUnhealthy, ShuttingDown
from baton.fronts import introduced, served_engine
from baton.observe.metrics import Metrics
from baton.observe.timeline import Timeline


class EngineReplica:
    """An engine for fronts elsewhere; see `cluster/replica.py`."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """`values`: settings. Raises SettingError and LoadError."""
        config = make_config(values)
        start_logging(config.log_level)
        self._metrics, timeline = Metrics(model_name(config), monotonic), Timeline()
        set_threads(config)
        read_bytes = read_bytes_per_second()
        self._engine = open_engine(config, sinks=[self._metrics, timeline])
        self._client = self._engine.client
        self._client.prepare()
        self._metrics.max_rows = self._engine.settings.max_rows
        self._view = live_view(self._engine, timeline, read_bytes)

    def introduction(self) -> Message:
        return introduction(introduced(self._engine))

    def served(self, send: Callable[[Message], None], depot: Depot) -> ServedEngine:
        return served_engine(self._engine, send, depot)

    def metrics(self) -> Message:
        return self._metrics.told(self._client.stats())

    def live(self, serial: int, time: float) -> bytes:
        return self._view(serial, time)

    def rows_wanted(self) -> float:
        wanted = self._metrics.wanted(self._client.stats())
        return max(wanted.rows, wanted.memory)

    def trouble(self) -> str | None:
        if (stuck := self._client.stuck_seconds()) > self._engine.settings.hang_seconds:
            return f"no iteration for {stuck:.0f} s (--hang-timeout)"
        try:
            self._client.check_room(0)
        except EngineUnhealthy as error:
            return error.message
        except ShuttingDown:
            return None
        return None

    def close(self) -> None:
        self._engine.close()
