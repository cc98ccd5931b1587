"""Figures are computed from the tokens that came, counted by hand."""

from __future__ import annotations

import pytest

from baton.bench.drive import Response, Run
from baton.bench.figures import Figures, Goal, figures, spread
from baton.bench.table import LINES, equality, table_of
from baton.core.events import Slots

RUN = Run(
    seconds=4.0,
    responses=[
        Response(asked=0.0, tokens=[5, 6, 7], times=[1.0, 1.5, 3.0], prompt_tokens=2, cached_tokens=1),
        Response(asked=1.0, tokens=[8, 9], times=[3.5, 4.0], prompt_tokens=1),
        Response(asked=1.0, error="the queue is full", prompt_tokens=1),
    ],
    late=0.25,
)


def figures_of_run(**more: object) -> Figures:
    slots = Slots(useful=30, padding=8, finished_row=2)
    return figures(RUN, slots, preemptions=3, kv_bytes_most=99, **more)  # type: ignore[arg-type]


def test_rates_and_times() -> None:
    one = figures_of_run()
    assert (one.queries, one.failed, one.generated_tokens, one.prompt_tokens) == (3, 1, 5, 4)
    assert (one.tokens_per_second, one.queries_per_second) == (1.25, 0.5)
    assert one.first_token == {"p50": 1.0, "p90": 2.5, "p99": 2.5, "mean": 1.75, "max": 2.5}
    assert one.per_token["mean"] == pytest.approx((1.0 + 0.5) / 2)
    assert sorted(one.gaps) == [0.5, 0.5, 1.5] and one.inter_token["max"] == 1.5
    assert (one.longest_gap["p50"], one.longest_gap["max"]) == (0.5, 1.5)
    assert one.end_to_end["max"] == 3.0
    assert (one.idle_ratio, one.slots["padding"], one.preemptions, one.late) == (0.25, 8, 3, 0.25)


def test_cached_tokens_are_counted() -> None:
    assert figures_of_run().cached_tokens == 1 and figures_of_run().wholes == [3.0, 3.0]


def test_goodput_counts_those_within_the_goal_alone() -> None:
    assert figures_of_run().goodput == 0.5
    assert figures_of_run(goal=Goal(first_token=2.0)).goodput == 0.25
    assert figures_of_run(goal=Goal(per_token=0.6)).goodput == 0.25
    assert figures_of_run(goal=Goal(first_token=2.0, per_token=0.6)).goodput == 0.0
    assert figures_of_run(goal=Goal(gap=1.5)).goodput == 0.5 and figures_of_run(goal=Goal(gap=1.4)).goodput == 0.25


def test_an_answer_that_is_not_as_alone_is_counted() -> None:
    same = figures_of_run(alone={0: [5, 6, 7], 1: [8, 9]})
    other = figures_of_run(alone={0: [5, 6, 7], 1: [8, 10]})
    assert (same.compared, same.different, other.different) == (2, 0, 1)
    assert equality([same, other]) == "3 of 4" and equality([figures_of_run()]) == "not compared"


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert spread(values) == {"p50": 50, "p90": 90, "p99": 99, "mean": 50.5, "max": 100}
    assert spread([3.0])["p99"] == 3.0 and spread([]) == {}


def test_the_table_has_every_line_even_where_nothing_was_heard() -> None:
    nothing = figures(Run(0.0, []), Slots(), preemptions=0, kv_bytes_most=0)
    assert table_of({"a": [figures_of_run()], "b": [nothing, nothing]}).row_count == len(LINES)
    assert table_of({"a": [figures_of_run(alone={0: [5]})]}).row_count == len(LINES) + 1
