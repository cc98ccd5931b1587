"""Which answers are kept for clients that come back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from baton.core.query import Query
from baton.server.auth import key_of
from baton.server.errors import NotFound
from baton.server.recording import RecordedRequest, Recording
from baton.server.streams import LEAST_CHARACTERS, Streams

KEPT = "x-baton-stream"
"""The header of an answer that is kept: the id under which it is."""
_ID = re.compile(r"[A-Za-z0-9._~-]{1,256}")


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

    def keep(
        self,
        request: Request,
        path: str,
        body: bytes,
        queries: Sequence[Query],
        *,
        model: str,
        created: int,
        stream: bool,
    ) -> Kept | None:
        """Keeps the answer to this request; None for one whose id is in use, or could be guessed by others."""
        request_id = str(request.state.request_id)
        chosen = "x-request-id" in request.headers and not self._keys
        if not _ID.fullmatch(request_id) or (chosen and len(request_id) < LEAST_CHARACTERS):
            return None
        asked = RecordedRequest(
            key=self._streams.key(request_id, key_of(request.scope)),
            path=path,
            body=body,
            model=model,
            created=created,
            query_ids=tuple(query.id for query in queries),
            stream=stream,
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
