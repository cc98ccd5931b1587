"""Baton's plan for queries of different urgency: the most urgent run, others give way."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from baton.core.query import State
from baton.policy.baton import READY_AHEAD, prefill_chunks, rows_wanted
from baton.policy.port import Plan, QueryView, View

_ENDLESS = 2**62


def shares(view: View) -> dict[str, int]:
    """How many live queries of the same user and priority come before each: first those in rows, then those that were.

    Sorted by it, a user's n-th query comes after everyone's (n-1)th. All queries without a user belong to one user.
    """
    counts: dict[tuple[int, str], int] = {}
    ranks: dict[str, int] = {}
    for query in sorted(everyone(view), key=lambda query: (stage(query), query.arrived)):
        asker = (query.priority, query.user)
        ranks[query.id] = counts.get(asker, 0)
        counts[asker] = ranks[query.id] + 1
    return ranks


def stage(query: QueryView) -> int:
    """0: has a row of the batch; 1: had one, and lost it; 2: never had one."""
    if query.state is State.RUNNING:
        return 0
    return 1 if query.swapped_out or (query.state is State.WAITING and query.generated) else 2


def everyone(view: View) -> list[QueryView]:
    return [*view.running, *view.ready, *view.prefilling, *view.waiting]


@dataclass(frozen=True, slots=True)
class PreemptivePlanner:
    """Plans for an `order` of all live queries: of those that can run, its first `most` have the rows.

    In the order, a running query comes before all those that may not take its row. Rows change hands only when the
    newcomer is ready, so that none is empty meanwhile. What displaced queries have computed is swapped out, not lost.
    """

    ready_ahead: int = READY_AHEAD
    fused: bool = True

    def plan(self, view: View, order: Sequence[QueryView], most: int, reason: str) -> Plan:
        place = {query.id: at for at, query in enumerate(order)}
        near = [query for query in order[: most + self.ready_ahead] if query.state is State.WAITING]
        forget = _no_room(view, order, near)
        begin = {query.id for query in near[: view.prefill_room]}
        asking = [query for query in order if query.swapped_out or query.id in begin]
        displaced = _displaced(view, order, most, asking)
        admitted = _admitted(_after(view, displaced), asking)

        beginning = [query for query in asking if query.id in begin & admitted]
        queue = sorted([*view.prefilling, *beginning], key=lambda query: place[query.id])
        chunks, made_ready = prefill_chunks(view, [query for query in queue if query.id not in forget])
        ready = [query.id for query in order if _is_ready(query, admitted) and query.id not in forget]
        rows = rows_wanted(view)
        free = min(rows, most) - (len(view.running) - len(displaced))
        # A row that is inserted now runs in this step, so there is a step for the chunks.
        fused = self.fused and (len(view.running) > len(displaced) or bool(ready))
        arrivals = (ready if fused else [*ready, *made_ready])[: max(free, 0)]
        return Plan(
            detach=tuple(query.id for query in displaced),
            forget=forget,
            resize=rows if rows != view.rows else None,
            prefill=tuple(chunks),
            insert=tuple(arrivals),
            fused=fused,
            why=f"{len(view.running)} run, {len(displaced)} give way, {len(arrivals)} inserted",
            reasons=dict.fromkeys([*(query.id for query in displaced), *forget], reason),
        )


def _displaced(view: View, order: Sequence[QueryView], most: int, asking: Sequence[QueryView]) -> list[QueryView]:
    """The last of the running: as few as ready queries before them need rows, or as `asking[0]` needs memory."""
    running = [query for query in order if query.state is State.RUNNING]
    near = [query for query in order if query.state in (State.RUNNING, State.READY)]
    behind = sum(query.state is State.RUNNING for query in order[order.index(asking[0]) :]) if asking else 0
    for_rows: list[QueryView] | None = None
    for count in range(max(0, len(running) - most), len(running) + 1):
        leaving = running[len(running) - count :]
        admitted = _admitted(_after(view, leaving), asking)
        able = [query for query in near if query.state is State.RUNNING or _is_ready(query, admitted)]
        if len(running) - count + sum(query.state is State.READY for query in able[:most]) > most:
            continue
        if not asking or asking[0].id in admitted:
            return leaving
        for_rows = leaving if for_rows is None else for_rows
        if count >= behind:
            break
    return for_rows or []


def _is_ready(query: QueryView, admitted: Set[str]) -> bool:
    """Whether it can be given a row of the batch now."""
    return query.state is State.READY and (not query.swapped_out or query.id in admitted)


def _after(view: View, leaving: Sequence[QueryView]) -> View:
    """The view after these are swapped out; if swap memory is too small for them, `swap_left` is below 0."""
    swapped = [replace(query, state=State.READY, swapped_out=True) for query in leaving]
    gone = {query.id for query in leaving}
    return replace(
        view,
        running=[query for query in view.running if query.id not in gone],
        ready=[*view.ready, *swapped],
        swap_left=view.swap_left - sum(view.footprint.of(query.cached) for query in leaving),
    )


def _admitted(view: View, asking: Sequence[QueryView]) -> set[str]:
    """The ids of queries that may have memory, the most urgent first; none overtakes another."""
    admitted = view.admitted(asking, len(asking))
    if not admitted and replace(view, swap_left=_ENDLESS).admitted(asking, 1):
        # There is room in the rows for the first of them, but swapped-out queries hold what it will need: they must
        # continue so that it becomes free.
        admitted = view.admitted([query for query in asking if query.swapped_out], len(asking))
    return {query.id for query in admitted}


def _no_room(view: View, order: Sequence[QueryView], near: Sequence[QueryView]) -> tuple[str, ...]:
    """A query to be forgotten if less urgent ones fill the prefiller: no place is kept free for that rare case."""
    inside = {query.id for query in view.in_rows} - {query.id for query in view.running}
    last = next((query for query in reversed(order) if query.id in inside), None)
    if view.prefill_room or not near or last is None or last.priority <= near[0].priority:
        return ()
    return (last.id,)
