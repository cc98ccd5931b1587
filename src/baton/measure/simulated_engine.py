"""One engine on a simulated device, with a clock of its own that its forwards move."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from baton.bench.costmodel import MeasuredCosts
from baton.core.events import Event, IterationDone, QueryEnded, QueryMoved
from baton.core.footprint import Footprint
from baton.core.query import Query, SamplingParams
from baton.core.settings import Settings
from baton.core.text import TextStream
from baton.engine.engine import Engine
from baton.engine.output import OutputProcessor
from baton.kv.budget import Budget
from baton.kv.prefix import PrefixStore
from baton.measure.trials import RunCounts
from baton.observe.replicas import Load
from baton.policy.memory_guard import MemoryGuard
from baton.policy.table import policy_named
from baton.testing.clock import ManualClock
from baton.testing.fake_batch import FakeBatch, FakeDevice, FakePrefill

_PAUSE_SECONDS = 0.002  # the engine's loop also pauses if a policy has nothing to do


_WORD = 7


class _Silent:
    """A decoder of tokens that mean nothing."""

    def step(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


class SimulatedEngine:
    """One engine on a simulated device. `began`: seconds at which it is there.

    `work`: tokens under way in it, as a front counts them.
    """

    def __init__(
        self, name: str, settings: Settings, costs: MeasuredCosts, footprint: Footprint, began: float = 0.0
    ) -> None:
        self.name = name
        self.clock = ManualClock(began)
        self.counts = RunCounts()
        self.load = Load()
        self.work = 0
        self._settings = settings
        self._query_seconds = costs.query_seconds
        device = FakeDevice(
            say=lambda tokens: _WORD,
            costs=costs,
            clock=self.clock,
            columns=settings.max_model_len,
            footprint=footprint,
        )
        self._engine = Engine(
            batch=FakeBatch(device, settings.max_rows),
            prefiller=FakePrefill(device, settings.max_rows + 1),
            policy=MemoryGuard(policy_named(settings.policy)),
            settings=settings,
            outputs=OutputProcessor(lambda query: TextStream(_Silent()), ()),
            footprint=footprint,
            stamp=device.stamp,
            budget=Budget(
                settings.kv_bytes,
                settings.swap_bytes,
                floor_bytes=footprint.of(settings.max_model_len),
                free_bytes=lambda: 2**62,
                clock=self.clock,
            ),
            clock=self.clock,
            sinks=[self.counts, self._count],
            prefix_store=_prefix_store(footprint) if settings.prefix_cache else None,
        )

    @property
    def busy(self) -> bool:
        return self._engine.busy

    def accept(self, number: int, prompt: Sequence[int], answer_tokens: int, deliver: Callable[..., None]) -> None:
        """Takes a query, which waits from now on."""
        query = _query(number, prompt, answer_tokens, self.clock.now)
        self.clock.advance(self._query_seconds)
        self.work += len(prompt) + answer_tokens
        self._engine.accept(query, deliver)

    def iterate(self) -> None:
        computed = self._engine.iterate()
        self._engine.flush()
        if not computed and self._engine.busy:
            self.clock.advance(_PAUSE_SECONDS)

    def wanted(self, now: float) -> float:
        """How many engines the part of the load wants that comes to this one, as `observe/replicas.py` has it."""
        engine, settings = self._engine, self._settings
        wanted = self.load.wanted(
            max(now, self.clock.now),
            waiting=engine.lifecycle.queued(),
            max_rows=settings.max_rows,
            kv_bytes_budget=engine.budget.rows_bytes,
        )
        return max(wanted)

    def _count(self, event: Event) -> None:
        if isinstance(event, IterationDone):
            if event.occupied:
                self.load.iterated(event.time, event.kv_bytes_used / event.occupied)
        elif isinstance(event, QueryMoved):
            if event.was is None:
                self.load.arrived(event.time)
        elif isinstance(event, QueryEnded):
            self.load.ended(event.time, event.usage.prefill_seconds + event.usage.decode_seconds)


def _prefix_store(footprint: Footprint) -> PrefixStore:
    """As `kv.prefix.prefix_store`: rows with states cannot be cut, others only until a window is full."""
    window = min((columns.most for columns in footprint.columns if columns.most), default=sys.maxsize)
    return PrefixStore(0, divisible_tokens=0 if footprint.state_bytes else window)


def _query(number: int, prompt: Sequence[int], answer_tokens: int, now: float) -> Query:
    params = SamplingParams(temperature=0, max_tokens=answer_tokens, ignore_eos=True)
    return Query(
        id=str(number),
        prompt=tuple(prompt),
        params=params,
        seed=0,
        limit_tokens=answer_tokens,
        arrived=now,
    )
