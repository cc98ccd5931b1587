"""The ways in which `baton check` runs its queries: policies, rows, arrivals, and plans that are disturbed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Plan, Policy, View
from baton.policy.run_to_completion import RunToCompletion

ROWS = 4


@dataclass(slots=True)
class Disturbed:
    """A policy whose plans are disturbed in one way; `moves` counts how often."""

    inner: Policy
    disturb: Callable[[View, Plan, Disturbed], Plan]
    moves: int = 0
    seen: set[str] = field(default_factory=set)
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    def plan(self, view: View) -> Plan:
        return self.disturb(view, self.inner.plan(view), self)


def taken_out(view: View, plan: Plan, by: Disturbed) -> Plan:
    """Takes each query out once, after its third token, with its keys and values; it is put back later."""
    chosen = tuple(q.id for q in view.running if q.generated >= 3 and q.id not in by.seen)
    by.seen.update(chosen)
    by.moves += len(chosen)
    return replace(plan, detach=(*plan.detach, *chosen))


def _forgotten(view: View, plan: Plan, by: Disturbed) -> Plan:
    taken = taken_out(view, plan, by)
    return replace(taken, forget=(*taken.forget, *taken.detach))


def _moved(view: View, plan: Plan, by: Disturbed) -> Plan:
    """Makes two running queries change places, every third iteration."""
    pair = tuple(q.id for q in view.running)[:2]
    if view.costs.step_seconds is None or len(pair) < 2 or by.dice.random() > 1 / 3:
        return plan
    by.moves += 1
    return replace(plan, detach=pair, insert=(*reversed(pair), *plan.insert)[: view.rows - len(view.running) + 2])


def _resized(view: View, plan: Plan, by: Disturbed) -> Plan:
    need = max(1, len(view.running) + len(plan.insert))
    rows = by.dice.randint(need, max(need, view.max_rows))
    by.moves += rows != view.rows
    return replace(plan, resize=rows)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way of running the cases. `late`: iterations between arrivals; `chunk`: most prompt tokens per iteration.

    `prefixes`: also runs cases that continue another one. `long`: runs the long ones among the short.
    """

    name: str
    what: str
    policy: Callable[[], Policy]
    rows: int = ROWS
    late: int = 0
    chunk: int | None = None
    prefixes: bool = False
    long: bool = False


def _with(disturb: Callable[[View, Plan, Disturbed], Plan]) -> Callable[[], Policy]:
    return lambda: Disturbed(Baton(), disturb)


SCENARIOS = (
    Scenario("solo", "one row, one query after the other", Baton, rows=1),
    Scenario("crowd", "all at once", Baton),
    Scenario("late", "each joins while others run", Baton, late=3),
    Scenario("chunked", "prompts in pieces of 7 tokens", Baton, late=2, chunk=7),
    Scenario("apart", "prompts in a forward of their own", lambda: Baton(fused=False), late=2, chunk=16),
    Scenario("kept", "taken out and put back", _with(taken_out)),
    Scenario("forgotten", "taken out, forgotten, computed again", _with(_forgotten)),
    Scenario("moved", "running queries change rows", _with(_moved)),
    Scenario("resized", "rows grow and shrink", _with(_resized), late=2),
    Scenario("prefix", "begins as an earlier text did", Baton, prefixes=True),
    Scenario("long", "long texts and short ones", Baton, late=2, long=True),
    Scenario("orca", "policy orca", Orca, late=3),
    Scenario("run_to_completion", "policy run_to_completion", RunToCompletion),
)
