"""The batch-wise baseline takes a full batch, holds finished rows, and lets newcomers wait until all are done."""

from __future__ import annotations

from baton.core.step import ALL_PENDING, Feeding
from baton.policy.run_to_completion import RunToCompletion
from views import BYTES, ready, running, view, waiting

plan = RunToCompletion().plan


def test_an_empty_batch_is_filled_in_the_order_of_arrival() -> None:
    planned = plan(view(*waiting("a", "b", "c", "d", "e", "f"), rows=4))
    assert planned.insert == ("a", "b", "c", "d")
    assert (planned.feed, planned.how, planned.hold_finished, planned.resize) == (
        ALL_PENDING,
        Feeding.PADDED,
        True,
        None,
    )


def test_fewer_queries_than_rows_begin_at_once() -> None:
    assert plan(view(*waiting("a"))).insert == ("a",)


def test_while_a_row_runs_newcomers_wait_and_finished_rows_are_held() -> None:
    planned = plan(view(*running("a"), *waiting("b", "c"), held_rows=3))
    assert (planned.insert, planned.prefill, planned.resize, planned.detach) == ((), (), None, ())
    assert planned.hold_finished
    assert planned.how is Feeding.PADDED
    assert "1 of 4 rows" in planned.why


def test_those_that_were_detached_come_first() -> None:
    assert plan(view(*waiting("a", "b"), *ready("r", "s"), max_rows=3)).insert == ("r", "s", "a")


def test_only_as_many_begin_as_the_byte_budget_holds() -> None:
    assert plan(view(*waiting("a", "b", "c"), bytes_left=2 * BYTES)).insert == ("a", "b")
    assert plan(view(*waiting("a", "b", "c"), bytes_left=2 * BYTES - 1)).insert == ("a",)


def test_all_rows_are_asked_for_where_there_are_fewer() -> None:
    assert plan(view(*waiting("a"), rows=2, max_rows=4)).resize == 4


def test_a_plan_changes_nothing_and_the_same_view_gives_the_same_plan() -> None:
    seen = view(*waiting("a", "b", "c"), *ready("r"))
    assert plan(seen) == plan(seen) == RunToCompletion().plan(seen)
