"""slo: least slack first; rows change hands only if that saves a deadline; no more rows than the pace allows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.query import State
from baton.core.step import Chunk
from baton.policy.port import Costs, QueryView, View, traits
from baton.policy.slo import SETTLED_TOKENS, Slo, is_pressed, needs, slack
from views import check_carried_out, query_view, random_queries, ready, running, some, swapped_out, view, waiting

plan = Slo().plan
# A second a step, whatever the rows, and half a second a prompt token.
EVEN = Costs(step_seconds=1.0, fill_token_seconds=0.5, fill_tokens=100, step_seconds_by_rows=((1, 1.0),))
# A second a row.
STEEP = replace(EVEN, step_seconds_by_rows=((1, 1.0), (4, 4.0)))


def settled(*names: str, **changes: Any) -> list[QueryView]:
    """Running, and far enough to give way: 100 - 10 = 90 tokens are left."""
    values = {"generated": 10, "limit_tokens": 100, "since_insert": SETTLED_TOKENS, **changes}
    return running(*names, **values)


def full(*more: QueryView, costs: Costs = EVEN, **changes: Any) -> View:
    return view(*more, costs=costs, **{"rows": 2, "max_rows": 2, "prefill_chunk": 100, **changes})


def test_slack_is_what_is_left_after_the_prompt_and_every_token_that_may_come() -> None:
    new = query_view("w", prompt=20, limit_tokens=30, deadline=100.0)
    assert needs(full(new), new) == 20 * 0.5 + 30
    assert slack(full(new, now=50.0), new) == 10.0
    half = query_view("p", State.PREFILLING, prompt=20, cached=15, limit_tokens=30, deadline=100.0)
    assert slack(full(half), half) == 100 - 2.5 - 30
    (run,) = settled("r", deadline=100.0)
    assert slack(full(run), run) == 10.0
    assert slack(full(run), replace(run, deadline=None)) == float("inf")


def test_before_anything_was_measured_slack_is_the_time_left() -> None:
    (run,) = settled("r", deadline=3.0)
    assert slack(view(run), run) == 3.0


def test_prompts_go_in_the_order_of_slack_and_those_without_a_deadline_after_them() -> None:
    queue = [*waiting("none"), *waiting("late", deadline=90.0), *waiting("soon", deadline=60.0)]
    planned = plan(full(*running("a", limit_tokens=7), *queue, rows=3, max_rows=3, prefill_chunk=50))
    assert planned.prefill == (Chunk("soon", 20), Chunk("late", 20), Chunk("none", 10))


def test_a_deadline_that_cannot_be_met_is_not_run_for() -> None:
    queue = [*waiting("none", arrived=-5.0), *waiting("lost", deadline=20.0), *waiting("soon", deadline=60.0)]
    assert [chunk.query_id for chunk in plan(full(*settled("a", "b"), *queue)).prefill] == ["soon"]
    assert [chunk.query_id for chunk in plan(full(*settled("a", "b"), *queue[:2])).prefill] == ["none"]


def test_priority_goes_before_slack() -> None:
    planned = plan(full(*settled("a", "b", priority=1), *ready("u"), *waiting("w", priority=1, deadline=31.0)))
    assert (planned.detach, planned.insert) == (("b",), ("u",))


# Queries that give way


def pressed(**changes: Any) -> list[QueryView]:
    """Ready, 19 tokens left, 30 seconds to its deadline; both rows are taken for 90 seconds."""
    return ready("q", **{"deadline": 30.0, **changes})


def test_a_pressed_query_takes_the_row_of_the_one_with_most_slack() -> None:
    planned = plan(full(*settled("a", deadline=130.0), *settled("b", deadline=200.0), *pressed()))
    assert (planned.detach, planned.insert, planned.reasons) == (("b",), ("q",), {"b": "deadline"})
    planned = plan(full(*settled("a"), *settled("b", deadline=200.0), *pressed()))
    assert planned.detach == ("a",)


@pytest.mark.parametrize(
    ("rows", "query", "why"),
    [
        (settled("a", "b", deadline=100.0), pressed(), "both would be late themselves"),
        (settled("a", "b"), pressed(deadline=18.0), "it is lost"),
        (settled("a", "b"), pressed(deadline=None), "it has no deadline"),
        (settled("a", "b", generated=95), pressed(), "a row is free in time"),
        (settled("a", "b", since_insert=SETTLED_TOKENS - 1), pressed(), "they have just got their rows"),
        (settled("a"), pressed(), "a row is free"),
    ],
)
def test_nobody_gives_way_where(rows: list[QueryView], query: list[QueryView], why: str) -> None:
    assert plan(full(*rows, *query)).detach == (), why


def test_who_only_waits_is_prefilled_before_anybody_gives_way() -> None:
    planned = plan(full(*settled("a", "b"), *waiting("other", arrived=-9.0), *waiting("q", deadline=50.0)))
    assert planned.detach == ()
    assert [chunk.query_id for chunk in planned.prefill] == ["q"]


def test_who_gave_way_does_not_take_the_row_back_while_that_would_cost_the_deadline() -> None:
    """After the swap of a test above, as time goes by."""
    for spent in range(0, 18, 3):
        seen = full(
            *settled("a", deadline=130.0, generated=10 + spent, since_insert=20 + spent),
            *running("q", deadline=30.0, generated=1 + spent, since_insert=spent),
            *swapped_out("b", deadline=200.0, generated=10, limit_tokens=100),
            now=float(spent),
        )
        assert (plan(seen).detach, plan(seen).insert) == ((), ())


# Pace


def test_no_more_rows_are_filled_than_a_step_that_meets_the_tightest_pace_has() -> None:
    """50 seconds for 19 tokens: 2.6 each, which two rows meet with ease and three do not."""
    tight = running("t", generated=1, deadline=50.0)
    seen = full(*tight, *ready("a", "b", "c"), costs=STEEP, rows=4, max_rows=4)
    assert plan(seen).insert == ("a",)
    assert plan(replace(seen, running=running("t", generated=1))).insert == ("a", "b", "c")


def test_who_has_time_gives_way_to_a_pace_that_the_batch_does_not_meet() -> None:
    tight = running("t", generated=1, deadline=50.0, since_insert=1)
    planned = plan(full(*tight, *settled("a", "b", "c"), costs=STEEP, rows=4, max_rows=4))
    assert planned.detach == ("b", "c")
    busy = settled("a", "b", "c", deadline=4 * 91.0)
    assert plan(full(*tight, *busy, costs=STEEP, rows=4, max_rows=4)).detach == (), "they would be late"


def test_a_pace_that_not_even_one_row_meets_slows_nobody_down() -> None:
    lost = running("t", generated=1, deadline=5.0)
    planned = plan(full(*lost, *ready("a", "b", "c"), costs=STEEP, rows=4, max_rows=4))
    assert planned.insert == ("a", "b", "c")


def test_rows_do_not_swing_with_what_is_measured() -> None:
    """Between easy and too slow the number of rows stays: three take 3 seconds a step, the pace is 3.1."""
    tight = running("t", generated=1, deadline=19 * 3.1)
    three = full(*tight, *settled("a", "b"), *ready("c"), costs=STEEP, rows=4, max_rows=4)
    assert (plan(three).detach, plan(three).insert) == ((), ())
    two = full(*tight, *settled("a"), *ready("c"), costs=STEEP, rows=4, max_rows=4)
    assert (plan(two).detach, plan(two).insert) == ((), ())


# Costs


def test_a_step_is_on_the_line_between_those_that_were_seen() -> None:
    costs = Costs(step_seconds=9.0, step_seconds_by_rows=((2, 1.0), (4, 3.0), (8, 4.0)))
    assert [costs.step_at(rows) for rows in (1, 2, 3, 4, 6, 8, 12)] == [0.5, 1.0, 2.0, 3.0, 3.5, 4.0, 5.0]
    assert Costs(step_seconds=9.0).step_at(3) == 9.0
    assert Costs().step_at(3) is None
    assert Costs(step_seconds_by_rows=((4, 2.0),)).step_at(7) == 2.0
    assert Costs(step_seconds_by_rows=((1, 4.0), (2, 1.0))).step_at(9) == 0.0


def test_it_says_what_it_goes_by() -> None:
    assert traits(Slo()).honours == {"priority", "deadline", "user"}


# Any view


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    some,
    st.lists(st.one_of(st.none(), st.floats(-5, 200)), min_size=14, max_size=14),
    st.integers(1, 5),
    st.integers(60, 600),
    st.sampled_from([EVEN, STEEP, Costs()]),
)
def test_any_plan_can_be_carried_out_and_no_deadline_is_given_up_for_an_equal(
    drawn: list[tuple[Any, ...]], deadlines: list[float | None], most: int, budget: int, costs: Costs
) -> None:
    queries = [
        replace(query, deadline=deadline, since_insert=at)
        for at, (query, deadline) in enumerate(zip(random_queries(drawn), deadlines, strict=False))
    ]
    run = sum(query.state is State.RUNNING for query in queries)
    seen = view(*queries, rows=max(run, 1), max_rows=max(most, run), bytes_budget=budget, prefill_chunk=7, costs=costs)
    planned = plan(seen)
    check_carried_out(seen, planned, paced=True)
    by_id = {query.id: query for query in queries}
    served = [by_id[name] for name in [*planned.insert, *(chunk.query_id for chunk in planned.prefill)]]
    most_urgent = min((query.priority for query in served), default=9)
    for name in planned.detach:
        if by_id[name].priority <= most_urgent:
            assert slack(seen, by_id[name]) >= 0
            assert by_id[name].since_insert >= SETTLED_TOKENS


def test_being_pressed_is_a_matter_of_the_rows_that_there_may_be() -> None:
    (query,) = pressed()
    seen = full(*settled("a", "b"), query, rows=4, max_rows=4)
    assert not is_pressed(seen, query, 4)
    assert is_pressed(seen, query, 2)
