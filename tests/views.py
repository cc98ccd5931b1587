"""Views for policies under test, without an engine."""

from __future__ import annotations

from collections.abc import Sequence

from baton.policy.port import Costs, Standing, View
from baton.query import State

BYTES = 10
"""What each standing here reserves, unless told."""


def standing(name: str, state: State = State.WAITING, *, prompt: int = 20, cached: int = 0, **changes: int) -> Standing:
    values = {"generated": 0, "bytes_reserved": BYTES, "limit_tokens": 20, **changes}
    return Standing(
        id=name,
        state=state,
        prompt_tokens=prompt,
        cached=cached,
        waited_seconds=0.0,
        priority=0,
        deadline=None,
        **values,
    )


def waiting(*names: str, **changes: int) -> list[Standing]:
    return [standing(name, State.WAITING, **changes) for name in names]


def prefilling(*names: str, cached: int = 5, **changes: int) -> list[Standing]:
    return [standing(name, State.PREFILLING, cached=cached, **changes) for name in names]


def ready(*names: str) -> list[Standing]:
    return [standing(name, State.READY, cached=20, generated=1) for name in names]


def running(*names: str) -> list[Standing]:
    return [standing(name, State.RUNNING, cached=25, generated=6) for name in names]


def view(
    *queries: Standing,
    rows: int = 4,
    max_rows: int = 4,
    held_rows: int = 0,
    prefill_room: int = 5,
    bytes_left: int = 1000,
    prefill_chunk: int | None = None,
    max_stall_seconds: float = 0.2,
    costs: Costs | None = None,
) -> View:
    def of(state: State) -> Sequence[Standing]:
        return tuple(query for query in queries if query.state is state)

    return View(
        now=0.0,
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
    )
