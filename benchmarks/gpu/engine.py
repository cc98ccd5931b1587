"""One run of queries through an engine without a server, and its results."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from baton.compose import make_engine
from baton.core.events import Event, IterationDone, QueryEnded, Update
from baton.core.query import Query, SamplingParams, State
from baton.core.settings import Settings
from baton.engine.engine import Engine
from baton.loader.loaded import Loaded
from baton.model.execution import PrefillPlacement
from baton.policy.table import POLICIES
from benchmarks.report import percentile

from .asks import Ask
from .models import free


@dataclass
class Counted:
    """A sink that adds up slots, seconds of steps and stalls, and what became of rows."""

    useful: int = 0
    idle: int = 0
    iterations: int = 0
    step_seconds: float = 0.0
    stall_seconds: float = 0.0
    most_rows: int = 0
    most_bytes: int = 0
    preempted: int = 0
    failed: int = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, IterationDone):
            self.useful += event.slots.useful
            self.idle += event.slots.idle
            self.iterations += 1
            self.step_seconds += event.step_seconds
            self.stall_seconds += sum(event.stall_seconds.values())
            self.most_rows = max(self.most_rows, event.occupied)
            self.most_bytes = max(self.most_bytes, event.kv_bytes_used)
            self.preempted += len(event.detached)
        elif isinstance(event, QueryEnded):
            self.failed += event.outcome is State.FAILED


@dataclass(eq=False)
class Response:
    """What a client hears: how many tokens, and when some came for each query.

    Equal to itself alone, because the engine sorts what it hands over by whom it is for, in a mapping.
    """

    told: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0

    def __call__(self, updates: Sequence[Update]) -> None:
        now = time.perf_counter()
        for update in updates:
            self.tokens += len(update.token_ids)
            if update.token_ids:
                self.told.setdefault(update.query_id, []).append(now)


def engine_run(
    loaded: Loaded,
    asks: Sequence[Ask],
    *,
    policy: str = "baton",
    rows: int,
    columns: int,
    cap: float,
    arrivals: Sequence[float] | None = None,
    stall_seconds: float = 0.2,
    kv_bytes: int = 2**40,
    mapped: bool = False,
    prompts: PrefillPlacement | None = None,
) -> dict[str, Any]:
    """All asks through an engine without a server; if it takes longer, what had come after `cap` seconds.

    `mapped`: memory is mapped as rows grow. `prompts`: where they are computed; None: where that is fastest.
    """
    settings = Settings(
        policy=policy,
        max_rows=rows,
        max_model_len=columns,
        kv_bytes=kv_bytes,
        prefill_chunk=None,
        max_stall_seconds=stall_seconds,
        max_waiting=len(asks) + 1,
        seed=0,
        swap_bytes=2**33,
        prefix_cache=False,
        kv_mapping=mapped,
    )
    counted, heard = Counted(), Response()
    engine = make_engine(loaded, settings, POLICIES[policy](), [counted], prompts=prompts)
    due = list(arrivals) if arrivals is not None else [0.0] * len(asks)
    began, seconds, whole = _driven(engine, _queries(asks), due, heard, cap)
    firsts = [times[0] - began - due[int(name)] for name, times in heard.told.items()]
    gaps = [b - a for times in heard.told.values() for a, b in itertools.pairwise(times)]
    figures = {
        "policy": policy,
        "tokens/s": heard.tokens / seconds,
        "seconds": seconds,
        "tokens": heard.tokens,
        "whole": whole,
        "idle ratio": counted.idle / max(1, counted.idle + counted.useful),
        "iterations": counted.iterations,
        "in steps": counted.step_seconds / seconds,
        "in stalls": counted.stall_seconds / seconds,
        "host and fills": (seconds - counted.step_seconds) / seconds,
        "rows at once": counted.most_rows,
        "rows hold GB": counted.most_bytes / 1e9,
        "preempted": counted.preempted,
        "failed queries": counted.failed,
        **_percentiles("ttft s", firsts),
        **_percentiles("gap ms", [gap * 1e3 for gap in gaps]),
    }
    del engine
    free(loaded)
    return figures


def _queries(asks: Sequence[Ask]) -> list[Query]:
    params = [SamplingParams(temperature=0, max_tokens=ask.tokens, ignore_eos=True) for ask in asks]
    return [
        Query(id=str(at), prompt=tuple(ask.prompt), params=params[at], seed=at, limit_tokens=ask.tokens, arrived=0.0)
        for at, ask in enumerate(asks)
    ]


def _driven(
    engine: Engine, queries: Sequence[Query], due: Sequence[float], heard: Response, cap: float
) -> tuple[float, float, bool]:
    """When it began, the seconds that it took, and whether all was answered by then."""
    began, sent = time.perf_counter(), 0
    while (sent < len(queries) or engine.busy) and time.perf_counter() - began < cap:
        while sent < len(queries) and due[sent] <= time.perf_counter() - began:
            engine.accept(queries[sent], heard)
            sent += 1
        if not engine.busy:
            time.sleep(0.0005)
            continue
        engine.iterate()
        engine.flush()
    return began, time.perf_counter() - began, sent == len(queries) and not engine.busy


def _percentiles(name: str, values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    return {f"{name} p{percent}": percentile(values, percent) for percent in (50, 95, 99)}
