"""Deadlines: least slack first, rows given up if that saves a deadline, and no more rows than the pace allows."""

from __future__ import annotations

import math

from baton.core.query import State
from baton.policy.baton import READY_AHEAD
from baton.policy.port import Plan, QueryView, View
from baton.policy.preemptive import PreemptivePlanner, everyone, shares, stage

# A query keeps its row for so many tokens against its equals, so that rows do not move with noise in the measurements.
SETTLED_TOKENS = 8
# Rows are added while a step is faster than this share of the tightest pace, and taken away when it is slower than all
# of it.
EASY = 0.8


class Slo:
    """As `priority`, and within a priority by slack: deadline - now - what the query still needs.

    It needs its prompt at the measured costs, and a step for each token that it may still generate: an upper bound,
    since most answers end before. A query is pressed if it would be late with the next row that becomes free, and would
    not be late with a row now; it takes the row of the query with the most slack that can wait. A query that cannot
    meet its deadline any more counts as one without a deadline.
    """

    honours = frozenset({"priority", "deadline", "user"})

    def __init__(self, *, ready_ahead: int = READY_AHEAD, fused: bool = True) -> None:
        self._urgent_first = PreemptivePlanner(ready_ahead, fused)

    def plan(self, view: View) -> Plan:
        most, hurried = rows_for_pace(view)
        pressed = {query.id: needs(view, query) for query in everyone(view) if is_pressed(view, query, most)}
        waits = max([*pressed.values(), *(needs(view, query) for query in hurried)], default=0.0)
        share = shares(view)

        def key(query: QueryView) -> tuple[float, ...]:
            left = slack(view, query)
            if query.state is State.RUNNING:
                gives_way = left >= waits and query.since_insert >= SETTLED_TOKENS
                rank = 2 if gives_way else 0
            else:
                rank = 1 if query.id in pressed else 3
                left = math.inf if is_lost(view, query) else left
            return query.priority, rank, left, stage(query), share[query.id], query.arrived

        order = sorted(everyone(view), key=key)
        keeping = sum(key(query)[1] == 0 for query in view.running)
        return self._urgent_first.plan(view, order, max(most, min(keeping, view.max_rows)), "deadline")


def is_lost(view: View, query: QueryView) -> bool:
    """Whether not even a batch of its own would finish it in time."""
    alone = view.costs.step_at(1) or 0.0
    return query.deadline is not None and query.deadline - view.now < needs(view, query, alone)


def step_seconds(view: View) -> float:
    """Seconds of a step of the batch as it is; 0 before the first was measured, when no query is known to be late."""
    return view.costs.step_at(max(len(view.running), 1)) or 0.0


def needs(view: View, query: QueryView, step: float | None = None) -> float:
    """Seconds until the query has generated all that it may, at a `step`'s pace from now."""
    step = step_seconds(view) if step is None else step
    return fill_seconds(view, query) + (query.limit_tokens - query.generated) * step


def fill_seconds(view: View, query: QueryView) -> float:
    """The part of them until it can get a row."""
    if query.state in (State.READY, State.RUNNING):
        return 0.0
    return view.costs.chunk_seconds(query.pending, query.cached)


def slack(view: View, query: QueryView) -> float:
    """Seconds that the query can spare; infinite without a deadline, below 0 if the batch is too slow."""
    return math.inf if query.deadline is None else query.deadline - view.now - needs(view, query)


def is_pressed(view: View, query: QueryView, most: int) -> bool:
    """Whether it meets its deadline with a row now, and misses it with the next of `most` rows that becomes free."""
    if query.state is State.RUNNING or query.deadline is None or len(view.running) < most:
        return False
    left = min(query.limit_tokens - query.generated for query in view.running)
    return slack(view, query) < left * step_seconds(view) and not is_lost(view, query)


def rows_for_pace(view: View) -> tuple[int, list[QueryView]]:
    """The most rows with which a step still meets the tightest pace, and queries for which the batch is too slow.

    The pace of a query is the time left to its deadline over the tokens left to it. A pace that not even a single row
    would meet slows no other query down.
    """
    paces: dict[str, float] = {}
    for query in [*view.running, *view.ready]:
        if query.deadline is not None:
            paces[query.id] = (query.deadline - view.now) / max(1, query.limit_tokens - query.generated)
    fastest = view.costs.step_at(1) or 0.0
    tightest = min((pace for pace in paces.values() if pace >= fastest), default=math.inf)
    running = len(view.running)
    most = min(max(running, rows_within(view, EASY * tightest), 1), rows_within(view, tightest))
    hurried = [query for query in view.running if fastest <= paces.get(query.id, math.inf) < step_seconds(view)]
    return most, hurried


def rows_within(view: View, seconds: float) -> int:
    """The most rows whose step takes no longer."""
    rows = range(view.max_rows, 0, -1)
    return next((count for count in rows if (view.costs.step_at(count) or 0.0) <= seconds), 0)
