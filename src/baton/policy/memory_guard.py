"""Makes any policy's plan fit in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from baton.core.query import State
from baton.core.step import MEMORY
from baton.policy.port import Plan, Policy, QueryView, View, victims_first


class MemoryGuard:
    """The plan of `inner` without what does not fit. If rows outgrow the budget, some queries lose theirs.

    After every plan, what protected queries were promised and what the others take after the step is within the budget,
    and what is swapped out fits swap memory. A protected query loses its row only when the budget has shrunk.
    """

    def __init__(self, inner: Policy) -> None:
        self.inner = inner

    def plan(self, view: View) -> Plan:
        plan = self.inner.plan(view)
        return _newcomers_fit(_pool_fits(_rows_fit(plan, view), view), view)


def _rows_fit(plan: Plan, view: View) -> Plan:
    """Takes rows from as few queries as needed for the rest to fit, first from those with guaranteed progress."""
    over = -_room(plan, view)
    if over <= 0:
        return plan
    if plan.hold_finished:
        return _rows_fit(replace(plan, hold_finished=False), view) if view.held_bytes else _evict(plan, view, over)
    return _evict(plan, view, over)


def _evict(plan: Plan, view: View, over: int) -> Plan:
    staying = _staying(plan, view)
    running = victims_first([query for query in staying if query.state is State.RUNNING])
    # Queries in the prefiller's rows come last: they cannot be swapped out, only forgotten.
    beside = victims_first([query for query in staying if query.state is not State.RUNNING])
    order = sorted(running, key=view.protected) + beside
    victims: list[QueryView] = []
    for query in order:
        if over <= 0:
            break
        victims.append(query)
        over -= view.committed(query)
    gone = {query.id for query in victims}
    lose_row = tuple(query.id for query in victims if query.state is State.RUNNING)
    return replace(
        plan,
        detach=plan.detach + lose_row,
        forget=plan.forget + tuple(query.id for query in victims if query.state is not State.RUNNING),
        prefill=tuple(chunk for chunk in plan.prefill if chunk.query_id not in gone),
        insert=tuple(query_id for query_id in plan.insert if query_id not in gone),
        reasons={**plan.reasons, **dict.fromkeys(gone, MEMORY)},
        why=f"{plan.why}; {len(victims)} lose their rows for memory",
    )


def _pool_fits(plan: Plan, view: View) -> Plan:
    """Forgets what swap memory cannot hold: of queries swapped out now and, if it has shrunk, of earlier ones."""
    if view.swap_left >= 0 and not plan.detach:
        return plan
    left = view.swap_left + sum(
        view.footprint.of(query.cached) for query in view.swapped_out if query.id in plan.forget
    )
    forget: list[str] = []
    for query in victims_first(view.swapped_out):
        if left < 0 and query.id not in plan.forget:
            forget.append(query.id)
            left += view.footprint.of(query.cached)
    for query in view.running:
        if query.id in plan.detach and query.id not in plan.forget:
            # A query that comes back leaves swap memory after this.
            size = view.footprint.of(query.cached)
            if size > left:
                forget.append(query.id)
            else:
                left -= size
    if not forget:
        return plan
    return replace(
        plan,
        forget=(*plan.forget, *forget),
        insert=tuple(query_id for query_id in plan.insert if query_id not in forget),
        reasons={**dict.fromkeys(forget, MEMORY), **plan.reasons},
        why=f"{plan.why}; {len(forget)} forgotten, swap is full",
    )


def _newcomers_fit(plan: Plan, view: View) -> Plan:
    """Drops planned queries that would not fit; the first planned are served first."""
    if not plan.prefill and not plan.insert:
        return plan
    left = _room(plan, view)
    planned = {chunk.query_id for chunk in plan.prefill} | set(plan.insert)
    came_back = [query for query in view.swapped_out if query.id in plan.insert]
    waiting = {query.id: query for query in view.waiting if query.id in planned}
    order = [chunk.query_id for chunk in plan.prefill] + list(plan.insert)
    dropped: set[str] = set()
    for query in [*came_back, *(waiting[name] for name in dict.fromkeys(order) if name in waiting)]:
        left -= view.committed(query)
        if left < 0:
            dropped.add(query.id)
    if not dropped:
        return plan
    return replace(
        plan,
        prefill=tuple(chunk for chunk in plan.prefill if chunk.query_id not in dropped),
        insert=tuple(query_id for query_id in plan.insert if query_id not in dropped),
        why=f"{plan.why}; {len(dropped)} wait for memory",
    )


def _staying(plan: Plan, view: View) -> Sequence[QueryView]:
    return [query for query in view.in_rows if query.id not in plan.detach and query.id not in plan.forget]


def _room(plan: Plan, view: View) -> int:
    """Bytes that remaining rows leave to others; below 0 if they do not fit themselves."""
    held = view.held_bytes if plan.hold_finished else 0
    return view.bytes_budget - held - sum(view.committed(query) for query in _staying(plan, view))
