"""A run's results: rates, percentiles, goodput, idle computation, equality."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from baton.bench.drive import Response, Run
from baton.core.events import SLOT_KINDS, Slots

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Goal:
    """A service level of one query: most seconds to the first token, between two tokens on average, and at most.

    None if nothing is asked.
    """

    first_token: float | None = None
    per_token: float | None = None
    gap: float | None = None

    def met(self, one: Response) -> bool:
        """Whether a query that succeeded met it."""
        measured = ((self.first_token, one.first), (self.per_token, _per_token(one)), (self.gap, _longest_gap(one)))
        return all(most is None or seconds <= most for most, seconds in measured)


NO_GOAL = Goal()


@dataclass(frozen=True, slots=True)
class Figures:
    """One run in numbers: tokens and queries a second, seconds, shares, bytes.

    Percentiles by name: "p50", "p90", "p99", "mean", "max". `goodput`: queries a second that met the goal.
    `longest_gap`: of each query's longest wait between two of its tokens, in which the batch stalled for it.
    `cached_tokens`: prompt tokens that were not computed, because an earlier text began with them. `different`: queries
    whose tokens differ from those alone, of `compared`. `digests`: of each answer. `pair`: the name that this run
    shares with a run of another process, made in turn with it; "" if there is none. `prompts`: runs of the same number
    asked the same prompts.
    """

    seconds: float
    queries: int
    failed: int
    generated_tokens: int
    prompt_tokens: int
    tokens_per_second: float
    queries_per_second: float
    goodput: float
    first_token: dict[str, float]
    per_token: dict[str, float]
    inter_token: dict[str, float]
    end_to_end: dict[str, float]
    idle_ratio: float
    slots: dict[str, int]
    preemptions: int
    kv_bytes_most: int
    compared: int
    different: int
    late: float
    machine_speed: float = 1.0
    cached_tokens: int = 0
    pair: str = ""
    prompts: int = 0
    longest_gap: dict[str, float] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list, repr=False)
    first_tokens: list[float] = field(default_factory=list, repr=False)
    gaps: list[float] = field(default_factory=list, repr=False)
    wholes: list[float] = field(default_factory=list, repr=False)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def figures(
    run: Run,
    slots: Slots,
    *,
    preemptions: int,
    kv_bytes_most: int,
    goal: Goal = NO_GOAL,
    alone: dict[int, Sequence[int]] | None = None,
    machine_speed: float = 1.0,
    pair: str = "",
    prompts: int = 0,
) -> Figures:
    """`slots`: what the run's forwards computed. `alone`: tokens of some queries by themselves, by their number.

    `machine_speed`: how fast the machine was just before, in any constant unit.
    """
    done = [one for one in run.responses if one.error is None and one.times]
    generated = sum(one.count for one in run.responses)
    seconds = run.seconds or 1e-9
    per_token = [_per_token(one) for one in done if one.count > 1]
    good = sum(map(goal.met, done))
    known = alone or {}
    return Figures(
        seconds=run.seconds,
        queries=len(run.responses),
        failed=len(run.responses) - len(done),
        generated_tokens=generated,
        prompt_tokens=sum(one.prompt_tokens for one in run.responses),
        tokens_per_second=generated / seconds,
        queries_per_second=len(done) / seconds,
        goodput=good / seconds,
        first_token=spread([one.first for one in done]),
        per_token=spread(per_token),
        inter_token=spread([gap for one in done for gap in one.gaps]),
        end_to_end=spread([one.whole for one in done]),
        idle_ratio=slots.idle_ratio,
        slots={kind: getattr(slots, kind) for kind in SLOT_KINDS},
        preemptions=preemptions,
        kv_bytes_most=kv_bytes_most,
        compared=len(known),
        different=sum(list(run.responses[number].tokens) != list(tokens) for number, tokens in known.items()),
        late=run.late,
        machine_speed=machine_speed,
        cached_tokens=sum(one.cached_tokens for one in run.responses),
        pair=pair,
        prompts=prompts,
        longest_gap=spread([_longest_gap(one) for one in done if one.count > 1]),
        digests=[one.digest for one in run.responses],
        first_tokens=[one.first for one in done],
        gaps=[gap for one in done for gap in one.gaps],
        wholes=[one.whole for one in done],
    )


def _per_token(one: Response) -> float:
    """Mean seconds between its tokens, without the first."""
    return (one.whole - one.first) / max(1, one.count - 1)


def _longest_gap(one: Response) -> float:
    return max(one.gaps, default=0.0)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles (nearest rank), mean and maximum; empty if there are no values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{q}": ordered[max(0, -(-len(ordered) * q // 100) - 1)] for q in PERCENTILES}
    return {**ranks, "mean": statistics.fmean(ordered), "max": ordered[-1]}
