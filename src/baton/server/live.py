"""The route that the live page and `baton top` draw from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidValue
from baton.server.workers import Workers

MOST_SERIAL = 2**53


class LiveView(BaseModel):
    """The last minutes of the running batch. `now` and all times: seconds of the engine's clock.

    `run` names this start of the server: if it changes, begin from 0 again. `stays`: which query held which row when,
    as lists of `stay_fields`. `buckets`: a list for each fact of each quarter of a second. `figures`: of the last
    minute.
    """

    model_config = ConfigDict(extra="allow")

    run: str
    model: str
    now: float
    serial: int
    window_seconds: float
    complete_from: float
    max_rows: int
    settings: dict[str, Any]
    stay_fields: list[str]
    stays: list[list[Any]]
    buckets: dict[str, list[float | None]]
    figures: dict[str, Any]
    engine: dict[str, Any]
    diagnosis: dict[str, str]
    process: dict[str, Any]


DESCRIBED: dict[str, Any] = {
    "responses": {200: {"model": LiveView}},
    "openapi_extra": {
        "parameters": [
            {
                "name": "serial",
                "in": "query",
                "description": "Stays that changed after this serial, as the last answer had it.",
                "schema": {"type": "integer", "minimum": 0, "maximum": MOST_SERIAL, "default": 0},
            },
            {
                "name": "time",
                "in": "query",
                "description": "Buckets from this time on, that of the newest bucket so far.",
                "schema": {"type": "number", "minimum": 0, "default": 0},
            },
        ]
    },
}


class LiveRoutes:
    """`live` returns what is new since a serial and a time, as JSON."""

    def __init__(self, live: Callable[[int, float], bytes], workers: Workers) -> None:
        self._live = live
        self._workers = workers

    async def data(self, request: Request) -> Response:
        """The running batch over the last minutes, or what is new of it. The page at /live draws it."""
        sent = request.query_params.multi_items()
        for name, _ in sent:
            if name not in ("serial", "time"):
                raise InvalidValue(f"unknown parameter {name}", param=name)
        given = dict(sent)
        if len(given) < len(sent):
            raise InvalidValue("serial and time may be given once each", param=sent[-1][0])
        serial, time = _serial(given.get("serial", "0")), _time(given.get("time", "0"))
        body = await self._workers.answer(self._live, serial, time)
        return Response(body, media_type="application/json", headers={"cache-control": "no-store"})


def _serial(text: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 17 and int(text) <= MOST_SERIAL:
        return int(text)
    raise InvalidValue(f"serial must be a whole number from 0 to {MOST_SERIAL}", param="serial")


def _time(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if "_" in text or not 0 <= seconds < math.inf:
        raise InvalidValue("time must be a number of seconds, 0 or more", param="time")
    return seconds
