"""baton prefills ahead of the row that will be free, in chunks that bound the stall, and inserts at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.policy.baton import LARGEST_CHUNK, SMALLEST_CHUNK, Baton, chunk_tokens
from baton.policy.port import Costs
from baton.work import Chunk, Feeding
from views import BYTES, prefilling, ready, running, standing, view, waiting

plan = Baton().plan


def test_a_prompt_that_ends_within_the_chunk_is_inserted_in_the_same_iteration() -> None:
    found = plan(view(*waiting("a", "b"), rows=2))
    assert found.prefill == (Chunk("a", 20), Chunk("b", 20))
    assert found.insert == ("a", "b")
    assert (found.feed, found.how, found.hold_finished) == (1, Feeding.RAGGED, False)


def test_a_ready_query_takes_a_free_row_at_once() -> None:
    found = plan(view(*running("a", "b", "c"), *ready("r"), *waiting("w"), max_rows=4))
    assert found.insert == ("r",)


def test_without_a_free_row_one_query_is_made_ready_ahead_and_no_more() -> None:
    found = plan(view(*running("a", "b"), *waiting("c", "d"), rows=2, max_rows=2, prefill_chunk=100))
    assert found.prefill == (Chunk("c", 20),)
    assert found.insert == ()
    found = plan(view(*running("a", "b"), *ready("r"), *waiting("c", "d"), rows=2, max_rows=2, prefill_chunk=100))
    assert (found.prefill, found.insert) == ((), ())


def test_more_may_be_made_ready_ahead_where_asked() -> None:
    found = Baton(ready_ahead=2).plan(
        view(*running("a", "b"), *waiting("c", "d", "e"), rows=2, max_rows=2, prefill_chunk=100)
    )
    assert [chunk.query_id for chunk in found.prefill] == ["c", "d"]


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
    found = plan(view(*waiting("a", "b")))
    assert (found.fused, found.insert) == (False, ("a", "b"))


def test_a_prompt_longer_than_the_chunk_is_not_inserted_yet() -> None:
    found = plan(view(*running("a"), *waiting("w"), prefill_chunk=7))
    assert (found.prefill, found.insert) == ((Chunk("w", 7),), ())


def test_while_rows_run_no_more_is_prefilled_than_the_chunk() -> None:
    seen = view(*running("a"), *waiting(*"bcdefg"), max_rows=8, prefill_chunk=30)
    assert sum(chunk.tokens for chunk in plan(seen).prefill) == 30
    assert Baton(fused=False).plan(seen).insert == ("b",)


def test_while_nothing_runs_prefill_holds_up_nobody() -> None:
    seen = view(*waiting("a", prompt=2000), prefill_chunk=30)
    assert plan(seen).prefill == (Chunk("a", LARGEST_CHUNK),)


@pytest.mark.parametrize(
    ("cost", "stall", "tokens"),
    [
        (None, 0.2, SMALLEST_CHUNK),  # nothing measured yet
        (0.002, 0.2, 100),
        (0.002, 0.1, 50),
        (1.0, 0.2, SMALLEST_CHUNK),
        (1e-6, 0.2, LARGEST_CHUNK),
    ],
)
def test_a_chunk_is_what_the_stall_bound_affords_at_the_measured_cost(
    cost: float | None, stall: float, tokens: int
) -> None:
    seen = view(*running("a"), max_stall_seconds=stall, costs=Costs(fill_token_seconds=cost))
    assert chunk_tokens(seen) == tokens


def test_a_chunk_that_was_asked_for_holds_whatever_the_costs() -> None:
    seen = view(*running("a"), prefill_chunk=3, costs=Costs(fill_token_seconds=0.002))
    assert chunk_tokens(seen) == 3


def test_rows_grow_to_the_crowd_at_once_within_the_most() -> None:
    assert plan(view(*waiting("a", "b", "c"), rows=1, max_rows=8)).resize == 3
    assert plan(view(*waiting(*"abcdefghij"), rows=1, max_rows=8)).resize == 8
    assert plan(view(*running(*"abcd"), rows=4, max_rows=8)).resize is None


def test_rows_shrink_only_to_half_or_less() -> None:
    assert plan(view(rows=4)).resize == 1
    assert plan(view(*running(*"abcde"), rows=8, max_rows=8)).resize is None
    assert plan(view(*running(*"abcd"), rows=8, max_rows=8)).resize == 4
    assert plan(view(*running("a"), *waiting("b", "c"), rows=8, max_rows=8)).resize == 3


def test_what_begins_fits_the_byte_budget_in_the_order_of_arrival() -> None:
    found = plan(view(*waiting("a", "b", "c"), bytes_left=2 * BYTES))
    assert [chunk.query_id for chunk in found.prefill] == ["a", "b"]
    large, small = standing("large", bytes_reserved=100), standing("small", bytes_reserved=1)
    assert plan(view(large, small, bytes_left=50)).prefill == ()


def test_no_more_begin_than_the_prefiller_has_room_for() -> None:
    found = plan(view(*waiting("a", "b", "c"), prefill_room=1))
    assert [chunk.query_id for chunk in found.prefill] == ["a"]


def test_nobody_is_detached_or_forgotten() -> None:
    found = plan(view(*running("a"), *ready("b"), *waiting("c")))
    assert (found.detach, found.forget) == ((), ())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    run=st.integers(0, 6),
    stand_ready=st.integers(0, 3),
    half=st.integers(0, 3),
    wait=st.integers(0, 6),
    max_rows=st.integers(1, 6),
    room=st.integers(0, 6),
    left=st.integers(0, 6),
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
        bytes_left=left * BYTES,
        prefill_chunk=chunk,
    )
    found = plan(seen)
    rows = seen.rows if found.resize is None else found.resize
    fed = {c.query_id: c.tokens for c in found.prefill}
    begun = [name for name in fed if name.startswith("w")]
    assert run + len(found.insert) <= rows <= max_rows
    assert len(begun) <= min(room, left)
    assert all(tokens > 0 for tokens in fed.values())
    assert not run or sum(fed.values()) <= chunk_tokens(seen)
    pending = {query.id: query.pending for query in (*seen.prefilling, *seen.waiting)}
    assert all(name.startswith("r") or fed.get(name) == pending[name] for name in found.insert)
    # No row stays free while a query is ready for it.
    assert len(found.insert) == rows - run or all(query.id in found.insert for query in seen.ready)
