"""The route by which clients come back for their answers: `/v1/baton/streams/{id}`."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidValue
from baton.server.generate import Generating
from baton.server.keeping import Keeping, Kept
from baton.server.stored_answers import StreamDropped
from baton.server.workers import Workers

_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_EVENTS = 999_999_999


def add_streams(app: FastAPI, keeping: Keeping, generating: Generating, workers: Workers) -> None:
    routes, path = StreamRoutes(keeping, generating, workers), "/v1/baton/streams/{stream_id}"
    named = {"name": "stream_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    number = {"type": "integer", "minimum": 0, "maximum": _MOST_EVENTS}
    after = {"name": "after", "in": "query", "schema": number, "description": "So many events have come."}
    answer = {
        "description": "As the request was answered: a stream's events, or the whole body.",
        "content": {"application/json": {"schema": {}}, "text/event-stream": {"schema": {"type": "string"}}},
    }
    more: dict[str, Any] = {"response_model": None, "responses": {200: answer}}
    app.add_api_route(path, routes.stream, openapi_extra={"parameters": [named, after]}, **more)
    more = {"response_model": None, "responses": {200: {"model": StreamDropped}}}
    app.add_api_route(path, routes.drop, methods=["DELETE"], openapi_extra={"parameters": [named]}, **more)


class StreamRoutes:
    """The routes by which clients come back for their answers."""

    def __init__(self, keeping: Keeping, generating: Generating, workers: Workers) -> None:
        self._keeping = keeping
        self._generating = generating
        self._workers = workers

    async def stream(self, request: Request) -> Response:
        """The answer to an earlier request, or the rest of it, as it was asked for."""
        recording, request_id = self._keeping.find(request)
        asked = recording.asked
        after = _after(request, stream=asked.stream)
        # Reading the request again makes whatever wrote its answer, in the state in which it began.
        make_job = self._generating.job_of[asked.path]
        job = await self._workers.prepare(len(asked.body), make_job, asked.body, "")
        return await self._generating.respond(
            request, job.again(asked.query_ids, asked.created), Kept(recording, request_id, after)
        )

    async def drop(self, request: Request) -> Response:
        """Ends an answer, if it has not ended, and forgets it."""
        recording, request_id = self._keeping.find(request)
        self._keeping.forget(recording)
        return Response(f'{{"id":"{request_id}","deleted":true}}', media_type="application/json")


def _after(request: Request, *, stream: bool) -> int:
    """How many events the client has. Raises InvalidValue."""
    unknown = set(request.query_params) - {"after"}
    if unknown:
        name = sorted(unknown)[0]
        raise InvalidValue(f"unknown parameter {name}: after is the only one", param=name)
    sent = request.query_params.get("after") or (request.headers.get("last-event-id") if stream else None)
    if sent is None:
        return 0
    if not stream:
        raise InvalidValue("after: this answer was not asked for as a stream, and comes whole", param="after")
    if not _NUMBER.fullmatch(sent):
        raise InvalidValue("after must be the number of events that have come, from 0 on", param="after")
    return int(sent)
