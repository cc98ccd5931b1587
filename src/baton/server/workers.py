"""Threads for what the event loop must not do itself, because it grows with what a client sent or a model said.

All of them start before the first request. Small requests never wait for large ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import Request

from baton.core.events import TokenLogprobs, Update
from baton.core.limits import Limits
from baton.core.threads import started
from baton.engine.client import Client, Held
from baton.server.body import body_of

LARGE_BYTES = 64 * 2**10
"""A larger body waits among large ones, because its text may take seconds to encode."""
LIGHT = 20_000
"""An answer that is lighter than this, by `weight`, is written at once: in a millisecond or less."""

# More threads would take turns with the engine's and the event loop's.
_SMALL, _LARGE, _ANSWERS = 4, 2, 2
_LOGPROB_WEIGHT = 25
_T = TypeVar("_T")


class Workers:
    """Threads beside the event loop: for small work, for large work and for answers."""

    def __init__(self, limits: Limits) -> None:
        # Some of these wait for a grammar.
        self._small = started(_SMALL + limits.max_compiling, "baton-small")
        self._large = started(_LARGE, "baton-large")
        self._answers = started(_ANSWERS, "baton-answers")

    def close(self) -> None:
        """Ends the threads once they have done what they were given."""
        for pool in (self._small, self._large, self._answers):
            pool.shutdown(wait=False)

    async def prepare(self, size: int, function: Callable[..., _T], *given: object) -> _T:
        """Does what a request needs before it is answered or admitted. `size`: bytes of its body."""
        return await _run(self._large if size > LARGE_BYTES else self._small, function, *given)

    async def answer(self, function: Callable[..., _T], *given: object) -> _T:
        """Writes an answer, or what is shown to a viewer."""
        return await _run(self._answers, function, *given)


async def _run(pool: ThreadPoolExecutor, function: Callable[..., _T], *given: object) -> _T:
    return await asyncio.get_running_loop().run_in_executor(pool, function, *given)


class Line:
    """Where requests wait until they are admitted or answered.

    All routes together have as many places as queries may wait.
    """

    def __init__(self, client: Client, workers: Workers, bodies: Held) -> None:
        self._client = client
        self._limits = client.settings.limits
        self._workers = workers
        self._bodies = bodies
        self._inside = 0

    async def pass_through(self, request: Request, function: Callable[..., _T], *given: object) -> _T:
        """Returns what the function makes of the request's body, on another thread. The body is freed then.

        Raises QueueFull, ShuttingDown or EngineUnhealthy before any work for the request, and whatever reading its body
        raises.
        """
        async with body_of(request, self._limits, self._bodies) as body:
            # A request that is refused for a full queue should cost as little as possible.
            self._client.check_room(self._inside + 1)
            self._inside += 1
            try:
                return await self._workers.prepare(len(body), function, body, *given)
            finally:
                self._inside -= 1


def weight(updates: Sequence[Update]) -> int:
    """Returns roughly how many characters must be written for these updates."""
    return sum(
        len(update.text)
        + len(update.token_ids)
        + _LOGPROB_WEIGHT
        * sum(_entries(logprobs) for logprobs in (update.logprobs, update.prompt_logprobs) if logprobs)
        for update in updates
    )


def _entries(logprobs: Sequence[TokenLogprobs]) -> int:
    return len(logprobs) * (2 + len(logprobs[0].best))
