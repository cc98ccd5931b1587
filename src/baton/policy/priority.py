"""Priority: the most urgent queries run, at the cost of less urgent ones; users share within a priority."""

from __future__ import annotations

from baton.policy.baton import READY_AHEAD
from baton.policy.port import Plan, QueryView, View
from baton.policy.preemptive import PreemptivePlanner, everyone, shares, stage


class Priority:
    """As baton, but in the order of `priority`, lower first.

    A query that is ready takes the row of the least urgent one that runs and is less urgent than it. Equals never
    displace each other: of one priority those that run stay, those that lost a row come back before others begin, and
    newcomers stand in the order of their users' shares, then of their arrival.
    """

    honours = frozenset({"priority", "user"})

    def __init__(self, *, ready_ahead: int = READY_AHEAD, fused: bool = True) -> None:
        self._urgent_first = PreemptivePlanner(ready_ahead, fused)

    def plan(self, view: View) -> Plan:
        return self._urgent_first.plan(view, by_priority(view), view.max_rows, "priority")


def by_priority(view: View) -> list[QueryView]:
    """All live queries, the most urgent first."""
    share = shares(view)
    return sorted(
        everyone(view),
        key=lambda query: (query.priority, stage(query), share[query.id], query.arrived),
    )
