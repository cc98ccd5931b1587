"""Views for policies under test, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from baton.core.footprint import Columns, Footprint
from baton.core.query import State
from baton.policy.port import GUARANTEED_TOKENS, Costs, Plan, QueryView, View

BYTES = 10
"""What each query view here reserves by default."""
BYTE_A_TOKEN = Footprint((Columns(1),))


def query_view(
    name: str, state: State = State.WAITING, *, prompt: int = 20, cached: int = 0, **changes: Any
) -> QueryView:
    values = {
        "generated": 0,
        "bytes_reserved": BYTES,
        "limit_tokens": 20,
        "arrived": 0.0,
        "priority": 0,
        "deadline": None,
        **changes,
    }
    return QueryView(
        id=name,
        state=state,
        prompt_tokens=prompt,
        cached=cached,
        **values,
    )


def waiting(*names: str, **changes: Any) -> list[QueryView]:
    return [query_view(name, State.WAITING, **changes) for name in names]


def prefilling(*names: str, cached: int = 5, **changes: Any) -> list[QueryView]:
    return [query_view(name, State.PREFILLING, cached=cached, **changes) for name in names]


def ready(*names: str, **changes: Any) -> list[QueryView]:
    return [query_view(name, State.READY, cached=20, **{"generated": 1, **changes}) for name in names]


def swapped_out(*names: str, **changes: Any) -> list[QueryView]:
    """Queries that were running and are kept outside all rows."""
    return [
        query_view(name, State.READY, cached=25, **{"generated": 6, "swapped_out": True, **changes}) for name in names
    ]


def running(*names: str, **changes: Any) -> list[QueryView]:
    return [query_view(name, State.RUNNING, cached=25, **{"generated": 6, **changes}) for name in names]


def view(
    *queries: QueryView,
    now: float = 0.0,
    rows: int = 4,
    max_rows: int = 4,
    held_rows: int = 0,
    prefill_room: int = 5,
    bytes_left: int = 1000,
    bytes_budget: int = 10**9,
    held_bytes: int = 0,
    swap_left: int = 10**9,
    footprint: Footprint = BYTE_A_TOKEN,
    guaranteed_tokens: int = GUARANTEED_TOKENS,
    answer_share: float = 1.0,
    whole_prompts: bool = False,
    prefill_chunk: int | None = None,
    max_stall_seconds: float = 0.2,
    costs: Costs | None = None,
) -> View:
    def of(state: State) -> Sequence[QueryView]:
        return tuple(query for query in queries if query.state is state)

    return View(
        now=now,
        rows=rows,
        max_rows=max_rows,
        held_rows=held_rows,
        prefill_room=prefill_room,
        bytes_left=bytes_left,
        prefill_chunk=prefill_chunk,
        max_stall_seconds=max_stall_seconds,
        costs=costs or Costs(),
        waiting=of(State.WAITING),
        prefilling=of(State.PREFILLING),
        ready=of(State.READY),
        running=of(State.RUNNING),
        footprint=footprint,
        bytes_budget=bytes_budget,
        swap_left=swap_left,
        held_bytes=held_bytes,
        guaranteed_tokens=guaranteed_tokens,
        answer_share=answer_share,
        whole_prompts=whole_prompts,
    )


# Any view

some = st.lists(
    st.builds(
        lambda state, priority, user, swapped_out, waited, pending: (
            state,
            priority,
            user,
            swapped_out,
            waited,
            pending,
        ),
        st.sampled_from([State.WAITING, State.PREFILLING, State.READY, State.RUNNING]),
        st.integers(0, 3),
        st.sampled_from(["", "a", "b"]),
        st.booleans(),
        st.integers(0, 9),
        st.integers(1, 40),
    ),
    max_size=14,
)


def random_queries(drawn: list[tuple[Any, ...]]) -> list[QueryView]:
    """The queries that were drawn from `some`."""
    queries = []
    for at, (state, priority, user, swapped_out, waited, pending) in enumerate(drawn):
        begun = state in (State.READY, State.RUNNING)
        queries.append(
            query_view(
                f"q{at}",
                state,
                prompt=40,
                cached=40 if begun else 40 - pending,
                generated=1 if begun else 0,
                priority=priority,
                user=user,
                swapped_out=swapped_out and state is State.READY,
                arrived=-float(waited),
            )
        )
    return queries


def check_carried_out(seen: View, plan: Plan, *, paced: bool = False) -> None:
    """Every verb of the plan is one that the batch and the prefiller do not refuse; `paced`: rows may stay free."""
    by_id = {query.id: query for query in [*seen.running, *seen.ready, *seen.prefilling, *seen.waiting]}
    rows = seen.rows if plan.resize is None else plan.resize
    staying = len(seen.running) - len(plan.detach)
    assert staying + len(plan.insert) <= rows
    assert rows >= staying
    assert len(set(plan.insert)) == len(plan.insert)
    assert all(by_id[name].state is State.RUNNING for name in plan.detach)
    fed = {chunk.query_id: chunk.tokens for chunk in plan.prefill}
    begun = [name for name in fed if by_id[name].state is State.WAITING]
    assert len(begun) <= seen.prefill_room
    assert all(0 < tokens <= by_id[name].pending for name, tokens in fed.items())
    assert not set(plan.forget) & (set(fed) | set(plan.insert) | set(plan.detach))
    for name in plan.insert:
        assert by_id[name].state is State.READY or fed[name] == by_id[name].pending
    # Else no row stays free while one that keeps its memory is ready for it.
    lent = [query.id for query in seen.ready if not query.swapped_out and query.id not in plan.forget]
    assert paced or staying + len(plan.insert) == min(rows, seen.max_rows) or set(lent) <= set(plan.insert)
