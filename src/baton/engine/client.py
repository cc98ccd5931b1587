"""How everyone else talks to the engine: make queries of prompts, stream their updates, cancel, ask how it is.

All methods may be called from any thread. The engine sends updates once per iteration and subscriber.
"""

from __future__ import annotations

import contextlib
import queue
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from baton.core.clock import Clock
from baton.core.constraint import Constraint, OutputFormat
from baton.core.errors import (
    DeadlinePassed,
    QueueFull,
    ShuttingDown,
)
from baton.core.events import Update
from baton.core.query import NO_OPTIONS, Query, RequestOptions, SamplingParams
from baton.core.settings import Settings
from baton.engine.delivery import OutputDelivery, Subscriber
from baton.engine.delivery import size_of as size_of
from baton.engine.held import Held as Held
from baton.engine.inbox import Deliver
from baton.engine.port import Compiler, Loop
from baton.engine.port import Message as Message
from baton.engine.port import Stats as Stats
from baton.engine.port import Tokenizer as Tokenizer
from baton.engine.port import Tool as Tool
from baton.engine.query_maker import QueryMaker
from baton.engine.watchdog import Watchdog as Watchdog
from baton.policy.port import Costs as Costs

if TYPE_CHECKING:  # a client over HTTP needs no torch
    from baton.kv.segment import KVSegment

# A subscriber gives up a query that is overdue by so many seconds.
_GRACE_SECONDS = 5.0


class Client:
    """The engine as its users see it."""

    def __init__(
        self,
        *,
        model_name: str,
        settings: Settings,
        tokenizer: Tokenizer,
        loop: Loop,
        clock: Clock,
        honours: Collection[str] = (),
        compiler: Compiler | None = None,
        fit: Callable[[str], None] = lambda text: None,
        defaults: Mapping[str, float] | None = None,
    ) -> None:
        """`honours`: which options of a query the policy honours, see `policy/port.py`.

        `fit` raises ContextLengthExceeded for a text that is too long whatever its tokens are. `defaults`: sampling
        parameters of the model's author, for requests that do not name them.
        """
        self.fit = fit
        self.defaults = dict(defaults or {})
        self.model_name = model_name
        self.tokenizer = tokenizer
        self._loop = loop
        self._clock = clock
        self._honours = frozenset(honours)
        self._compiler = compiler
        self._maker = QueryMaker(settings, tokenizer.vocabulary, clock, self._honours, compiler)
        self._post = OutputDelivery()

    def queries(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        options: RequestOptions = NO_OPTIONS,
        *,
        form: OutputFormat | None = None,
        visible_special_tokens: Collection[int] = (),
    ) -> list[Query]:
        """`params.n` queries of one prompt (token ids), each with its own seed and id.

        `form`: replaces the one that `params` ask for. `visible_special_tokens`: see `Query`. A form that is new is
        compiled in this call, so the caller must not be an event loop's thread.
        Raises ContextLengthExceeded if the prompt leaves no room for `max_tokens`, InvalidValue for an empty prompt or
        ids outside the vocabulary, LimitExceeded for params above the limits, Unsupported for a priority that the
        policy does not honour, and whatever the compiler raises.
        """
        return self._maker.queries(prompt, params, options, form=form, visible_special_tokens=visible_special_tokens)

    def compile(self, form: OutputFormat) -> Constraint:
        """The constraint of a form. The caller waits for it. Raises what `queries` does for a form."""
        return self._maker.compile(form)

    async def stream(self, queries: Sequence[Query]) -> AsyncGenerator[Update, None]:
        """Updates of these queries as they come, until each has had its last. Closing the iterator cancels the rest.

        The queries are submitted when the iterator is first advanced. Raises QueueFull (none of them was taken),
        ShuttingDown or EngineUnhealthy.
        """
        async with contextlib.aclosing(self.batches(queries)) as batches:
            async for updates in batches:
                for update in updates:
                    yield update

    def batches(
        self,
        queries: Sequence[Query],
        *,
        silence_seconds: float | None = None,
        most_bytes: int | None = None,
        held: Held | None = None,
    ) -> AsyncGenerator[list[Update], None]:
        """As `stream`, but yields lists of all updates that are there at once, so that they can be sent as one.

        Yields an empty list whenever nothing came for `silence_seconds`. If more than `most_bytes` of updates are not
        taken, or if these updates are the largest part of all that is `held`, the queries are cancelled at once.
        SlowReader is then raised when the iterator is advanced.
        """

        def enter(deliver: Deliver) -> None:
            self._loop.submit(queries, deliver)

        return self._news(queries, enter, silence_seconds, most_bytes, held)

    def resumed(
        self, segments: Sequence[KVSegment], *, silence_seconds: float | None = None
    ) -> AsyncGenerator[list[Update], None]:
        """As `batches`, for queries that were live in another engine. Raises what `Loop.resume` does."""

        def enter(deliver: Deliver) -> None:
            self._loop.resume(segments, deliver)

        return self._news([segment.query for segment in segments], enter, silence_seconds)

    def give(self, query_ids: Sequence[str]) -> Future[list[KVSegment]]:
        """The segments of these live queries, which leave to go on in another engine. See `Loop.give`."""
        return self._loop.give(query_ids)

    def stop_admitting(self) -> None:
        """Takes no more queries from now on. Those that are here go on."""
        self._loop.stop_admitting()

    async def _news(
        self,
        queries: Sequence[Query],
        enter: Callable[[Deliver], None],
        silence_seconds: float | None,
        most_bytes: int | None = None,
        held: Held | None = None,
    ) -> AsyncGenerator[list[Update], None]:
        left = {query.id for query in queries}
        subscriber = Subscriber(most_bytes, lambda: self._loop.cancel(list(left)), held)
        enter(self._post.to(subscriber))
        try:
            with self._post.subscribed(subscriber):
                while left:
                    updates = await subscriber.take(silence_seconds)
                    if not updates:
                        self._check_overdue(queries)
                    left.difference_update(update.query_id for update in updates if update.finish_reason is not None)
                    yield updates
        finally:
            subscriber.free()
            if left:
                self._loop.cancel(list(left))

    def check_room(self, count: int = 1) -> None:
        """Raises QueueFull, ShuttingDown or EngineUnhealthy if so many queries would not be taken now.

        For callers that have not read a request yet; it then counts as refused. Nothing is promised for later.
        """
        self._loop.check_room(count)

    def run(self, queries: Sequence[Query]) -> Generator[Update, None, None]:
        """As `stream`, for a thread without an event loop. Of any number of queries it submits as many as may wait."""
        inbox: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        waiting = deque(queries)
        live: set[str] = set()
        try:
            while waiting or live:
                wave = [waiting.popleft() for _ in range(min(len(waiting), self.settings.max_waiting - len(live)))]
                try:
                    if wave:
                        self._loop.submit(wave, inbox.put)
                        live.update(query.id for query in wave)
                except QueueFull:
                    if not live:
                        raise
                    # Others fill the queue too: these queries are tried again when one of ours has ended.
                    waiting.extendleft(reversed(wave))
                for update in inbox.get():
                    if update.finish_reason is not None:
                        live.discard(update.query_id)
                    yield update
        finally:
            if live:
                self._loop.cancel(list(live))

    @property
    def settings(self) -> Settings:
        return self._maker.settings

    def honours(self, term: str) -> bool:
        """Whether the policy honours this option of queries."""
        return term in self._honours

    @property
    def loop(self) -> Loop:
        """The running engine itself."""
        return self._loop

    def stats(self) -> Stats:
        return self._loop.stats()

    def stuck_seconds(self) -> float:
        """For how long the engine has had work and has not come round; 0 if all is well."""
        return self._loop.stuck_seconds()

    def not_ready(self) -> str | None:
        """Why the engine should get no queries now; None if it should."""
        return self._loop.not_ready()

    def drain(self, timeout_seconds: float) -> bool:
        """Admits nothing more and waits for the live queries. Those left after the timeout are cancelled.

        Returns whether all ended by themselves.
        """
        finished = self._loop.drain(timeout_seconds)
        if not finished:
            # Subscribers that have not heard of an end even now wait for an engine that hangs.
            self._post.fail(ShuttingDown("the server is shutting down and ended this query"))
        return finished

    def close(self) -> None:
        """Ends the engine's thread and cancels all live queries, which are told. May be called twice."""
        self._loop.close()
        self._post.close()
        if self._compiler is not None:
            self._compiler.close()

    def _check_overdue(self, queries: Sequence[Query]) -> None:
        """Raises DeadlinePassed for a query that the engine should have given up long ago: the engine hangs."""
        now = self._clock() - _GRACE_SECONDS
        for query in queries:
            if (why := query.overdue(now, begun=True)) is not None:
                raise DeadlinePassed(why)

    def prepare(self) -> None:
        """Does now what would otherwise delay everybody at the first answers, and starts the threads."""
        self._post.begin()
        if self._compiler is not None:
            self._compiler.prepare()
