"""An engine's counters and memory, read between two iterations."""

from __future__ import annotations

from baton.core.query import State
from baton.engine.engine import Engine
from baton.engine.port import Stats


def stats_of(engine: Engine) -> Stats:
    """Returns what the engine counts, as of now. Its age is the loop's to tell."""
    lifecycle, totals = engine.lifecycle, engine.totals
    slots = type(totals.slots)()
    slots.add(totals.slots)
    return Stats(
        running=lifecycle.count(State.RUNNING),
        waiting=lifecycle.count(State.WAITING),
        prefilling=lifecycle.count(State.PREFILLING),
        ready=lifecycle.count(State.READY),
        preempted=lifecycle.preempted,
        rows=engine.batch.rows,
        rows_occupied=len(engine.batch.lens),
        columns=engine.batch.columns,
        kv_bytes_used=engine.kv_bytes_used,
        kv_bytes_budget=engine.budget.rows_bytes,
        iterations=totals.iterations,
        prompt_tokens=totals.prompt_tokens,
        generated_tokens=totals.generated_tokens,
        insertions=totals.insertions,
        preemptions=lifecycle.preemptions,
        slots=slots,
        outcomes={state.value: count for state, count in lifecycle.ended.items()},
        last_iteration_age_seconds=0.0,
        swap_bytes_used=engine.swap_bytes_used,
        swap_bytes_budget=engine.budget.swap_bytes,
        prefix_bytes_used=engine.queries.prefixes.bytes_used,
        prefix_cached_tokens=lifecycle.prefix_cached_tokens,
        submitted=lifecycle.submitted,
        costs=engine.costs,
    )
