"""Iteration-level batching, the second baseline (Orca, Yu et al., OSDI 2022)."""

from __future__ import annotations

from baton.policy.port import ALL_PENDING, Feeding, Plan, View


class Orca:
    """Newcomers join at any iteration, first come first served, with their whole prompt in that iteration.

    Selective batching: all tokens go flat through the linear layers, attention is executed request by request. Memory
    for the longest possible answer is reserved when a query joins, as the paper's scheduler does (its section 4.2).
    """

    prompts_in_step = True
    selective = True

    def plan(self, view: View) -> Plan:
        free = view.max_rows - len(view.running)
        chosen = view.fitting([*view.ready, *view.waiting], free)
        return Plan(
            resize=view.max_rows if view.rows != view.max_rows else None,
            insert=tuple(query.id for query in chosen),
            feed=ALL_PENDING,
            how=Feeding.SELECTIVE,
            why=f"{len(chosen)} join, {len(view.running)} go on" if chosen else f"{len(view.running)} go on",
        )
