"""Simulated engines behind one front: the engine that serves, the front's own routing, and replicas by the load.

Each engine has a clock of its own, which its forwards move. What is next is whatever comes first: an arrival, or an
iteration of the engine whose clock is least.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from baton.bench.costmodel import MeasuredCosts
from baton.bench.drive import Mode, Response, Run
from baton.bench.workload import Workload
from baton.cluster.route import HeldPrefixes, blocks_of, choose
from baton.core.events import Slots, Update
from baton.core.footprint import Footprint
from baton.core.settings import Settings
from baton.measure.replicas import ONE, Replicas
from baton.measure.simulated_engine import SimulatedEngine

# Prompts are random token ids, so that they share only what the workload says; all answers are one word.
_VOCABULARY = 50_000


class Fleet:
    """Engines that share a workload. `replicas_over_time`: when there were how many, and how many were wanted."""

    def __init__(
        self, settings: Settings, costs: MeasuredCosts, footprint: Footprint, replicas: Replicas = ONE
    ) -> None:
        self.replicas = replicas
        self.replicas_over_time: list[tuple[float, int, int]] = []
        self._make = partial(SimulatedEngine, settings=settings, costs=costs, footprint=footprint)
        self._settings = settings
        self._every = [self._make(str(at)) for at in range(replicas.least)]
        self._there = list(self._every)
        self._held = HeldPrefixes()
        self._asked: dict[str, int] = {}
        self._ready: list[tuple[float, int, SimulatedEngine]] = []
        self._order = itertools.count()
        self._next_look = replicas.every if replicas.least < replicas.most else math.inf
        self._enough_since: float | None = None

    @property
    def engines(self) -> Sequence[SimulatedEngine]:
        """All that ever were."""
        return self._every

    @property
    def slots(self) -> Slots:
        slots = Slots()
        for engine in self._every:
            slots.add(engine.counts.slots)
        return slots

    @property
    def preemptions(self) -> int:
        return sum(engine.counts.preemptions for engine in self._every)

    @property
    def kv_bytes_most(self) -> int:
        """The sum of each engine's most."""
        return sum(engine.counts.kv_bytes_most for engine in self._every)

    def run(
        self,
        workload: Workload,
        *,
        mode: Mode = Mode.OFFLINE,
        at_once: int = 8,
        on_done: Callable[[], object] = lambda: None,
    ) -> Run:
        """As `bench.drive.drive`, in no real time. `on_done` is called when a query is done."""
        asks, timed = workload.asks, mode is Mode.TIMED
        prompts = workload.prompts(_VOCABULARY, self._settings.seed)
        responses = [Response(ask.at if timed else 0.0) for ask in asks]
        later = {ask.after: number for number, ask in enumerate(asks) if ask.after is not None}
        # By time if arrivals are timed; else in order, the next turn of a conversation first.
        coming = [(ask.at if timed else 0.0, number, number) for number, ask in enumerate(asks) if ask.after is None]
        heapq.heapify(coming)
        most = at_once if mode is Mode.CLOSED else self._settings.max_waiting * self.replicas.most
        live = 0

        def take(engine: SimulatedEngine, updates: list[Update]) -> None:
            nonlocal live
            for update in updates:
                one, number = responses[int(update.query_id)], int(update.query_id)
                one.tokens += update.token_ids
                one.times += [engine.clock.now] * len(update.token_ids)
                one.usage, one.error = update.usage or one.usage, update.error or one.error
                if update.finish_reason is None:
                    continue
                live -= 1
                engine.work -= one.prompt_tokens + asks[number].answer_tokens
                one.cached_tokens = update.usage.cached_tokens if update.usage else 0
                on_done()
                if number in later:
                    turn = later[number]
                    responses[turn].asked = engine.clock.now
                    prompts[turn] = [*prompts[number], *one.tokens, *prompts[turn]]
                    heapq.heappush(coming, (engine.clock.now if timed else -1.0, -turn, turn))

        delivers = _Delivers(take)
        while coming or self._ready:
            now = self._now()
            if coming and (responses[coming[0][2]].asked <= now if timed else live < most):
                number = heapq.heappop(coming)[2]
                engine = self._chosen(prompts[number])
                at = responses[number].asked if timed else engine.clock.now if now == math.inf else now
                was_busy = engine.busy
                engine.clock.now = max(engine.clock.now, at)
                responses[number].asked = at if timed else engine.clock.now
                responses[number].prompt_tokens = len(prompts[number])
                engine.accept(number, prompts[number], asks[number].answer_tokens, delivers[engine])
                live += 1
                if not was_busy:
                    self._push(engine)
                continue
            self._look(now)
            engine = heapq.heappop(self._ready)[2]
            engine.iterate()
            if engine.busy:
                self._push(engine)
        return Run(max((one.times[-1] for one in responses if one.times), default=0.0), responses)

    def _now(self) -> float:
        """The least clock of the engines that have something to do."""
        while self._ready and self._ready[0][0] < self._ready[0][2].clock.now:
            self._push(heapq.heappop(self._ready)[2])
        return self._ready[0][0] if self._ready else math.inf

    def _push(self, engine: SimulatedEngine) -> None:
        heapq.heappush(self._ready, (engine.clock.now, next(self._order), engine))

    def _chosen(self, prompt: Sequence[int]) -> SimulatedEngine:
        if len(self._there) == 1:
            return self._there[0]
        by_name: Mapping[str, SimulatedEngine] = {engine.name: engine for engine in self._there}
        blocks = blocks_of(prompt) if self.replicas.by_prefix else []
        work = {name: engine.work for name, engine in by_name.items()}
        name = choose(len(prompt), work, self._held.tokens(blocks), self._asked)
        assert name is not None
        self._asked[name] = next(self._order)
        self._held.add(name, blocks)
        return by_name[name]

    def _look(self, now: float) -> None:
        """Starts engines that are wanted, and lets those go that have not been wanted for long."""
        while now >= self._next_look and now < math.inf:
            at, self._next_look = self._next_look, self._next_look + self.replicas.every
            wanted = math.ceil(sum(engine.wanted(at) for engine in self._there) - 1e-9)
            wanted = min(max(wanted, self.replicas.least), self.replicas.most)
            self.replicas_over_time.append((at, len(self._there), wanted))
            if wanted >= len(self._there):
                self._enough_since = None
            for _ in range(wanted - len(self._there)):
                engine = self._make(str(len(self._every)), began=at + self.replicas.start_seconds)
                self._every.append(engine)
                self._there.append(engine)
            if wanted < len(self._there):
                self._enough_since = at if self._enough_since is None else self._enough_since
                if at - self._enough_since >= self.replicas.patience_seconds:
                    # The last to come leaves first. What is in it goes on there.
                    del self._there[wanted:]
                    self._enough_since = None


class _Delivers(dict[SimulatedEngine, Callable[..., None]]):
    """One object for each engine, as its outputs are told apart by it."""

    def __init__(self, take: Callable[..., None]) -> None:
        super().__init__()
        self._take = take

    def __missing__(self, engine: SimulatedEngine) -> Callable[..., None]:
        return self.setdefault(engine, partial(self._take, engine))
