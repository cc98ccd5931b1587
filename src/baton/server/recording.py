"""One request's answer, kept apart from its client's connection: clients may leave and come back for the rest."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from baton.core.errors import BatonError, DeadlinePassed, QueryFailed, ShuttingDown
from baton.core.events import Update, Usage
from baton.core.told import heard, told
from baton.engine.client import size_of
from baton.server.errors import internal_error

_log = logging.getLogger("baton.server")

News = AsyncGenerator[list[Update], None]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request whose answer is kept. With the updates it tells all of an answer's events, over and over.

    `key`: under which it is kept, of its id and its owner. `path` and `body`: as they were sent. `created`: seconds
    since 1970. `query_ids`: of its choices, in their order.
    """

    key: str
    path: str
    body: bytes
    model: str
    created: int
    query_ids: tuple[str, ...]
    stream: bool


@dataclass(eq=False, slots=True)
class Recording:
    """What the engine told of one answer so far. Everything here happens on one event loop.

    `news` makes the updates, when the first reader comes or `begin` is called. `left`: called when no reader is left.
    `grew`: called when its size has changed; `ended`: when there will be no more updates.
    """

    asked: RecordedRequest
    news: Callable[[], News]
    left: Callable[[Recording], None]
    grew: Callable[[Recording], None]
    ended: Callable[[Recording], None]
    updates: list[Update] = field(default_factory=list)
    failure: BatonError | None = None
    done: bool = False
    readers: int = 0
    bytes: int = 0
    moved: bool = False
    spent: dict[str, Usage] = field(default_factory=dict)
    """What queries took in engines that they left."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.bytes = len(self.asked.body) + sum(map(size_of, self.updates))

    def begin(self) -> None:
        if self._task is None and not self.done:
            self._task = asyncio.get_running_loop().create_task(self._record())

    async def settled(self, timeout_seconds: float) -> bool:
        """Waits until no update comes any more. Returns whether that is so."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_seconds)
        return self.done or self.moved

    def finish(self, error: BatonError | None) -> None:
        """The answer is whole, or ended with this error."""
        self.failure = error
        self._end()

    def stop(self, error: BatonError) -> None:
        """Ends the answer with this error for all who read it, and its queries."""
        self.failure = self.failure or error
        if self._task is not None:
            self._task.cancel()
        self._end()

    def leave(self, error: BatonError) -> None:
        """Readers who have read all there is get this error: the rest of the answer is elsewhere."""
        self.failure = self.failure or error
        self._tell()

    async def follow(self, silence_seconds: float) -> News:
        """All updates from the first on, as `Client.batches` has them. Raises what ended the answer."""
        self.readers += 1
        at = 0
        try:
            self.begin()
            while True:
                changed = self._changed
                if at < len(self.updates):
                    news, at = self.updates[at:], len(self.updates)
                    yield news
                elif self.failure is not None:
                    raise self.failure
                elif self.done:
                    return
                elif not await _within(silence_seconds, changed):
                    yield []
        finally:
            self.readers -= 1
            if not self.readers:
                self.left(self)

    async def _record(self) -> None:
        try:
            async with aclosing(self.news()) as batches:
                async for updates in batches:
                    self._take(updates)
        except asyncio.CancelledError:
            self.failure = self.failure or ShuttingDown("the answer was ended")
        except BatonError as error:
            self.failure = error
        except Exception:
            _log.exception("an answer could not be kept")
            self.failure = internal_error()
        if not self.moved:
            self._end()

    def _take(self, updates: Sequence[Update]) -> None:
        for update in updates:
            name = update.query_id
            if update.finish_reason == "moved":
                self.moved = True
                if update.usage is not None:
                    earlier = self.spent.get(name)
                    self.spent[name] = update.usage if earlier is None else update.usage.after(earlier)
                update = replace(update, finish_reason=None, usage=None, error=None)
                if not (update.token_ids or update.text):
                    continue
            elif update.usage is not None and name in self.spent:
                update = replace(update, usage=update.usage.after(self.spent.pop(name)))
            self.updates.append(update)
            self.bytes += size_of(update)
        self.grew(self)
        self._tell()

    def _end(self) -> None:
        if not self.done:
            self.done = True
            self._tell()
            self.ended(self)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def written(recording: Recording) -> bytes:
    """A recording as JSON, to be read by another process."""
    asked = recording.asked
    known: dict[str, Any] = {
        "key": asked.key,
        "path": asked.path,
        "body": asked.body.decode(),
        "model": asked.model,
        "created": asked.created,
        "query_ids": asked.query_ids,
        "stream": asked.stream,
        "done": recording.done,
        "error": None if recording.failure is None else [recording.failure.message, recording.failure.status],
        "updates": [told(update) for update in recording.updates],
        "spent": [told(Update(name, usage=usage)) for name, usage in recording.spent.items()],
    }
    return json.dumps(known).encode()


@dataclass(frozen=True, slots=True)
class Read:
    """What `written` wrote. `error`: what ended the answer."""

    asked: RecordedRequest
    updates: list[Update]
    spent: dict[str, Usage]
    done: bool
    error: BatonError | None


def read(data: bytes) -> Read:
    """Raises ValueError for what `written` did not write."""
    try:
        known = json.loads(data)
        strings = {name: str(known[name]) for name in ("key", "path", "model")}
        ids = tuple(map(str, known["query_ids"]))
        body, created = known["body"].encode(), int(known["created"])
        spent = [heard(one) for one in known["spent"]]
        return Read(
            RecordedRequest(**strings, body=body, created=created, query_ids=ids, stream=bool(known["stream"])),
            [heard(update) for update in known["updates"]],
            {one.query_id: one.usage for one in spent if one.usage is not None},
            bool(known["done"]),
            _error(*known["error"]) if known["error"] else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"this is no answer: {type(error).__name__}") from error


def _error(message: str, status: int) -> BatonError:
    kinds = {503: ShuttingDown, 504: DeadlinePassed}
    return kinds.get(status, QueryFailed)(message)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether the event came in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
