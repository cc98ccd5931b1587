"""The routes of OpenAI's batches, whose lines run behind all requests."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, StringConstraints
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidValue, Unsupported, quoted
from baton.core.limits import LimitExceeded, Limits, flag_of
from baton.engine.client import Held
from baton.jobs.folder import Folder
from baton.jobs.lines import URLS
from baton.jobs.store import ENDED, Batch, FileEntry, Status, new_id, now
from baton.jobs.thread import RunnerThread
from baton.server.auth import key_of
from baton.server.body import body_of, parse_object
from baton.server.errors import NotFound, cut
from baton.server.field_rules import Rules
from baton.server.fields import Strict
from baton.server.stored_answers import BatchObject
from baton.server.stream import InSlices
from baton.server.workers import Workers
from baton.server.written import written

MOST_LISTED, LISTED = 100, 20
_MOST_PAIRS, _MOST_NAME, _MOST_VALUE = 16, 64, 512
_Listed = TypeVar("_Listed", Batch, FileEntry)


class BatchRequest(Strict):
    """The body of `POST /v1/batches`."""

    rules: ClassVar[Rules] = {}

    input_file_id: str
    endpoint: Literal[URLS]  # type: ignore[valid-type]
    completion_window: Literal["24h"] = Field(description="Taken as it is; a batch is not given up for its age.")
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=_MOST_NAME)],
                Annotated[str, StringConstraints(max_length=_MOST_VALUE)],
            ],
            Field(max_length=_MOST_PAIRS),
        ]
        | None
    ) = None


class Owners:
    """Files and batches belong to the key that they came with. Without keys they belong to everybody."""

    def __init__(self, folder: Folder, *, keys: bool) -> None:
        self._folder = folder
        self._keys = keys

    def owner(self, request: Request) -> str:
        return self._folder.store.owner_of(key_of(request.scope)) if self._keys else ""


class BatchRoutes:
    """Routes over a folder. `thread` works on what they add."""

    def __init__(
        self, folder: Folder, thread: RunnerThread, owners: Owners, workers: Workers, answers: Held, limits: Limits
    ) -> None:
        self._folder = folder
        self._store = folder.store
        self._thread = thread
        self._owners = owners
        self._workers = workers
        self._answers = answers
        self._bodies = Held(limits.max_bodies_bytes)
        self._limits = limits

    async def create_batch(self, request: Request) -> Response:
        """Begins a batch over an uploaded file."""
        async with body_of(request, self._limits, self._bodies) as body:
            batch = await self._workers.prepare(len(body), self._created, body, self._owners.owner(request))
        self._thread.wake()
        return self._json(batch_body(batch))

    async def batches(self, request: Request) -> Response:
        """All batches, the newest first."""
        asked = page_of(request, {"limit", "after"}, LISTED, MOST_LISTED)
        batches = await self._workers.answer(self._store.batches, self._owners.owner(request))
        return self._json(listed(batches[::-1], asked, batch_body))

    async def batch(self, request: Request) -> Response:
        return self._json(batch_body(await self._workers.answer(self._found, *self._named(request))))

    async def cancel_batch(self, request: Request) -> Response:
        """Ends a batch. Answers so far are kept."""
        batch = await self._workers.answer(self._cancelled, *self._named(request))
        self._thread.wake()
        return self._json(batch_body(batch))

    def _named(self, request: Request) -> tuple[str, str]:
        return request.path_params["batch_id"], self._owners.owner(request)

    def _found(self, batch_id: str, owner: str) -> Batch:
        batch = self._store.batch(batch_id, owner)
        if batch is None:
            raise NotFound(f"there is no batch {cut(batch_id, _MOST_NAME)!r}")
        return batch

    def _created(self, body: bytes, owner: str) -> Batch:
        asked = BatchRequest.read(parse_object(body, self._limits))
        file = self._store.file(asked.input_file_id, owner)
        if file is None:
            raise NotFound(f"there is no file {cut(asked.input_file_id, _MOST_NAME)!r}", param="input_file_id")
        if file.purpose != "batch":
            raise InvalidValue(f"the file's purpose is {file.purpose}, not batch", param="input_file_id")
        most = self._limits.max_batches
        if self._store.drop_batches(most - 1) >= most:
            raise LimitExceeded(f"{most} batches have not ended, as many as may be kept ({flag_of('max_batches')})")
        batch = Batch(
            id=new_id("batch_"),
            owner=owner,
            endpoint=asked.endpoint,
            source=file.id,
            seed=secrets.randbits(63),
            created_at=now(),
            metadata=asked.metadata,
        )
        self._store.add_batch(batch)
        return batch

    def _cancelled(self, batch_id: str, owner: str) -> Batch:
        while (batch := self._found(batch_id, owner)).status in (Status.VALIDATING, Status.IN_PROGRESS):
            cancelling = batch.at(Status.CANCELLING, now())
            # The runner may have changed the status meanwhile.
            if self._store.change(cancelling, [batch.status]):
                return self._found(batch_id, owner)
        if batch.status in ENDED and batch.status is not Status.CANCELLED:
            raise InvalidValue(f"the batch has ended: it is {batch.status.value}")
        return batch

    def _json(self, value: object) -> Response:
        return InSlices(written(value), self._answers)


class Page:
    """Which part of a list a request wants."""

    def __init__(self, limit: int, after: str | None, order: str) -> None:
        self.limit = limit
        self.after = after
        self.order = order


def page_of(request: Request, known: set[str], usual: int, most: int) -> Page:
    """Reads the query parameters of a list. Raises InvalidValue or Unsupported."""
    sent = request.query_params
    for name in sent:
        if name not in known:
            raise Unsupported(f"unknown field {quoted(name)}", param=name)
    limit = sent.get("limit", str(usual))
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 9 and 1 <= int(limit) <= most):
        raise InvalidValue(f"limit must be between 1 and {most}, got {quoted(limit)}", param="limit")
    order = sent.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidValue(f"order must be asc or desc, got {quoted(order)}", param="order")
    return Page(int(limit), sent.get("after"), order)


def listed(entries: Sequence[_Listed], page: Page, body_of: Callable[[_Listed], dict[str, Any]]) -> dict[str, Any]:
    """Returns a part of a list as OpenAI writes it. Raises NotFound if `after` names nothing in it."""
    start = 0
    if page.after is not None:
        start = next((at + 1 for at, one in enumerate(entries) if one.id == page.after), -1)
        if start < 0:
            raise NotFound(f"there is no {cut(page.after, _MOST_NAME)!r} in the list", param="after")
    shown = entries[start : start + page.limit]
    ends = {"first_id": shown[0].id, "last_id": shown[-1].id} if shown else {"first_id": None, "last_id": None}
    more = start + page.limit < len(entries)
    return {"object": "list", "data": [body_of(one) for one in shown], **ends, "has_more": more}


def batch_body(batch: Batch) -> dict[str, Any]:
    """The batch as OpenAI writes it."""
    times = {f"{status}_at": batch.times.get(status) for status in Status if status is not Status.VALIDATING}
    errors = {"object": "list", "data": batch.errors} if batch.errors else None
    known = {
        "id": batch.id,
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.source,
        "status": batch.status.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_at,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
    }
    return BatchObject.model_validate({**known, **times}).model_dump()
