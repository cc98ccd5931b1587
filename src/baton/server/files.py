"""The routes of OpenAI's files: uploaded files of requests, and output files of batches."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import IO, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from baton.core.errors import InvalidValue, RequestError, quoted
from baton.core.limits import LimitExceeded, Limits, flag_of
from baton.engine.client import Held
from baton.jobs.folder import Folder
from baton.jobs.store import FileEntry, new_id, now
from baton.server.batches import Owners, listed, page_of
from baton.server.errors import NotFound, cut
from baton.server.stored_answers import FileObject
from baton.server.stream import InSlices
from baton.server.uploads import receive
from baton.server.workers import Workers
from baton.server.written import written

MOST_LISTED = 10_000
_PURPOSE = "purpose"
_SLICE = 256 * 2**10
_MOST_NAME = 256


class FileInUse(RequestError):
    """A batch that has not ended needs the file."""

    code = "file_in_use"


class FileRoutes:
    """Routes over a folder."""

    def __init__(self, folder: Folder, owners: Owners, workers: Workers, answers: Held, limits: Limits) -> None:
        self._folder = folder
        self._store = folder.store
        self._owners = owners
        self._workers = workers
        self._answers = answers
        self._limits = limits
        self._arriving = 0

    async def create_file(self, request: Request) -> Response:
        """Keeps a file that is uploaded as `multipart/form-data`, with the purpose batch."""
        owner = self._owners.owner(request)
        kept = await self._workers.answer(self._store.count_files)
        most = self._limits.max_files
        if kept + self._arriving >= most:
            message = f"{most} files are kept, as many as may be ({flag_of('max_files')}): delete some"
            raise LimitExceeded(message, param="file")
        self._arriving += 1
        try:
            return self._json(file_body(await self._kept(request, owner)))
        finally:
            self._arriving -= 1

    async def files(self, request: Request) -> Response:
        """All files, the newest first."""
        asked = page_of(request, {"limit", "after", "order", _PURPOSE}, MOST_LISTED, MOST_LISTED)
        purpose = request.query_params.get(_PURPOSE)
        files = await self._workers.answer(self._store.files, self._owners.owner(request))
        files = [file for file in files if purpose in (None, file.purpose)]
        return self._json(listed(files if asked.order == "asc" else files[::-1], asked, file_body))

    async def file(self, request: Request) -> Response:
        return self._json(file_body(await self._workers.answer(self._found, *self._named(request))))

    async def delete_file(self, request: Request) -> Response:
        file_id = await self._workers.answer(self._removed, *self._named(request))
        return self._json({"id": file_id, "object": "file", "deleted": True})

    async def file_content(self, request: Request) -> Response:
        """The file as it is."""
        file = await self._workers.answer(self._found, *self._named(request))
        opened = await self._workers.answer(self._folder.open, file.id)
        headers = {"content-length": str(file.bytes), "content-disposition": "attachment"}
        return StreamingResponse(self._slices(opened), headers=headers, media_type="application/octet-stream")

    async def _kept(self, request: Request, owner: str) -> FileEntry:
        file_id = new_id("file-")
        async with self._opened(self._folder.new_file(file_id)) as target:
            sent = await receive(request, target, self._limits, self._workers, frozenset({_PURPOSE}))
            if sent.get(_PURPOSE) != "batch":
                raise InvalidValue(f"purpose must be batch, got {quoted(sent.get(_PURPOSE))}", param=_PURPOSE)
        file = FileEntry(file_id, owner, sent["bytes"], now(), sent["filename"][:_MOST_NAME], "batch")
        await self._workers.answer(self._store.add_file, file)
        return file

    @asynccontextmanager
    async def _opened(self, opening: AbstractContextManager[IO[bytes]]) -> AsyncGenerator[IO[bytes], None]:
        """Opens and closes the file on another thread, because the disk may take its time."""
        target = await self._workers.answer(opening.__enter__)
        try:
            yield target
        except BaseException as error:
            if not await self._workers.answer(opening.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await self._workers.answer(opening.__exit__, None, None, None)

    async def _slices(self, file: IO[bytes]) -> AsyncGenerator[bytes, None]:
        try:
            while data := await self._workers.answer(file.read, _SLICE):
                yield data
        finally:
            file.close()

    def _named(self, request: Request) -> tuple[str, str]:
        return request.path_params["file_id"], self._owners.owner(request)

    def _found(self, file_id: str, owner: str) -> FileEntry:
        file = self._store.file(file_id, owner)
        if file is None:
            raise NotFound(f"there is no file {cut(file_id, _MOST_NAME)!r}")
        return file

    def _removed(self, file_id: str, owner: str) -> str:
        file = self._found(file_id, owner)
        if self._folder.in_use(file.id):
            raise FileInUse(f"a batch that has not ended needs the file {file.id}")
        self._folder.remove(file.id)
        return file.id

    def _json(self, value: object) -> Response:
        return InSlices(written(value), self._answers)


def file_body(file: FileEntry) -> dict[str, Any]:
    """The file as OpenAI writes it."""
    return FileObject(
        id=file.id, bytes=file.bytes, created_at=file.created_at, filename=file.filename, purpose=file.purpose
    ).model_dump()
