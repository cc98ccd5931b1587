"""How everyone else talks to the engine: make queries of prompts, stream their updates, cancel, ask how it is.

All methods may be called from any thread. The engine answers once per iteration and listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import operator
import queue
import random
import secrets
import threading
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.clock import Clock
from baton.config import Settings
from baton.engine.inbox import Deliver
from baton.engine.post import Listener, Post
from baton.errors import ContextLengthExceeded, InvalidValue, QueueFull, Unsupported
from baton.events import Slots, Update
from baton.query import NO_TERMS, Query, SamplingParams, Terms

Message = Mapping[str, str]
"""One turn of a conversation: `role` and `content`."""


class Tokenizer(Protocol):
    """What the engine's clients need of a tokenizer; its body is `model/tokenizer.py`. Safe to call from any thread."""

    vocabulary: int

    def encode(self, text: str) -> list[int]: ...

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The prompt of a conversation, ending where the assistant's turn begins. Raises RequestError."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def piece(self, token_id: int) -> bytes:
        """What this token adds to a text, in UTF-8; a special token's name. It may end inside a character."""


@dataclass(frozen=True, slots=True)
class Stats:
    """How the engine is now, and what it did since its start. Bytes, tokens, seconds."""

    running: int
    waiting: int
    prefilling: int
    ready: int
    preempted: int
    rows: int
    rows_occupied: int
    columns: int
    kv_bytes_used: int
    kv_bytes_budget: int
    iterations: int
    prompt_tokens: int
    generated_tokens: int
    insertions: int
    preemptions: int
    slots: Slots
    outcomes: Mapping[str, int]
    last_iteration_age_seconds: float
    pool_bytes_used: int = 0
    pool_bytes_budget: int = 0
    prefix_bytes_used: int = 0
    prefix_cached_tokens: int = 0


class Loop(Protocol):
    """The running engine, as seen from other threads; its body is `engine/loop.py`."""

    def submit(self, queries: Sequence[Query], deliver: Deliver) -> None: ...

    def cancel(self, query_ids: Sequence[str]) -> None: ...

    def stats(self) -> Stats: ...

    def not_ready(self) -> str | None: ...

    def drain(self, timeout_seconds: float) -> bool: ...

    def close(self) -> None: ...


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
    ) -> None:
        """`honours`: what of a query's terms the policy goes by, see `policy/port.py`."""
        self.model_name = model_name
        self.settings = settings
        self.tokenizer = tokenizer
        self._loop = loop
        self._clock = clock
        self._honours = frozenset(honours)
        self._names = itertools.count()
        self._prefix = secrets.token_hex(4)
        self._seeds = random.Random(settings.seed)
        self._lock = threading.Lock()
        self._post = Post()

    def queries(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        terms: Terms = NO_TERMS,
    ) -> list[Query]:
        """`params.n` queries of one prompt (token ids), each with its own seed and id.

        Raises ContextLengthExceeded where the prompt leaves no room for `max_tokens`, InvalidValue for an empty
        prompt or ids outside the vocabulary, Unsupported for a priority that the policy does not go by.
        """
        try:
            tokens = tuple(operator.index(token) for token in prompt)
        except TypeError:
            raise InvalidValue("the prompt must be a list of token ids", param="prompt") from None
        if terms.priority and "priority" not in self._honours:
            message = f"priority {terms.priority}: this engine's policy has no priorities; --policy priority and slo do"
            raise Unsupported(message, param="priority")
        self._check(tokens, params)
        now = self._clock()
        room = self.settings.max_model_len - len(tokens)
        limit = min(room, params.max_tokens or room)
        with self._lock:
            first = self._seeds.getrandbits(63) if params.seed is None else params.seed
            names = [f"{self._prefix}-{next(self._names)}" for _ in range(params.n)]
        # Log-probabilities of the prompt come of computing it.
        shared = params.n > 1 and self.settings.prefix_cache and params.prompt_logprobs is None
        return [
            Query(
                id=name,
                prompt=tokens,
                params=params,
                seed=first + choice,
                limit_tokens=limit,
                arrived=now,
                priority=terms.priority,
                deadline=None if terms.deadline_ms is None else now + terms.deadline_ms / 1000,
                user=terms.user,
                choice_of=names[0] if shared else "",
            )
            for choice, name in enumerate(names)
        ]

    async def stream(self, queries: Sequence[Query]) -> AsyncGenerator[Update, None]:
        """Updates of these queries as they come, until each has had its last. Closing the iterator cancels the rest.

        The queries are submitted when the iterator is first advanced. Raises QueueFull (none of them was taken),
        ShuttingDown or EngineUnhealthy.
        """
        async with contextlib.aclosing(self.batches(queries)) as batches:
            async for updates in batches:
                for update in updates:
                    yield update

    async def batches(self, queries: Sequence[Query]) -> AsyncGenerator[list[Update], None]:
        """As `stream`, with all updates that are there at once in one list, so that they can be sent as one."""
        inbox: Listener = asyncio.Queue()
        left = {query.id for query in queries}
        self._loop.submit(queries, self._post.to(inbox))
        try:
            while left:
                updates = list(await inbox.get())
                while not inbox.empty():
                    updates += inbox.get_nowait()
                left.difference_update(update.query_id for update in updates if update.finish_reason is not None)
                yield updates
        finally:
            if left:
                self._loop.cancel(list(left))

    def run(self, queries: Sequence[Query]) -> Iterator[Update]:
        """The same for a thread without an event loop, and for any number: as many are submitted as may wait."""
        inbox: queue.SimpleQueue[list[Update]] = queue.SimpleQueue()
        later = deque(queries)
        live: set[str] = set()
        try:
            while later or live:
                wave = [later.popleft() for _ in range(min(len(later), self.settings.max_waiting - len(live)))]
                try:
                    if wave:
                        self._loop.submit(wave, inbox.put)
                        live.update(query.id for query in wave)
                except QueueFull:
                    if not live:
                        raise
                    # Others fill the queue too: these come again when one of ours has ended.
                    later.extendleft(reversed(wave))
                for update in inbox.get():
                    if update.finish_reason is not None:
                        live.discard(update.query_id)
                    yield update
        finally:
            if live:
                self._loop.cancel(list(live))

    def stats(self) -> Stats:
        return self._loop.stats()

    def not_ready(self) -> str | None:
        """Why the engine should get no queries now; None if it should."""
        return self._loop.not_ready()

    def drain(self, timeout_seconds: float) -> bool:
        """Admits nothing more and waits for the live queries; those left after the timeout are cancelled.

        Answers whether all ended by themselves.
        """
        return self._loop.drain(timeout_seconds)

    def close(self) -> None:
        """Ends the engine's thread and cancels what is live; all are told. May be called twice."""
        self._loop.close()
        self._post.close()

    def _check(self, tokens: tuple[int, ...], params: SamplingParams) -> None:
        longest = self.settings.max_model_len
        if not tokens:
            raise InvalidValue("the prompt has no tokens", param="prompt")
        if not all(0 <= token < self.tokenizer.vocabulary for token in tokens):
            message = f"the prompt has token ids outside the vocabulary of {self.tokenizer.vocabulary}"
            raise InvalidValue(message, param="prompt")
        wanted = params.max_tokens or 1
        if len(tokens) + wanted > longest:
            message = (
                f"the prompt has {len(tokens)} tokens and max_tokens is {wanted}, together more than "
                f"the context of {longest} tokens (--max-model-len)"
            )
            raise ContextLengthExceeded(message, param="prompt")
        for name, ids in (("logit_bias", params.logit_bias or {}), ("stop_token_ids", params.stop_token_ids)):
            outside = [token for token in ids if not 0 <= token < self.tokenizer.vocabulary]
            if outside:
                message = f"{name} has token {outside[0]}, the vocabulary has {self.tokenizer.vocabulary}"
                raise InvalidValue(message, param=name)
