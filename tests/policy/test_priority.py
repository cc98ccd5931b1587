"""priority runs the most urgent, displaces strictly less urgent ones only, and shares between users."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.query import State
from baton.core.step import Chunk
from baton.policy.baton import Baton
from baton.policy.port import Costs, QueryView, View, traits
from baton.policy.priority import Priority, by_priority
from views import (
    check_carried_out,
    prefilling,
    query_view,
    random_queries,
    ready,
    running,
    some,
    swapped_out,
    view,
    waiting,
)

plan = Priority().plan


def full(*more: QueryView, rows: int = 2, **changes: Any) -> View:
    """Rows full of queries of priority 5: "a" came first, then "b"."""
    low = [*running("a", priority=5, arrived=0.0), *running("b", priority=5, arrived=1.0)]
    return view(*low, *more, **{"rows": rows, "max_rows": rows, "prefill_chunk": 100, **changes})


# Rows


def test_a_ready_query_takes_the_row_of_the_least_urgent_and_latest() -> None:
    planned = plan(full(*ready("u", priority=1)))
    assert (planned.detach, planned.insert, planned.forget) == (("b",), ("u",), ())
    assert planned.reasons == {"b": "priority"}
    lower = full(*ready("u", priority=1))
    lower = replace(lower, running=[replace(lower.running[0], priority=6), lower.running[1]])
    assert plan(lower).detach == ("a",)


def test_the_displaced_is_the_last_of_the_user_who_has_most() -> None:
    mine = [*running("a", "b", priority=5, user="many"), *running("c", priority=5, user="one")]
    assert plan(view(*mine, *ready("u"), rows=3, max_rows=3)).detach == ("b",)


@pytest.mark.parametrize("priority", [5, 6])
def test_equals_and_less_urgent_ones_displace_nobody(priority: int) -> None:
    planned = plan(full(*ready("u", priority=priority)))
    assert (planned.detach, planned.insert) == ((), ())


def test_who_only_waits_displaces_nobody_yet() -> None:
    planned = plan(full(*waiting("u", priority=1)))
    assert (planned.detach, planned.prefill) == ((), (Chunk("u", 20),))


def test_a_free_row_is_taken_before_anybody_is_displaced() -> None:
    planned = plan(full(*ready("u", "v", "w", priority=1), rows=4))
    assert (planned.detach, planned.insert) == (("b",), ("u", "v", "w"))


def test_a_free_row_is_taken_by_whoever_is_ready_while_more_urgent_ones_are_prefilled() -> None:
    planned = plan(view(*running("a"), *ready("low", priority=9), *waiting("u"), rows=2, max_rows=2, prefill_chunk=7))
    assert (planned.insert, planned.prefill) == (("low",), (Chunk("u", 7),))


def test_rows_grow_to_the_crowd_before_anybody_is_displaced() -> None:
    planned = plan(full(*ready("u", priority=1), rows=2, max_rows=4))
    assert (planned.resize, planned.detach, planned.insert) == (3, (), ("u",))


def test_who_is_ready_does_not_wait_for_more_urgent_ones_that_are_not() -> None:
    planned = plan(full(*ready("r", "s", priority=1), *waiting("u", "v")))
    assert (set(planned.detach), planned.insert) == ({"a", "b"}, ("r", "s"))


def test_where_there_may_be_fewer_rows_the_least_urgent_leave() -> None:
    assert plan(full(rows=2, max_rows=1)).detach == ("b",)


# Queries that were swapped out


def test_who_was_set_aside_comes_back_before_those_that_never_ran() -> None:
    seen = view(*running("a"), *ready("new"), *swapped_out("old"), rows=2, max_rows=2)
    assert plan(seen).insert == ("old",)
    # A forgotten one must be prefilled again, and also comes before newcomers.
    forgotten = query_view("old", State.WAITING, generated=6)
    planned = plan(view(*running("a", "b"), *waiting("new"), forgotten, rows=2, max_rows=2, prefill_chunk=100))
    assert planned.prefill == (Chunk("old", 26),)


def test_who_was_set_aside_does_not_take_the_row_back_from_an_equal() -> None:
    planned = plan(view(*running("a"), *swapped_out("old"), rows=1, max_rows=1))
    assert (planned.detach, planned.insert) == ((), ())


def test_who_was_set_aside_waits_for_memory_and_newcomers_of_less_urgency_with_it() -> None:
    seen = view(*running("a"), *swapped_out("old", limit_tokens=90), *ready("new", priority=1), bytes_budget=110)
    assert plan(seen).insert == ("new",), "what is ready has its memory already"
    assert plan(replace(seen, bytes_budget=10**9)).insert == ("old", "new")


# Prefill


def test_the_most_urgent_prompt_is_first_in_the_chunk_queue() -> None:
    seen = view(
        *running("a"),
        *prefilling("p", priority=3, cached=5),
        *waiting("w", priority=2),
        *waiting("u"),
        prefill_chunk=30,
    )
    assert plan(seen).prefill == (Chunk("u", 20), Chunk("w", 10))
    assert plan(replace(seen, prefill_chunk=50)).prefill == (Chunk("u", 20), Chunk("w", 20), Chunk("p", 10))


def test_chunks_hold_up_running_rows_no_longer_than_the_bound_even_if_all_of_them_are_displaced() -> None:
    costs = Costs(step_seconds=0.01, fill_token_seconds=0.01, fill_tokens=100)
    seen = full(*ready("r", "s", priority=1), *waiting("u", prompt=900), prefill_chunk=None, costs=costs)
    planned = plan(replace(seen, max_stall_seconds=0.3))
    assert (set(planned.detach), planned.insert) == ({"a", "b"}, ("r", "s"))
    assert planned.prefill == (Chunk("u", 27),), "nine tenths of the bound"


def test_less_urgent_ones_that_are_ready_keep_nobody_from_being_prefilled() -> None:
    planned = plan(full(*ready("r", priority=7), *waiting("u", priority=1)))
    assert planned.prefill == (Chunk("u", 20),)
    assert Baton().plan(full(*ready("r", priority=7), *waiting("u", priority=1))).prefill == ()


def test_no_more_are_made_ready_than_will_have_rows_and_one_ahead() -> None:
    planned = plan(full(*waiting("u", "v", "w", "x", priority=1)))
    assert [chunk.query_id for chunk in planned.prefill] == ["u", "v", "w"]


def test_where_less_urgent_ones_fill_the_prefiller_the_least_urgent_is_forgotten() -> None:
    inside = [*prefilling("p", priority=7), *prefilling("q", priority=8)]
    planned = plan(full(*inside, *waiting("u", priority=1), prefill_room=0))
    assert (planned.forget, planned.reasons) == (("q",), {"q": "priority"})
    assert [chunk.query_id for chunk in planned.prefill] == ["p"]
    assert plan(full(*inside, *waiting("u", priority=8), prefill_room=0)).forget == ()
    assert plan(full(*inside, *waiting("u", priority=1), prefill_room=1)).forget == ()
    beside = plan(full(*ready("r", priority=9), *inside, *waiting("u", priority=1), prefill_room=0))
    assert (beside.forget, beside.insert) == (("r",), ())


# Memory


def test_a_less_urgent_one_gives_way_for_the_memory_of_a_more_urgent_one() -> None:
    """Each takes 40 bytes by its limit; three fit."""
    low = running("a", "b", "c", priority=5)
    tight: dict[str, Any] = {"rows": 8, "max_rows": 8, "bytes_budget": 130, "prefill_chunk": 100}
    planned = plan(view(*low, *waiting("u", priority=1), **tight))
    assert (planned.detach, planned.prefill) == (("c",), (Chunk("u", 20),))
    planned = plan(view(*low, *waiting("u", priority=5), **tight))
    assert (planned.detach, planned.prefill) == ((), ())


def test_nobody_gives_way_where_that_would_not_help() -> None:
    low = running("a", "b", "c", priority=5)
    seen = view(*low, *waiting("u", priority=1, limit_tokens=80), rows=8, max_rows=8, bytes_budget=130, swap_left=10)
    assert (plan(seen).detach, plan(seen).prefill) == ((), ())


def test_those_set_aside_go_on_where_they_hold_what_a_more_urgent_one_needs() -> None:
    seen = view(*swapped_out("a", "b", priority=5), *waiting("u", priority=1), bytes_budget=45, swap_left=0)
    assert plan(seen).insert == ("a",)
    seen = view(*running("r"), *swapped_out("a", priority=5), *waiting("u", priority=1), bytes_budget=90, swap_left=0)
    assert (plan(seen).insert, plan(seen).detach, plan(seen).prefill) == (("a",), (), ())
    # Here the rows are full: it is not overtaken.
    seen = view(*running("r"), *swapped_out("a", priority=5), *waiting("u", priority=1), bytes_budget=70, swap_left=99)
    assert (plan(seen).insert, plan(seen).detach) == ((), ())


# Shares


def names(*queries: QueryView) -> list[str]:
    return [query.id for query in by_priority(view(*queries))]


def test_a_users_nth_query_stands_behind_everyones_one_before() -> None:
    queue = [*waiting("a1", "a2", "a3", user="a"), *waiting("b1", "b2", user="b"), *waiting("c1", user="c")]
    assert names(*queue) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_those_in_rows_count_for_a_users_share() -> None:
    queue = [*running("a1", "a2", user="a"), *waiting("a3", user="a"), *waiting("b1", "b2", "b3", user="b")]
    assert names(*queue) == ["a1", "a2", "b1", "b2", "a3", "b3"]


def test_a_share_is_one_of_a_priority() -> None:
    queue = [*running("a1", "a2", user="a"), *waiting("a3", user="a", priority=1), *waiting("b", user="b", priority=1)]
    assert names(*queue) == ["a1", "a2", "a3", "b"]
    assert names(*waiting("late", priority=1, user="b"), *waiting("many", "more", user="a")) == ["many", "more", "late"]


def test_who_gives_no_user_is_one_user_with_all_such() -> None:
    assert names(*waiting("x", "y", "z"), *waiting("b", user="b")) == ["x", "b", "y", "z"]


def test_a_share_that_is_due_overtakes_in_the_chunk_queue_and_takes_the_next_row() -> None:
    rows = running("a1", "a2", user="a")
    seen = view(*rows, *ready("a3", user="a"), *waiting("b1", user="b"), rows=2, max_rows=2, prefill_chunk=100)
    assert plan(seen).prefill == (Chunk("b1", 20),)
    free = view(rows[0], *ready("a3", user="a"), *ready("b1", user="b"), rows=2, max_rows=2)
    assert plan(free).insert == ("b1",)


def test_it_says_what_it_goes_by() -> None:
    assert traits(Priority()).honours == {"priority", "user"}
    assert traits(Baton()).honours == frozenset()


# Any view


@settings(max_examples=400, deadline=None, derandomize=True)
@given(some, st.integers(1, 5), st.integers(0, 4), st.integers(60, 600), st.sampled_from([None, 7, 100]), st.booleans())
def test_any_plan_can_be_carried_out_and_displaces_for_the_more_urgent_alone(
    drawn: list[tuple[Any, ...]], most: int, room: int, budget: int, chunk: int | None, fused: bool
) -> None:
    queries = random_queries(drawn)
    run = sum(query.state is State.RUNNING for query in queries)
    most = max(most, run)
    seen = view(*queries, rows=max(run, 1), max_rows=most, prefill_room=room, bytes_budget=budget, prefill_chunk=chunk)
    planned = Priority(fused=fused).plan(seen)
    check_carried_out(seen, planned)
    by_id = {query.id: query for query in queries}
    served = [by_id[name] for name in [*planned.insert, *(chunk.query_id for chunk in planned.prefill)]]
    for name in [*planned.detach, *planned.forget]:
        assert by_id[name].priority > min(query.priority for query in [*served, *seen.waiting])
    if planned.detach:
        assert min(by_id[name].priority for name in planned.detach) > min(query.priority for query in served)
        stay = [query.priority for query in seen.running if query.id not in planned.detach]
        assert max(stay, default=0) <= min(by_id[name].priority for name in planned.detach)
