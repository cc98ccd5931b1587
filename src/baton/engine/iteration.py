"""What one iteration did, gathered while it runs; the sums over all; and the event that reports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from baton.core.clock import Clock
from baton.core.events import IterationDone, Slots
from baton.core.query import State
from baton.engine.queries import Queries
from baton.policy.port import Plan

_KINDS = {(True, True): "both", (True, False): "decode", (False, True): "prefill", (False, False): "none"}


@dataclass(slots=True)
class Iteration:
    """`beside`: tokens of each prompt that are fed in the step. `stalls`: how long running rows waited, by cause."""

    clock: Clock
    began: float
    had_running: bool
    plan: Plan
    beside: dict[str, int] = field(default_factory=dict)
    slots: Slots = field(default_factory=Slots)
    stalls: dict[str, float] = field(default_factory=dict)
    inserted: list[str] = field(default_factory=list)
    detached: list[str] = field(default_factory=list)
    fed: dict[str, int] = field(default_factory=dict)
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    step_seconds: float = 0.0
    _tries: int = 0

    @contextmanager
    def stalling(self, cause: str) -> Iterator[None]:
        """Counts the time of the block as a stall of the running rows."""
        began = self.clock()
        yield
        self.stalled(cause, self.clock() - began)

    def try_once_more(self) -> bool:
        """Whether a forward that failed with nothing left to free may be repeated.

        It may be once, because others may have freed memory.
        """
        self._tries += 1
        return self._tries == 1

    def went_well(self) -> None:
        """A forward succeeded, so the next one may be repeated too."""
        self._tries = 0

    def stalled(self, cause: str, seconds: float) -> None:
        if self.had_running:
            self.stalls[cause] = self.stalls.get(cause, 0.0) + seconds


@dataclass(slots=True)
class Totals:
    """The sums over all iterations."""

    iterations: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    insertions: int = 0
    slots: Slots = field(default_factory=Slots)

    def add(self, now: Iteration) -> None:
        self.iterations += 1
        self.generated_tokens += now.generated_tokens
        self.insertions += len(now.inserted)
        self.slots.add(now.slots)


def done(now: Iteration, index: int, queries: Queries, kv_bytes_budget: int) -> IterationDone:
    """The event that reports this iteration, with the queries where they are after it."""
    ended, batch, lifecycle = now.clock(), queries.batch, queries.lifecycle
    decoded = now.slots.useful + now.slots.idle > now.prefilled_tokens
    return IterationDone(
        index=index,
        time=ended,
        seconds=ended - now.began,
        kind=_KINDS[decoded, now.prefilled_tokens > 0],
        why=now.plan.why,
        rows=batch.rows,
        occupied=len(batch.lens),
        columns=batch.columns,
        slots=now.slots,
        generated_tokens=now.generated_tokens,
        prefilled_tokens=now.prefilled_tokens,
        inserted=tuple(now.inserted),
        detached=tuple(now.detached),
        resized_to=now.plan.resize,
        waiting=lifecycle.count(State.WAITING),
        prefilling=lifecycle.count(State.PREFILLING),
        ready=lifecycle.count(State.READY),
        preempted=lifecycle.preempted,
        kv_bytes_used=queries.row_bytes,
        step_seconds=now.step_seconds,
        stall_seconds=now.stalls,
        kv_bytes_budget=kv_bytes_budget,
        swap_bytes_used=queries.pool.bytes_used,
        fed=now.fed,
    )
