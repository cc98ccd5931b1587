"""The cost of iterations from a run's events; the numbers themselves depend on the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baton import builtin
from baton.core.config import make_config
from baton.core.errors import CheckFailed
from baton.core.events import IterationDone, QueryEnded, Slots, Usage
from baton.core.query import State
from baton.core.settings import load_settings, resolve
from baton.kv.rectangle import footprint
from baton.loader.facts import facts_of
from baton.loader.load import load
from baton.measure.calibrate import Calibration, Turn, Turns

ITERATION = IterationDone(
    index=0,
    time=0.0,
    seconds=0.0,
    kind="decode",
    why="",
    rows=2,
    occupied=2,
    columns=0,
    slots=Slots(),
    generated_tokens=0,
    prefilled_tokens=0,
    inserted=(),
    detached=(),
    resized_to=None,
    waiting=0,
    prefilling=0,
    ready=0,
    preempted=0,
    kv_bytes_used=0,
    step_seconds=0.0,
)
USAGE = Usage(8, 3, 10, 0, 0.0, 0.0, 0.0, 0.0, 0)


def test_what_each_iteration_held_is_heard_of_events() -> None:
    turns = Turns()
    for event in (
        replace(ITERATION, time=5.0, fed={"a": 8, "b": 8}),
        replace(ITERATION, time=5.5, fed={"a": 1, "b": 1}),
        QueryEnded(5.9, "b", State.FINISHED, "length", USAGE, 1.0, ()),
        replace(ITERATION, time=6.0, fed={"a": 1, "b": 1}),
        # b's row is held: it is computed, and reads what it has.
        replace(ITERATION, time=6.25, fed={"a": 1}, slots=Slots(finished_row=1)),
        replace(ITERATION, time=6.5, fed={"a": 1}, slots=Slots(finished_row=1)),
        replace(ITERATION, time=8.0, fed={"a": 1, "c": 16}),
    ):
        turns(event)
    assert turns.turns == [
        Turn(0.5, (1, 1), 2, 9 + 9, ended=False, after_end=False),
        Turn(0.5, (1, 1), 2, 10 + 10, ended=True, after_end=False),
        Turn(0.25, (1, 1), 1, 11 + 10, ended=False, after_end=True),
        Turn(0.25, (1, 1), 1, 12 + 10, ended=False, after_end=False),
        Turn(1.5, (1, 16), 2, 13, ended=False, after_end=False),
    ]
    assert [turn.is_step for turn in turns.turns] == [True, False, False, True, False]
    assert turns.turns[-1].prompts == (16,)


def test_a_pass_measures_everything_and_leaves_the_model_to_others() -> None:
    config = make_config({"max_model_len": 128, "max_batch_size": 3})
    loaded = load(load_settings(config, str(builtin.path()), "m"))
    settings = resolve(config, facts_of(loaded))
    calibration = Calibration(loaded, settings)
    for _ in range(2):
        one_pass = calibration.measure()
        assert [rows for rows, _ in one_pass.decode] == [1, 2, 3]
        assert [slots for slots, _ in one_pass.fill] == [16, 32, 64]
    costs = calibration.costs()
    # On a busy machine the measured cost of a row may be so high that nothing is left for its forward.
    assert min(costs.step(rows, 8) for rows in (1, 2, 3)) > 0 and min(costs.chunk(size, 0) for size in (16, 64)) > 0
    assert min(costs.column_seconds, costs.pair_seconds, costs.token_seconds, costs.query_seconds) >= 0
    one_row = footprint(loaded.geometry.shapes, 64, loaded.dtype, loaded.device).of(64)
    with pytest.raises(CheckFailed, match="kv-memory"):
        Calibration(loaded, replace(settings, max_model_len=64, kv_bytes=one_row)).measure()
