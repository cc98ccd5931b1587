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

    `run` names this start of an engine: if it changes, begin from 0 again. `replica` and `replicas`: whose this is, and
    all that there are, if there are several; `prefill`: those of them that compute prompts for the others. `stays`:
    which query held which row when, as lists of `stay_fields`. `buckets`: a list for each fact of each quarter of a
    second. `figures`: of the last minute.
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
    replica: str = ""
    replicas: list[str] = []
    prefill: list[str] = []


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


REPLICA: dict[str, Any] = {
    "name": "replica",
    "in": "query",
    "description": "The engine to look at, of several (--replicas); the first if left out or gone.",
    "schema": {"type": "string", "default": ""},
}


def described_live(several: bool) -> dict[str, Any]:
    """What the API's description says of the route. `several`: engines."""
    if not several:
        return DESCRIBED
    parameters = [*DESCRIBED["openapi_extra"]["parameters"], REPLICA]
    return {**DESCRIBED, "openapi_extra": {"parameters": parameters}}


class LiveRoutes:
    """`live` returns what is new since a serial and a time, as JSON. `live_of` returns it of one of several engines."""

    def __init__(
        self,
        live: Callable[[int, float], bytes] | None,
        workers: Workers,
        live_of: Callable[[int, float, str], bytes] | None = None,
    ) -> None:
        self._live = live
        self._live_of = live_of
        self._workers = workers

    async def data(self, request: Request) -> Response:
        """The running batch over the last minutes, or what is new of it. The page at /live draws it."""
        sent = request.query_params.multi_items()
        several = self._live_of is not None
        for name, _ in sent:
            if name not in ("serial", "time") and not (several and name == "replica"):
                raise InvalidValue(f"unknown parameter {name}", param=name)
        given = dict(sent)
        if len(given) < len(sent):
            raise InvalidValue("each parameter may be given once", param=sent[-1][0])
        serial, time = _serial(given.get("serial", "0")), _time(given.get("time", "0"))
        if self._live_of is not None:
            body = await self._workers.answer(self._live_of, serial, time, given.get("replica", ""))
        else:
            assert self._live is not None
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
