"""baton prefills ahead of the row that will be free, in chunks that bound the stall, and inserts at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.step import Chunk, Feeding
from baton.policy.baton import LARGEST_CHUNK, SMALLEST_CHUNK, Baton, smallest_chunk
from baton.policy.port import Costs, View
from views import prefilling, query_view, ready, running, swapped_out, view, waiting

plan = Baton().plan


def test_a_prompt_that_ends_within_the_chunk_is_inserted_in_the_same_iteration() -> None:
    planned = plan(view(*waiting("a", "b"), rows=2))
    assert planned.prefill == (Chunk("a", 20), Chunk("b", 20))
    assert planned.insert == ("a", "b")
    assert (planned.feed, planned.how, planned.hold_finished) == (1, Feeding.RAGGED, False)


def test_a_ready_query_takes_a_free_row_at_once() -> None:
    planned = plan(view(*running("a", "b", "c"), *ready("r"), *waiting("w"), max_rows=4))
    assert planned.insert == ("r",)


def test_without_a_free_row_one_query_is_made_ready_ahead_and_no_more() -> None:
    planned = plan(view(*running("a", "b"), *waiting("c", "d"), rows=2, max_rows=2, prefill_chunk=100))
    assert planned.prefill == (Chunk("c", 20),)
    assert planned.insert == ()
    planned = plan(view(*running("a", "b"), *ready("r"), *waiting("c", "d"), rows=2, max_rows=2, prefill_chunk=100))
    assert (planned.prefill, planned.insert) == ((), ())


def test_more_may_be_made_ready_ahead_where_asked() -> None:
    planned = Baton(ready_ahead=2).plan(
        view(*running("a", "b"), *waiting("c", "d", "e"), rows=2, max_rows=2, prefill_chunk=100)
    )
    assert [chunk.query_id for chunk in planned.prefill] == ["c", "d"]


def test_a_prompt_half_prefilled_goes_on_before_others_begin() -> None:
    seen = view(*running("a"), *prefilling("p", cached=5), *waiting("w"), prefill_chunk=18)
    assert plan(seen).prefill == (Chunk("p", 15), Chunk("w", 3))
    assert Baton(fused=False).plan(seen).insert == ("p",)


def test_what_rides_in_the_step_is_inserted_by_the_next_plan() -> None:
    seen = view(*running("a"), *ready("r"), *prefilling("p", cached=5), prefill_chunk=18)
    assert (plan(seen).fused, plan(seen).insert) == (True, ("r",))
    apart = Baton(fused=False).plan(seen)
    assert (apart.fused, apart.insert) == (False, ("r", "p"))


def test_where_nothing_runs_there_is_no_step_to_ride_in() -> None:
    planned = plan(view(*waiting("a", "b")))
    assert (planned.fused, planned.insert) == (False, ("a", "b"))


def test_a_prompt_longer_than_the_chunk_is_not_inserted_yet() -> None:
    planned = plan(view(*running("a"), *waiting("w"), prefill_chunk=7))
    assert (planned.prefill, planned.insert) == ((Chunk("w", 7),), ())


def test_while_rows_run_no_more_is_prefilled_than_the_chunk() -> None:
    seen = view(*running("a"), *waiting(*"bcdefg"), max_rows=8, prefill_chunk=30)
    assert sum(chunk.tokens for chunk in plan(seen).prefill) == 30
    assert Baton(fused=False).plan(seen).insert == ("b",)


def test_while_nothing_runs_prefill_holds_up_nobody() -> None:
    seen = view(*waiting("a", prompt=2000), prefill_chunk=30)
    assert plan(seen).prefill == (Chunk("a", LARGEST_CHUNK),)


def fed(seen: View) -> list[int]:
    return [chunk.tokens for chunk in plan(seen).prefill]


@pytest.mark.parametrize(
    ("costs", "stall", "tokens"),
    [
        (Costs(), 0.2, SMALLEST_CHUNK),  # nothing measured yet
        (Costs(0.1, 0.002, fill_tokens=512), 0.2, 90),  # nine tenths of the bound
        (Costs(0.1, 0.002, fill_tokens=512), 0.1, 45),
        (Costs(0.1, 0.002, fill_tokens=30), 0.2, 60),  # twice the largest that was measured
        (Costs(0.1, 0.002, fill_fixed_seconds=0.1, fill_tokens=512), 0.2, 40),
        (Costs(0.1, 1.0, fill_tokens=512), 0.2, SMALLEST_CHUNK),
        (Costs(0.1, 0.001, fill_fixed_seconds=9.0, fill_tokens=512), 0.2, SMALLEST_CHUNK),
        (Costs(0.1, 1e-6, fill_tokens=512), 0.2, LARGEST_CHUNK),
    ],
)
def test_a_chunk_is_what_the_stall_bound_affords_at_the_measured_cost(costs: Costs, stall: float, tokens: int) -> None:
    assert fed(view(*running("a"), *waiting("w", prompt=900), max_stall_seconds=stall, costs=costs)) == [tokens]


def test_a_chunk_far_into_its_prompt_is_smaller_where_columns_cost() -> None:
    costs = Costs(0.1, 1e-4, fill_column_seconds=1e-6, fill_tokens=512)
    near = fed(view(*running("a"), *prefilling("p", prompt=9000, cached=0), costs=costs))[0]
    far = fed(view(*running("a"), *prefilling("p", prompt=9000, cached=5000), costs=costs))[0]
    assert far < near
    assert costs.chunk_seconds(far, 5000) <= 0.18 < costs.chunk_seconds(far + 1, 5000)


def test_several_prompts_share_the_stall_bound() -> None:
    costs = Costs(0.1, 0.002, fill_tokens=512)
    seen = view(*running("a"), *prefilling("p", prompt=65), *waiting("w", prompt=300), costs=costs)
    assert fed(seen) == [60, 30]


def test_the_least_progress_of_prefill_is_shared_too() -> None:
    seen = view(*running("a"), *prefilling("p", prompt=10), *waiting("w", prompt=300), costs=Costs(0.1, 1.0))
    assert fed(seen) == [5, SMALLEST_CHUNK - 5]


def test_a_chunk_that_was_asked_for_holds_whatever_the_costs() -> None:
    assert fed(view(*running("a"), *waiting("w"), prefill_chunk=3, costs=Costs(fill_token_seconds=0.002))) == [3]


def test_prompts_that_cannot_be_fed_in_chunks_are_fed_whole() -> None:
    seen = view(*running("a"), *waiting("v", "w", prompt=300), whole_prompts=True)
    assert plan(seen).prefill == (Chunk("v", 300),)
    assert Baton(fused=False).plan(seen).insert == ("v",)
    small = view(*running("a"), *waiting("v", "w", prompt=7), whole_prompts=True)
    assert fed(small) == [7, 7]


def test_rows_grow_to_the_crowd_at_once_within_the_most() -> None:
    assert plan(view(*waiting("a", "b", "c"), rows=1, max_rows=8)).resize == 3
    assert plan(view(*waiting(*"abcdefghij"), rows=1, max_rows=8)).resize == 8
    assert plan(view(*running(*"abcd"), rows=4, max_rows=8)).resize is None


def test_rows_shrink_only_to_half_or_less() -> None:
    assert plan(view(rows=4)).resize == 1
    assert plan(view(*running(*"abcde"), rows=8, max_rows=8)).resize is None
    assert plan(view(*running(*"abcd"), rows=8, max_rows=8)).resize == 4
    assert plan(view(*running("a"), *waiting("b", "c"), rows=8, max_rows=8)).resize == 3


def begun(seen: View) -> list[str]:
    return [chunk.query_id for chunk in plan(seen).prefill]


def test_what_begins_can_make_its_sure_progress_within_the_budget_in_the_order_of_arrival() -> None:
    """20 prompt tokens of a byte each, the token that the prefill draws, and 10 more that it may generate."""
    seen: dict[str, Any] = {"guaranteed_tokens": 10, "prefill_chunk": None}
    assert begun(view(*waiting("a", "b", "c", limit_tokens=50), bytes_budget=93, **seen)) == ["a", "b", "c"]
    assert begun(view(*waiting("a", "b", "c", limit_tokens=50), bytes_budget=92, **seen)) == ["a", "b"]
    assert begun(view(*waiting("a", "b", limit_tokens=5), bytes_budget=50, **seen)) == ["a", "b"], "25 at most each"
    large, small = query_view("large", prompt=100), query_view("small", prompt=1)
    assert begun(view(large, small, bytes_budget=60, **seen)) == []


def test_those_that_run_are_left_room_to_go_on_before_another_begins() -> None:
    runs = running("x", limit_tokens=100)  # 20 prompt tokens, 6 generated
    assert begun(view(*runs, *waiting("w"), bytes_budget=26 + 10 + 31, guaranteed_tokens=10)) == ["w"]
    assert begun(view(*runs, *waiting("w"), bytes_budget=26 + 10 + 30, guaranteed_tokens=10)) == []


def test_no_more_begin_than_budget_and_pool_are_expected_to_hold_to_their_ends() -> None:
    names = [f"w{i}" for i in range(4)]
    seen: dict[str, Any] = {"bytes_budget": 200, "guaranteed_tokens": 10, "max_rows": 8, "prefill_room": 9}
    four = waiting(*names, limit_tokens=80)  # each may come to 100 bytes
    assert begun(view(*four, swap_left=100, **seen)) == names[:3]
    assert begun(view(*four, swap_left=0, **seen)) == names[:2]
    assert begun(view(*four, swap_left=0, answer_share=0.25, **seen)) == names, "usually they end at 20 + 20"


def test_those_set_aside_come_back_before_any_other_begins() -> None:
    back, new = swapped_out("s", "t", limit_tokens=100), waiting("w")
    enough = view(*back, *new, bytes_budget=36 + 36 + 31, guaranteed_tokens=10, swap_left=500)
    assert (plan(enough).insert, begun(enough)) == (("s", "t"), ["w"])
    one = view(*back, *new, bytes_budget=36 + 35, guaranteed_tokens=10, swap_left=500)
    assert (plan(one).insert, begun(one)) == (("s",), [])
    none = view(*back, *new, *running("x", limit_tokens=100), bytes_budget=71, guaranteed_tokens=10, swap_left=500)
    assert (plan(none).insert, begun(none)) == ((), [])


def test_what_is_prefilled_already_is_inserted_while_those_set_aside_wait_for_memory() -> None:
    assert plan(view(*swapped_out("s"), *ready("r"), bytes_budget=60, swap_left=500)).insert == ("r",)


def test_fewer_rows_are_asked_for_where_fewer_may_be() -> None:
    assert plan(view(*running(*"abc"), *waiting("d"), rows=8, max_rows=3)).resize == 3
    assert plan(view(*running(*"abc"), *waiting("d"), rows=3, max_rows=2)).resize is None


def test_no_more_begin_than_the_prefiller_has_room_for() -> None:
    planned = plan(view(*waiting("a", "b", "c"), prefill_room=1))
    assert [chunk.query_id for chunk in planned.prefill] == ["a"]


def test_nobody_is_detached_or_forgotten() -> None:
    planned = plan(view(*running("a"), *ready("b"), *waiting("c")))
    assert (planned.detach, planned.forget) == ((), ())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    run=st.integers(0, 6),
    stand_ready=st.integers(0, 3),
    half=st.integers(0, 3),
    wait=st.integers(0, 6),
    max_rows=st.integers(1, 6),
    room=st.integers(0, 6),
    left=st.integers(0, 600),
    chunk=st.one_of(st.none(), st.integers(1, 60)),
)
def test_any_plan_can_be_carried_out(
    run: int, stand_ready: int, half: int, wait: int, max_rows: int, room: int, left: int, chunk: int | None
) -> None:
    run = min(run, max_rows)
    seen = view(
        *running(*(f"x{i}" for i in range(run))),
        *ready(*(f"r{i}" for i in range(stand_ready))),
        *prefilling(*(f"p{i}" for i in range(half))),
        *waiting(*(f"w{i}" for i in range(wait))),
        rows=max(run, 1),
        max_rows=max_rows,
        prefill_room=room,
        bytes_budget=left,
        prefill_chunk=chunk,
    )
    planned = plan(seen)
    rows = seen.rows if planned.resize is None else planned.resize
    fed = {c.query_id: c.tokens for c in planned.prefill}
    begun = [name for name in fed if name.startswith("w")]
    having = [*seen.in_rows, *(query for query in seen.waiting if query.id in begun)]
    assert run + len(planned.insert) <= rows <= max_rows
    assert len(begun) <= room
    assert sum(map(seen.committed, seen.in_rows)) > left or sum(map(seen.committed, having)) <= left
    assert all(tokens > 0 for tokens in fed.values())
    assert not run or sum(fed.values()) <= (chunk or SMALLEST_CHUNK)
    pending = {query.id: query.pending for query in (*seen.prefilling, *seen.waiting)}
    assert all(name.startswith("r") or fed.get(name) == pending[name] for name in planned.insert)
    # No row stays free while a query is ready for it.
    assert len(planned.insert) == rows - run or all(query.id in planned.insert for query in seen.ready)


@pytest.mark.parametrize(
    ("share", "tokens"),
    [(0.0, SMALLEST_CHUNK), (8 / 128, 10), (4 / 32, 5), (2 / 8, 2), (1 / 2, 1), (1.0, 1), (1 / 512, SMALLEST_CHUNK)],
)
def test_a_small_chunk_of_a_mixture_reads_at_most_half_of_its_experts(share: float, tokens: int) -> None:
    assert smallest_chunk(Costs(chosen_share=share)) == tokens
    dear = Costs(0.1, 1.0, fill_tokens=512, chosen_share=share, fill_experts_seconds=9.0)
    assert fed(view(*running("a"), *waiting("w"), costs=dear)) == [tokens]
