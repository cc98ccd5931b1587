"""Answers that outlive their connections and this process: `--handover`.

What is running when the process is told to end goes into a folder, with its keys and values, and the next process takes
it up. Clients come back with their request's id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import BatonError, HandedOver, ModelNotFound, Overloaded, ShuttingDown
from baton.core.limits import Limits
from baton.core.threads import started
from baton.engine.client import Client, Held
from baton.server.recording import News, RecordedRequest, Recording, read, written

KEPT_AT_ONCE = 4096
"""The most answers that are kept, those that are read among them. Beyond it, answers end with their connections."""
LEAST_CHARACTERS = 16
"""Of an id that a client chose itself, on a server without keys: a client that knows an id may read its answer."""
_LAST_UPDATES_SECONDS = 10.0
_NOTHING_GIVEN_SECONDS = 1.0
_HERE = "GET /v1/baton/streams/{id}, with this request's x-request-id, has the answer once it is back"

_log = logging.getLogger("baton.server")


class Folder(Protocol):
    """Where answers are between two processes. Its body is `kv/handover.py`."""

    def digest(self, text: str) -> str: ...

    def put(self, name: str, told: bytes, segments: Sequence[Any]) -> bool: ...

    def names(self) -> list[str]: ...

    def take(self, name: str, compile: Callable[[OutputFormat], Constraint]) -> tuple[bytes, list[Any]]: ...

    def drop(self, name: str) -> None: ...

    def set_aside(self, name: str, why: str) -> None: ...


class Streams:
    """The answers that are kept. Everything but `drain` happens on the server's event loop."""

    def __init__(self, folder: Folder, client: Client, limits: Limits) -> None:
        self._folder = folder
        self._client = client
        self._limits = limits
        self._kept: dict[str, Recording] = {}
        self._held = Held(limits.handover_memory)
        self._holds: dict[Recording, Any] = {}
        self._timers: dict[Recording, asyncio.TimerHandle] = {}
        self._handing: Future[None] | None = None
        # A thread of its own: the folder is slow, and others' threads may be busy.
        self._thread = started(1, "baton-handover")
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def key(self, request_id: str, owner: bytes) -> str:
        """Under what an answer is kept: only its owner's requests come to it."""
        return self._folder.digest(f"{owner.hex()} {request_id}")

    def record(self, asked: RecordedRequest, queries: Sequence[Any]) -> Recording | None:
        """Keeps the answer to these queries. None if it cannot be kept, because its id is in use or there are too many.

        Nothing is asked of the engine until the answer is read.
        """
        known = self._kept.get(asked.key)
        if known is not None and not known.done:
            return None
        while len(self._kept) >= KEPT_AT_ONCE:
            if not self._drop_oldest():
                return None
        if known is not None:
            self.forget(known)
        silence = self._limits.stream_comment
        return self._keep(asked, partial(self._client.batches, queries, silence_seconds=silence))

    def find(self, key: str) -> Recording | None:
        return self._kept.get(key)

    def forget(self, recording: Recording) -> None:
        """Ends an answer if it has not ended, and drops it."""
        if self._kept.get(recording.asked.key) is not recording:
            return
        del self._kept[recording.asked.key]
        self._holds.pop(recording).free()
        if (timer := self._timers.pop(recording, None)) is not None:
            timer.cancel()
        recording.stop(ShuttingDown("the answer was ended, because nobody read it any more"))
        # Behind what is being written under the same name.
        self._thread.submit(self._folder.drop, recording.asked.key)

    async def take_up(self) -> int:
        """Has all answers go on that the last process left. Returns how many there are. Called before any request."""
        self._loop = asyncio.get_running_loop()
        for name in await self._in_thread(self._folder.names):
            try:
                await self._take_up(name)
            except Exception as error:
                why = error.message if isinstance(error, BatonError) else f"it is damaged: {type(error).__name__}"
                if not isinstance(error, (BatonError, ValueError)):
                    _log.exception("an answer of the last process could not be taken up")
                await self._in_thread(self._folder.set_aside, name, why)
        return len(self._kept)

    def drain(self, timeout_seconds: float) -> bool:
        """Hands all kept answers over, and drains the client. Called by another thread than the loop's."""
        self._client.stop_admitting()
        if self._loop is not None:
            if self._handing is None:
                self._handing = asyncio.run_coroutine_threadsafe(self._hand_over(timeout_seconds), self._loop)
            self._handing.result()
        return self._client.drain(timeout_seconds)

    async def _take_up(self, name: str) -> None:
        data, segments = await self._in_thread(self._folder.take, name, self._client.compile)
        known = read(data)
        if known.asked.key != name:
            raise ValueError("another name")
        if known.asked.model != self._client.model_name:
            message = f"it was asked of {known.asked.model!r}, and this server has {self._client.model_name!r}"
            raise ModelNotFound(message)
        recording = self._keep(known.asked, partial(self._client.resumed, segments), updates=known.updates)
        recording.spent.update(known.spent)
        if known.done:
            recording.finish(known.error)
        elif not segments:
            recording.finish(ShuttingDown("the server ended before this answer did"))
        else:
            recording.begin()

    def _keep(self, asked: RecordedRequest, news: Callable[[], News], updates: Sequence[Any] = ()) -> Recording:
        recording = Recording(asked, news, self._left, self._grew, self._ended, list(updates))
        self._kept[asked.key] = recording
        self._holds[recording] = self._held.hold(partial(self._dropped, recording))
        self._grew(recording)
        return recording

    def _grew(self, recording: Recording) -> None:
        hold = self._holds.get(recording)
        if hold is None:
            return
        while self._held.bytes + recording.bytes - hold.bytes > self._held.most and self._drop_oldest(recording):
            pass
        hold.set(recording.bytes)

    def _drop_oldest(self, but: Recording | None = None) -> bool:
        """Drops the answer that ended first. Returns whether there was one."""
        for recording in self._kept.values():
            if recording.done and recording is not but and not recording.readers:
                self.forget(recording)
                return True
        return False

    def _dropped(self, recording: Recording) -> None:
        why = f"all answers that are kept take more than {self._held.most} bytes, this one the most"
        recording.stop(Overloaded(f"{why} (--handover-memory)"))

    def _ended(self, recording: Recording) -> None:
        """The last to end is the last to be dropped. One that was refused is not kept."""
        if recording.failure is not None and not recording.updates:
            self.forget(recording)
        elif self._kept.get(recording.asked.key) is recording:
            self._kept[recording.asked.key] = self._kept.pop(recording.asked.key)
            self._later(self._limits.handover_seconds, recording)

    def _left(self, recording: Recording) -> None:
        if not recording.done and not recording.moved:
            self._later(self._limits.handover_grace, recording)

    def _later(self, seconds: float, recording: Recording) -> None:
        def over() -> None:
            del self._timers[recording]
            # The one who came back meanwhile begins this anew when it leaves.
            if not recording.readers and not recording.moved:
                self.forget(recording)
            elif recording.done:
                self._later(seconds, recording)

        if (timer := self._timers.pop(recording, None)) is not None:
            timer.cancel()
        self._timers[recording] = asyncio.get_running_loop().call_later(seconds, over)

    async def _hand_over(self, timeout_seconds: float) -> None:
        kept = list(self._kept.values())
        given = await self._given(
            [name for one in kept if not one.done for name in one.asked.query_ids], timeout_seconds
        )
        whole, clock = 0, asyncio.get_running_loop().time
        # An engine that gives nothing may hang, and must not be waited for once per answer.
        until = clock() + (_LAST_UPDATES_SECONDS if given else _NOTHING_GIVEN_SECONDS)
        for recording in kept:
            if not await recording.settled(max(0.0, until - clock())):
                continue  # the engine did not give it: it may end before the process does
            segments = [given[name] for name in recording.asked.query_ids if name in given]
            try:
                told = await self._in_thread(written, recording)
                whole += await self._in_thread(self._folder.put, recording.asked.key, told, segments)
                recording.leave(HandedOver(f"the server restarts: {_HERE}"))
            except (BatonError, OSError) as error:
                _log.error("an answer could not be handed over: %s", error)
                recording.leave(ShuttingDown("the server is shutting down and ended this query"))
        if kept:
            _log.info("%d answers are handed over, %d with all there is of them", len(kept), whole)

    async def _given(self, query_ids: Sequence[str], timeout_seconds: float) -> dict[str, Any]:
        """The segments of these queries; none if the engine does not give them."""
        if not query_ids:
            return {}
        try:
            async with asyncio.timeout(max(timeout_seconds, _LAST_UPDATES_SECONDS)):
                segments = await asyncio.wrap_future(self._client.give(query_ids))
        except (BatonError, TimeoutError) as error:
            _log.error("the engine gives no queries: %r", error)
            return {}
        return {segment.query.id: segment for segment in segments}

    async def _in_thread(self, function: Callable[..., Any], *given: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *given)
