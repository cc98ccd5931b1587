"""Runs a workload on an engine and takes the answers: offline, at the workload's times, or in a closed loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import StrEnum

from baton.bench.workload import Ask, Workload
from baton.core.clock import Clock
from baton.core.errors import BatonError
from baton.core.events import Usage
from baton.core.query import SamplingParams
from baton.engine.client import Client

TURN_BEFORE_FAILED = "the turn before it failed"


class Mode(StrEnum):
    """OFFLINE: all at once, as many as may wait. TIMED: as the workload says. CLOSED: so many at a time."""

    OFFLINE = "offline"
    TIMED = "timed"
    CLOSED = "closed"


@dataclass(slots=True)
class Response:
    """The answer to one query. Seconds from the run's start; `times` has one for each token, or for each piece of text.

    `generated`: the number of tokens, if they do not come one by one. `exact_count`: whether that is the engine's own
    count, and not the number of pieces of text. `prompt_tokens`: of its prompt; `cached_tokens` of these were not
    computed.
    """

    asked: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str | None = None
    usage: Usage | None = None
    generated: int | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    exact_count: bool = True
    text: str = ""

    @property
    def count(self) -> int:
        """Tokens that were generated."""
        return len(self.tokens) if self.generated is None else self.generated

    @property
    def digest(self) -> str:
        """Twelve letters that change if the answer does."""
        said = " ".join(map(str, self.tokens)) or self.text
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    @property
    def first(self) -> float:
        """Seconds from being asked to its first token."""
        return self.times[0] - self.asked

    @property
    def whole(self) -> float:
        """Seconds from being asked to its last token."""
        return self.times[-1] - self.asked

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class Run:
    """`late`: how much later than planned the latest query was asked, which is the driver's own fault."""

    seconds: float
    responses: list[Response]
    late: float = 0.0


def drive(
    client: Client,
    workload: Workload,
    prompts: Sequence[Sequence[int]],
    clock: Clock,
    *,
    mode: Mode = Mode.OFFLINE,
    at_once: int = 8,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """Runs greedy queries of exactly the workload's lengths. `on_done` is called when one is done.

    A query that is refused or fails has an `error`, and the others go on.
    """
    return asyncio.run(_Drive(client, workload, prompts, clock, on_done).run(mode, at_once))


class _Drive:
    def __init__(
        self,
        client: Client,
        workload: Workload,
        prompts: Sequence[Sequence[int]],
        clock: Clock,
        on_done: Callable[[], None],
    ) -> None:
        self._client = client
        self._asks = workload.asks
        self._prompts = prompts
        self._clock = clock
        self._on_done = on_done
        self._conversations = workload.conversations()
        self._responses: dict[int, Response] = {}
        self._said: dict[int, list[int]] = {}
        self._began = 0.0
        self._late = 0.0

    async def run(self, mode: Mode, at_once: int) -> Run:
        self._began = self._clock()
        if mode is Mode.TIMED:
            await asyncio.gather(*(self._at_its_time(conversation) for conversation in self._conversations))
        else:
            workers = at_once if mode is Mode.CLOSED else self._client.settings.max_waiting
            conversations = iter(self._conversations)
            await asyncio.gather(
                *(self._one_by_one(conversations) for _ in range(min(workers, len(self._conversations))))
            )
        responses = [self._responses[number] for number in range(len(self._asks))]
        end = max((one.times[-1] for one in responses if one.times), default=0.0)
        return Run(end, responses, self._late)

    async def _at_its_time(self, conversation: Sequence[int]) -> None:
        due = self._asks[conversation[0]].at
        await asyncio.sleep(max(0.0, due - self._now()))
        self._late = max(self._late, self._now() - due)
        await self._one_by_one(iter([conversation]))

    async def _one_by_one(self, conversations: Iterator[Sequence[int]]) -> None:
        for conversation in conversations:
            for number in conversation:
                self._responses[number] = await self._ask(number)

    async def _ask(self, number: int) -> Response:
        ask = self._asks[number]
        if ask.after is not None and self._responses[ask.after].error:
            self._on_done()
            return Response(self._now(), error=TURN_BEFORE_FAILED)
        prompt = [*self._before(ask), *self._prompts[number]]
        self._said[number] = prompt
        response = Response(self._now(), prompt_tokens=len(prompt))
        params = SamplingParams(temperature=0, max_tokens=ask.answer_tokens, ignore_eos=True)
        try:
            queries = self._client.queries(prompt, params)
            async with aclosing(self._client.stream(queries)) as updates:
                async for update in updates:
                    response.tokens += update.token_ids
                    response.times += [self._now()] * len(update.token_ids)
                    response.error = update.error or response.error
                    response.usage = update.usage or response.usage
        except BatonError as error:
            response.error = error.message
        response.cached_tokens = response.usage.cached_tokens if response.usage else 0
        self._on_done()
        return response

    def _before(self, ask: Ask) -> list[int]:
        """Everything that was said before in its conversation."""
        return [] if ask.after is None else [*self._said.pop(ask.after), *self._responses[ask.after].tokens]

    def _now(self) -> float:
        return self._clock() - self._began
