"""A workload through an engine without threads, one iteration after the other, in turn with another process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from baton.bench.drive import TURN_BEFORE_FAILED, Response, Run
from baton.bench.interleave import OwnTime, Turns
from baton.bench.workload import Workload
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.engine.engine import Engine


def drive_in_turn(
    engine: Engine,
    workload: Workload,
    prompts: Sequence[Sequence[int]],
    clock: OwnTime,
    turns: Turns,
    *,
    at_once: int,
    on_done: Callable[[], None] = lambda: None,
) -> Run:
    """As `drive`, with so many queries at a time. Seconds are of this process's turns, from 0 on.

    A turn is an iteration with everything up to the delivery of its tokens.
    """
    return _Lockstep(engine, workload, prompts, clock, on_done).run(turns, at_once)


class _Lockstep:
    def __init__(
        self,
        engine: Engine,
        workload: Workload,
        prompts: Sequence[Sequence[int]],
        clock: OwnTime,
        on_done: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._asks = workload.asks
        self._conversations = iter(workload.conversations())
        self._prompts = prompts
        self._clock = clock
        self._on_done = on_done
        self._began = clock()
        self._responses: dict[str, Response] = {}
        self._said: dict[str, list[int]] = {}
        self._rest: dict[str, Iterator[int]] = {}  # of its conversation
        self._ended: list[str] = []

    def run(self, turns: Turns, at_once: int) -> Run:
        for _ in range(at_once):
            self._ask_next(iter(()))
        while self._engine.busy:
            turns.take()
            self._clock.start()
            self._iterate()
            self._clock.stop()
            turns.give()
        turns.end()
        responses = [self._responses[str(number)] for number in range(len(self._asks))]
        return Run(max((one.times[-1] for one in responses if one.times), default=0.0), responses)

    def _iterate(self) -> None:
        self._engine.iterate()
        self._engine.flush()
        ended, self._ended = self._ended, []
        for name in ended:
            self._ask_next(self._rest.pop(name))

    def _ask_next(self, conversation: Iterator[int]) -> None:
        """Asks the next query of this conversation that can be asked; after the last, the next conversation's."""
        while True:
            for number in conversation:
                if self._ask(number, conversation):
                    return
            following = next(self._conversations, None)
            if following is None:
                return
            conversation = iter(following)

    def _ask(self, number: int, conversation: Iterator[int]) -> bool:
        """Returns whether it was submitted."""
        ask, name, prompt = self._asks[number], str(number), [*self._prompts[number]]
        response = self._responses[name] = Response(self._now())
        if ask.after is not None:
            before = self._responses[str(ask.after)]
            if before.error:
                response.error = TURN_BEFORE_FAILED
                self._on_done()
                return False
            prompt = [*self._said.pop(str(ask.after)), *before.tokens, *prompt]
        response.prompt_tokens, self._said[name], self._rest[name] = len(prompt), prompt, conversation
        params = SamplingParams(temperature=0, max_tokens=ask.answer_tokens, ignore_eos=True)
        query = Query(
            id=name, prompt=tuple(prompt), params=params, seed=0, limit_tokens=ask.answer_tokens, arrived=self._clock()
        )
        self._engine.accept(query, self._take)
        return True

    def _take(self, updates: Sequence[Update]) -> None:
        now = self._now()
        for update in updates:
            response = self._responses[update.query_id]
            response.tokens += update.token_ids
            response.times += [now] * len(update.token_ids)
            response.error = update.error or response.error
            if update.usage is not None:
                response.usage, response.cached_tokens = update.usage, update.usage.cached_tokens
            if update.finish_reason is not None:
                self._ended.append(update.query_id)
                self._on_done()

    def _now(self) -> float:
        return self._clock() - self._began
