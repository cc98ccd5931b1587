"""A minute of a batch in a timeline: what tests show the live page and `baton top`."""

from __future__ import annotations

from baton.core.clock import Clock, monotonic
from baton.core.events import Slots
from baton.core.query import State
from baton.engine.client import Stats
from baton.observe.bottleneck import Machine
from baton.observe.live import Live
from baton.observe.timeline import Timeline
from observe.test_metrics import STATS, ended, iteration
from observe.test_metrics import moved_at as moved

ROWS = 4
SIGHT: Stats = STATS


def beat(timeline: Timeline, now: float, *, occupied: int = 2, waiting: int = 4) -> None:
    """An iteration of three useful slots, and one of a row that is done."""
    slots = Slots(useful=3, finished_row=1)
    told = {"slots": slots, "generated_tokens": 3, "fed": {"q-1": 1}, "kv_bytes_used": 400, "kv_bytes_budget": 1000}
    timeline(iteration(time=now, seconds=0.05, rows=ROWS, occupied=occupied, waiting=waiting, **told))


def told(timeline: Timeline, now: float) -> None:
    """Twenty seconds: row 1 runs all the time, row 2 was preempted, row 3 is done and held, row 4 is empty."""
    moves = [
        (now - 20, "q-1", State.WAITING, State.PREFILLING),
        (now - 19, "q-1", State.PREFILLING, State.READY),
        (now - 19, "q-1", State.READY, State.RUNNING),
        (now - 18, "q-2", State.READY, State.RUNNING),
        (now - 18, "q-3", State.READY, State.RUNNING),
        (now - 9, "q-2", State.RUNNING, State.READY),
        (now - 8, "q-3", State.RUNNING, State.FINISHED),
    ]
    for step in range(200):
        time = now - 20 + step / 10
        while moves and moves[0][0] <= time:
            timeline(moved(*moves.pop(0)))
        beat(timeline, time, occupied=3 if step < 110 else 2, waiting=step % 7)
    timeline(ended(time=now - 1))


def live_of(clock: Clock = monotonic, *, max_rows: int = ROWS) -> Live:
    """A live view with that history behind it."""
    timeline = Timeline()
    told(timeline, clock())
    about = {"policy": "baton", "device": "cpu", "dtype": "float32"}
    return Live(timeline, clock, model_name="lab/letters", machine=Machine(0, 0, 0), max_rows=max_rows, settings=about)
