"""Has the lines of batches answered, a bounded number at a time, and keeps each answer when it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from baton.core.errors import BatonError, StorageFull
from baton.jobs.lines import Answer, BadLine, RawLine, answered, read_line, succeeded, unanswered
from baton.jobs.store import Batch, LineEntry, Status, Store

Ask = Callable[[str, bytes, str], Awaitable[Answer]]
"""Answers a line, given its url, its body and its batch's owner. Raises NoAnswer."""

_log = logging.getLogger("baton.jobs")


class NoAnswer(BatonError):
    """Lines cannot be answered now. The line stays unanswered and is asked again later."""

    exit_status = 1


class Place(Protocol):
    """Where the lines of batches come from, and where their answers go."""

    store: Store

    def read(self, batch: Batch, line: LineEntry) -> bytes:
        """The text of a line. Raises OSError."""

    def validate(self, batch: Batch) -> None:
        """Has a batch begin, or fail."""

    def finish(self, batch: Batch) -> None:
        """Writes the answers, and has the batch end as it is to end."""


class Runner:
    """Works on all batches of a place, the oldest first. All of it is called on one event loop.

    `at_once`: so many lines are asked at a time, of all batches together. `on_answer` is called for each answer
    that was kept.
    """

    def __init__(
        self, place: Place, ask: Ask, at_once: int, on_answer: Callable[[Batch, bool], None] = lambda batch, good: None
    ) -> None:
        self._place = place
        self._store = place.store
        self._ask = ask
        self._at_once = at_once
        self._on_answer = on_answer
        self._asked: dict[asyncio.Task[None], tuple[str, int]] = {}
        self._begun: dict[str, int] = {}  # by batch, the number of the last line that was asked
        self._news = asyncio.Event()

    def wake(self) -> None:
        """A batch was added, or is to be cancelled."""
        self._news.set()

    async def run(self) -> None:
        """Returns when no batch has anything left to do. Raises NoAnswer, or StorageFull, with nothing lost."""
        try:
            while True:
                self._news.clear()
                self._settle()
                self._fill()
                if not self._asked and not self._news.is_set():
                    return
                await self._wait()
        finally:
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)
            self._asked.clear()
            self._begun.clear()

    def _settle(self) -> None:
        """Has batches begin and end."""
        for batch in self._store.batches_at(Status.VALIDATING):
            self._place.validate(batch)
        for batch in self._store.batches_at(Status.CANCELLING):
            mine = [task for task, (batch_id, _) in self._asked.items() if batch_id == batch.id]
            for task in mine:
                task.cancel()
            if not mine:
                self._place.finish(batch)
        for batch in self._store.batches_at(Status.IN_PROGRESS, Status.FINALIZING):
            if not batch.left:
                self._place.finish(batch)

    def _fill(self) -> None:
        """Asks as many lines as allowed. The next batch begins while the last lines of one are being answered."""
        for batch in self._store.batches_at(Status.IN_PROGRESS):
            room = self._at_once - len(self._asked)
            if room <= 0:
                return
            for line in self._store.unanswered(batch.id, self._begun.get(batch.id, 0), room):
                task = asyncio.get_running_loop().create_task(self._answer(batch, line))
                self._asked[task] = (batch.id, line.number)
                self._begun[batch.id] = line.number

    async def _wait(self) -> None:
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({news, *self._asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await news
        for task in [task for task in self._asked if task.done()]:
            del self._asked[task]
            if not task.cancelled():
                task.result()

    async def _answer(self, batch: Batch, line: LineEntry) -> None:
        name = f"batch_req_{batch.id.removeprefix('batch_')}_{line.number}"
        try:
            request = read_line(RawLine(line.number, line.offset, line.size, self._place.read(batch, line)))
            if request.custom_id != line.custom_id:
                raise BadLine("input_changed", "the file has another line here than when the batch began")
            answer = await self._ask(request.url, request.seeded(batch.seed), batch.owner)
            text, good = answered(name, request.custom_id, answer), succeeded(answer)
        except (NoAnswer, StorageFull):
            raise
        except BadLine as error:
            text, good = unanswered(name, line.custom_id, error.code, error.message), False
        except OSError as error:
            text, good = unanswered(name, line.custom_id, "input_unreadable", f"{error.strerror or error}"), False
        except Exception:
            _log.exception("line %d of %s failed", line.number, batch.id)
            message = "the server failed on this line; its log says why"
            text, good = unanswered(name, line.custom_id, "internal_error", message), False
        self._keep(batch, line, name, text, good=good)

    def _keep(self, batch: Batch, line: LineEntry, name: str, text: str, *, good: bool) -> None:
        try:
            kept = self._store.answer(batch.id, line.number, text, good=good)
        except StorageFull as error:
            # An answer may be large, and that it could not be kept is a short line.
            short = unanswered(name, line.custom_id, str(error.code), error.message)
            kept, good = self._store.answer(batch.id, line.number, short, good=False), False
        if kept:
            self._on_answer(batch, good)
