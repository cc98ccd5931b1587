"""Priority: the most urgent queries run, at the cost of less urgent ones; users share within a priority."""

from __future__ import annotations

from baton.policy.baton import READY_AHEAD
from baton.policy.port import Plan, QueryView, View
from baton.policy.preemptive import PreemptivePlanner, everyone, shares, stage


class Priority:
    """As baton, but in the order of `priority`, lower first.

    A ready query takes the row of the least urgent running one that is less urgent than itself. Equals never displace
    each other: within a priority, running queries stay, queries that lost a row come back before others begin, and
    newcomers are ordered by their users' shares, then by arrival.
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
