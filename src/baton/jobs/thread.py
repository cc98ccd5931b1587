"""A thread that works on a folder's batches for as long as a server runs, on an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading

from baton.core.errors import BatonError
from baton.jobs.folder import Folder
from baton.jobs.runner import Ask, Runner

_AGAIN_SECONDS = 5.0
_LAST_SECONDS = 10.0

_log = logging.getLogger("baton.jobs")


class RunnerThread:
    """Works on all batches from its start on. It never waits for a request, and no request waits for it."""

    def __init__(self, folder: Folder, ask: Ask, at_once: int, *, again_seconds: float = _AGAIN_SECONDS) -> None:
        self._runner = Runner(folder, ask, at_once)
        self._again_seconds = again_seconds
        self._loop = asyncio.new_event_loop()
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="baton-batches", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """A batch was added, or is to be cancelled. From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed; the next server goes on
            self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """Ends the thread. Lines without an answer are asked again by the next server."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end)
        self._thread.join(_LAST_SECONDS)

    # On the event loop

    def _wake(self) -> None:
        self._woken.set()
        self._runner.wake()

    def _end(self) -> None:
        self._ended = True
        self._woken.set()
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._work())
        except Exception:
            _log.exception("batches are not worked on any more")
        finally:
            self._loop.close()

    async def _work(self) -> None:
        trouble = ""
        while not self._ended:
            self._woken.clear()
            self._task = self._loop.create_task(self._runner.run())
            pause: float | None = None
            try:
                await self._task
                trouble = ""
            except asyncio.CancelledError:
                continue
            except BatonError as error:
                pause = self._again_seconds
                if error.message != trouble:
                    _log.warning("batches wait: %s", error.message)
                trouble = error.message
            except Exception:
                pause = self._again_seconds
                _log.exception("batches wait")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._woken.wait()
