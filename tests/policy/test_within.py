"""Whatever a policy plans, what is carried out fits in memory, and no query loses a row too early."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from baton.core.query import State
from baton.core.step import Chunk
from baton.policy.memory_guard import MemoryGuard
from baton.policy.port import Plan, QueryView, View
from views import prefilling, query_view, ready, running, swapped_out, view, waiting


@dataclass
class Answers:
    """A policy with given plans."""

    planned: Plan

    def plan(self, view: View) -> Plan:
        return self.planned


def fitted(planned: Plan, seen: View) -> Plan:
    return MemoryGuard(Answers(planned)).plan(seen)


# Standings run with 26 tokens of a byte each, so far; the next 10 are sure.
SURE: dict[str, Any] = {"guaranteed_tokens": 10}


def free_to_go(*names: str, **changes: Any) -> list[QueryView]:
    return running(*names, **{"since_insert": 10, "limit_tokens": 100, **changes})


def test_a_plan_that_fits_is_left_as_it_is() -> None:
    planned = Plan(insert=("r",), prefill=(Chunk("w", 5),), why="as planned")
    seen = view(*running("a"), *ready("r"), *waiting("w"), bytes_budget=500, **SURE)
    assert fitted(planned, seen) is planned


def test_where_rows_outgrow_the_budget_the_latest_to_arrive_is_set_aside() -> None:
    fit = fitted(Plan(why="go on"), view(*free_to_go("a", "b", "c"), bytes_budget=2 * 26, **SURE))
    assert (fit.detach, fit.forget, fit.reasons) == (("c",), (), {"c": "memory"})
    assert fit.why == "go on; 1 lose their rows for memory"


def test_no_row_is_lost_while_all_fit() -> None:
    assert fitted(Plan(), view(*free_to_go("a", "b", "c"), bytes_budget=3 * 26, **SURE)).detach == ()


def test_the_less_urgent_lose_their_rows_first() -> None:
    urgent = [replace(query, priority=-1) for query in free_to_go("late", arrived=8.0)]
    later = [replace(query, priority=5) for query in free_to_go("early", arrived=0.0)]
    fit = fitted(Plan(), view(*later, *free_to_go("mid", arrived=4.0), *urgent, bytes_budget=30, **SURE))
    assert fit.detach == ("early", "mid")


def test_who_has_not_made_its_sure_progress_keeps_its_row() -> None:
    fresh = running("new", since_insert=9, limit_tokens=100)
    seen = view(*free_to_go("a", "b"), *fresh, bytes_budget=26 + 27, **SURE)
    assert fitted(Plan(), seen).detach == ("b",)
    # A protected query loses its row only if the budget is less than what was promised.
    assert fitted(Plan(), replace(seen, bytes_budget=26)).detach == ("b", "a", "new")


def test_prompts_half_prefilled_are_forgotten_last() -> None:
    seen = view(*free_to_go("a"), *prefilling("p"), *ready("r"), bytes_budget=20, **SURE)
    planned = Plan(prefill=(Chunk("p", 4),), insert=("r",))
    fit = fitted(planned, seen)
    assert (fit.detach, set(fit.forget), fit.prefill, fit.insert) == (("a",), {"p", "r"}, (), ())


def test_what_the_pool_cannot_hold_is_forgotten() -> None:
    seen = view(*free_to_go("a", "b", "c"), bytes_budget=26, swap_left=30, **SURE)
    fit = fitted(Plan(), seen)
    assert (fit.detach, fit.forget) == (("c", "b"), ("c",))
    assert fitted(Plan(), replace(seen, swap_left=50)).forget == ()
    planned = Plan(detach=("a",), reasons={"a": "priority"})
    fit = fitted(planned, view(*free_to_go("a"), swap_left=24, **SURE))
    assert (fit.forget, fit.reasons) == (("a",), {"a": "priority"})


def test_where_the_pool_has_shrunk_those_in_it_are_forgotten_the_latest_first() -> None:
    seen = view(*swapped_out("s", "t", "u"), swap_left=-26, **SURE)
    fit = fitted(Plan(insert=("t",)), seen)
    assert (set(fit.forget), fit.insert) == ({"t", "u"}, ())


def test_newcomers_that_do_not_fit_are_dropped_and_do_not_overtake() -> None:
    big, small = query_view("big", prompt=90), query_view("small", prompt=1)
    planned = Plan(prefill=(Chunk("p", 2), Chunk("big", 5), Chunk("small", 1)), insert=("r", "small"))
    seen = view(*prefilling("p"), *ready("r"), big, small, bytes_budget=30 + 31 + 50, **SURE)
    fit = fitted(planned, seen)
    assert (fit.prefill, fit.insert, fit.detach) == ((Chunk("p", 2),), ("r",), ())
    assert "2 wait for memory" in fit.why


def test_those_set_aside_are_given_memory_before_those_who_begin() -> None:
    planned = Plan(prefill=(Chunk("w", 5),), insert=("s",))
    seen = view(*waiting("w"), *swapped_out("s", limit_tokens=100), bytes_budget=40, **SURE)
    assert (fitted(planned, seen).prefill, fitted(planned, seen).insert) == ((), ("s",))


def test_nobody_loses_a_row_for_a_newcomer() -> None:
    planned = Plan(insert=("s",))
    seen = view(*free_to_go("a", "b"), *swapped_out("s", limit_tokens=100), bytes_budget=2 * 26 + 20, **SURE)
    assert fitted(planned, seen).detach == fitted(planned, seen).insert == ()


def test_whose_row_the_plan_takes_leaves_room_for_others() -> None:
    planned = Plan(detach=("b",), insert=("s",))
    seen = view(*free_to_go("a", "b"), *swapped_out("s", limit_tokens=100), bytes_budget=26 + 36, **SURE)
    assert fitted(planned, seen).insert == ("s",)


def test_finished_rows_are_no_longer_held_where_memory_is_short() -> None:
    planned = Plan(hold_finished=True)
    seen = view(*free_to_go("a"), held_rows=2, held_bytes=50, bytes_budget=70, **SURE)
    assert (fitted(planned, seen).hold_finished, fitted(planned, seen).detach) == (False, ())
    assert fitted(planned, replace(seen, bytes_budget=76)) is planned


def after(plan: Plan, seen: View) -> tuple[int, int]:
    """Bytes of all rows after the plan and its step at the most, and of the pool."""
    begun = {chunk.query_id for chunk in plan.prefill} | set(plan.insert)
    gone = {*plan.detach, *plan.forget}
    rows = [query for query in seen.in_rows if query.id not in gone]
    rows += [query for query in (*seen.waiting, *seen.swapped_out) if query.id in begun]
    held = seen.held_bytes if plan.hold_finished else 0
    kept = [q for q in (*seen.running, *seen.swapped_out) if q.id not in plan.forget and q.id not in begun]
    pool = sum(q.cached for q in kept if q.swapped_out or q.id in plan.detach)
    return sum(q.prompt_tokens + q.generated for q in rows) + held, pool


@st.composite
def standings(draw: st.DrawFn) -> list[QueryView]:
    kinds: dict[State, Any] = {
        State.WAITING: waiting,
        State.PREFILLING: prefilling,
        State.READY: ready,
        State.RUNNING: running,
    }
    queries = []
    for number in range(draw(st.integers(0, 8))):
        state = draw(st.sampled_from([*kinds, "aside"]))
        make = swapped_out if state == "aside" else kinds[state]
        generated = 0 if state in (State.WAITING, State.PREFILLING) else draw(st.integers(1, 30))
        (query,) = make(f"q{number}", prompt=draw(st.integers(6, 40)), generated=generated, limit_tokens=40)
        cached = min(query.cached, query.prompt_tokens) if generated == 0 else query.prompt_tokens + generated - 1
        since = draw(st.integers(0, generated)) if state is State.RUNNING else 0
        changes = {"cached": cached, "since_insert": since, "priority": draw(st.integers(-1, 1))}
        queries.append(replace(query, arrived=float(number), **changes))
    return queries


@settings(max_examples=500, deadline=None, derandomize=True)
@given(data=st.data(), some=standings(), sure=st.integers(0, 20), held=st.integers(0, 50))
def test_any_plan_for_any_view_fits_afterwards(
    data: st.DataObject, some: list[QueryView], sure: int, held: int
) -> None:
    seen = view(*some, guaranteed_tokens=sure, held_rows=held > 0, held_bytes=held)
    in_pool = sum(query.cached for query in seen.swapped_out)
    pool = data.draw(st.integers(0, in_pool + 80), label="pool")
    seen = replace(seen, bytes_budget=data.draw(st.integers(0, 300), label="budget"), swap_left=pool - in_pool)

    def any_of(queries: Any, label: str) -> list[str]:
        names = [query.id for query in queries]
        return data.draw(st.permutations(names), label=label)[: data.draw(st.integers(0, len(names)))]

    detach = any_of(seen.running, "detach")
    planned = Plan(
        detach=tuple(detach),
        forget=tuple(any_of([*seen.prefilling, *seen.ready], "forget") + detach[::2]),
        prefill=tuple(Chunk(name, 3) for name in any_of([*seen.waiting, *seen.prefilling], "prefill")),
        insert=tuple(any_of([*seen.waiting, *seen.ready], "insert")),
        hold_finished=data.draw(st.booleans(), label="hold"),
    )
    assume(not set(planned.forget) & ({c.query_id for c in planned.prefill} | set(planned.insert)))
    fit = fitted(planned, seen)
    rows, kept = after(fit, seen)
    assert rows <= seen.bytes_budget
    assert kept <= max(pool, 0)
    # Nothing is added but rows lost for memory, and nothing dropped but newcomers.
    assert set(fit.insert) <= set(planned.insert) and set(fit.prefill) <= set(planned.prefill)
    assert set(fit.detach) >= set(planned.detach) and set(fit.forget) >= set(planned.forget)
    lost = [query for query in seen.running if query.id in set(fit.detach) - set(planned.detach)]
    promised = sum(seen.committed(query) for query in seen.in_rows if seen.protected(query))
    if promised <= seen.bytes_budget:
        assert not [query.id for query in lost if seen.protected(query)]
    stays = [q for q in seen.running if q.id not in fit.detach and not seen.protected(q)]
    unprotected = [query for query in lost if not seen.protected(query)]
    for victim in unprotected:
        assert all((stay.priority, stay.arrived) <= (victim.priority, victim.arrived) for stay in stays)
    assert fitted(fit, seen) == fit, "what fits is left as it is"
