"""Which answers are kept for clients that come back, and the route by which they do: `/v1/baton/streams/{id}`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidValue
from baton.server.auth import key_of
from baton.server.errors import NotFound
from baton.server.recording import Asked, Recording
from baton.server.streams import LEAST_CHARACTERS, Streams

if TYPE_CHECKING:  # which imports this
    from baton.server.generate import Generating, Job

KEPT = "x-baton-stream"
"""The header of an answer that is kept: the id under which it is."""
_ID = re.compile(r"[A-Za-z0-9._~-]{1,256}")
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer that is kept. `after`: so many of its events are left out."""

    recording: Recording
    request_id: str
    after: int = 0


class Keeping:
    """Decides which answers are kept. `keys`: requests need one, and each answer is its key's."""

    def __init__(self, streams: Streams, *, keys: bool) -> None:
        self._streams = streams
        self._keys = keys

    def keep(self, request: Request, path: str, job: Job) -> Kept | None:
        """Keeps the answer to this request; None for one whose id is in use, or could be guessed by others."""
        request_id = str(request.state.request_id)
        chosen = "x-request-id" in request.headers and not self._keys
        if not _ID.fullmatch(request_id) or (chosen and len(request_id) < LEAST_CHARACTERS):
            return None
        queries = [choice.query for choice in job.choices]
        asked = Asked(
            key=self._streams.key(request_id, key_of(request.scope)),
            path=path,
            body=job.body_sent,
            model=job.model,
            created=job.created,
            query_ids=tuple(query.id for query in queries),
            stream=job.asked.stream,
        )
        recording = self._streams.record(asked, queries)
        return None if recording is None else Kept(recording, request_id)

    def find(self, request: Request) -> tuple[Recording, str]:
        """The recording that a request's path names, and its id. Raises NotFound, also for another key's."""
        request_id = str(request.path_params["stream_id"])
        recording = self._streams.find(self._streams.key(request_id, key_of(request.scope)))
        if recording is None:
            raise NotFound("no answer is kept under this id: it was not asked for with this key, or its time is over")
        return recording, request_id

    def forget(self, recording: Recording) -> None:
        self._streams.forget(recording)


class StreamRoutes:
    """The routes by which clients come back for their answers."""

    def __init__(self, keeping: Keeping, generating: Generating, prepare: Callable[..., Any]) -> None:
        self._keeping = keeping
        self._generating = generating
        self._prepare = prepare

    async def stream(self, request: Request) -> Response:
        """The answer to an earlier request, or the rest of it, as it was asked for."""
        recording, request_id = self._keeping.find(request)
        asked = recording.asked
        after = _after(request, stream=asked.stream)
        # Reading the request again makes whatever wrote its answer, in the state in which it began.
        make_job = self._generating.job_of[asked.path]
        job = await self._prepare(len(asked.body), make_job, asked.body, "")
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
