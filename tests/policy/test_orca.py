"""The iteration-level baseline lets newcomers join at any iteration, whole prompt at once, first come first served."""

from __future__ import annotations

from baton.core.step import ALL_PENDING, Feeding
from baton.policy.orca import Orca
from views import BYTES, query_view, ready, running, view, waiting

plan = Orca().plan


def test_newcomers_join_those_that_run_on_the_free_rows() -> None:
    planned = plan(view(*running("a", "b"), *waiting("c", "d", "e"), max_rows=4))
    assert planned.insert == ("c", "d")
    assert (planned.feed, planned.how, planned.prefill, planned.hold_finished) == (
        ALL_PENDING,
        Feeding.SELECTIVE,
        (),
        False,
    )


def test_where_no_row_is_free_nobody_joins() -> None:
    planned = plan(view(*running("a", "b"), *waiting("c"), max_rows=2))
    assert (planned.insert, planned.detach) == ((), ())
    assert planned.feed == ALL_PENDING


def test_those_that_were_detached_come_first() -> None:
    assert plan(view(*waiting("a"), *ready("r"), *running("x"), max_rows=2)).insert == ("r",)


def test_memory_for_the_longest_answer_is_reserved_when_a_query_joins() -> None:
    assert plan(view(*waiting("a", "b", "c"), bytes_left=2 * BYTES)).insert == ("a", "b")


def test_a_small_query_does_not_overtake_a_large_one_that_must_wait() -> None:
    large, small = query_view("large", bytes_reserved=100), query_view("small", bytes_reserved=1)
    assert plan(view(large, small, bytes_left=50)).insert == ()
    assert plan(view(small, large, bytes_left=50)).insert == ("small",)


def test_ready_ones_are_in_the_budget_already() -> None:
    assert plan(view(*ready("r"), bytes_left=0)).insert == ("r",)


def test_all_rows_are_asked_for_where_there_are_fewer() -> None:
    assert plan(view(*waiting("a"), rows=1, max_rows=4)).resize == 4
    assert plan(view(*waiting("a"), rows=4, max_rows=4)).resize is None
