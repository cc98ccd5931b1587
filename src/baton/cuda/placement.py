"""Where prompts are computed fastest on this device: measured once for a model, on rows that hold nothing."""

from __future__ import annotations

import logging
import math
import statistics
import time

from baton.batch.rows import Rows
from baton.core.query import Query, SamplingParams
from baton.core.step import Feeding
from baton.cuda.decode_steps import BUCKETS
from baton.cuda.forward import CudaForward
from baton.cuda.prefill_stream import PrefillStreamStepper
from baton.kv.segment import KVSegment, arrived
from baton.model.execution import PrefillPlacement

log = logging.getLogger("baton.model")

# The measurement: so many tokens of a prompt beside steps, so many times, and once before.
_TOKENS, _TURNS = 512, 3
_MOST_STEPS = 64


def fastest(rows: Rows, stepper: PrefillStreamStepper, forward: CudaForward, batch: int) -> PrefillPlacement:
    """Measures where prompts are computed fastest; the forward keeps and reports the figures.

    The first `batch` rows decode.
    """
    if forward.gains is None:
        try:
            forward.gains = gains(rows, stepper, range(batch), range(batch, rows.rectangle.capacity))
        except Exception:
            log.warning("where prompts are computed fastest could not be measured", exc_info=True)
            forward.gains = {}
    return forward.placement


def gains(rows: Rows, stepper: PrefillStreamStepper, batch: range, prompts: range) -> dict[PrefillPlacement, float]:
    """How many times faster than after a step the same work is done elsewhere: part of a prompt, and some steps.

    Rows of `batch` decode, and the first of `prompts` is filled. Empty if rows are too short for it.
    """
    if rows.rectangle.columns < 2 * _MOST_STEPS:
        return {}
    ratios: dict[PrefillPlacement, list[float]] = {PrefillPlacement.SIDE_STREAM: [], PrefillPlacement.FUSED: []}
    for turn in range(1 + _TURNS):
        beside, steps = _timed(rows, stepper, batch, prompts, PrefillPlacement.SIDE_STREAM, 0)
        behind, fused = (
            _timed(rows, stepper, batch, prompts, how, steps)[0]
            for how in (PrefillPlacement.AFTER_DECODE, PrefillPlacement.FUSED)
        )
        if turn:
            ratios[PrefillPlacement.SIDE_STREAM].append(behind / beside)
            ratios[PrefillPlacement.FUSED].append(behind / fused)
    stepper.placement = PrefillPlacement.SIDE_STREAM
    return {how: statistics.median(values) for how, values in ratios.items()}


def _timed(
    rows: Rows, stepper: PrefillStreamStepper, batch: range, prompts: range, how: PrefillPlacement, steps: int
) -> tuple[float, int]:
    """Seconds and steps until the prompt is filled and at least so many steps are done.

    Seconds are infinite if the prompt was not filled within the most steps.
    """
    stepper.placement = how
    tokens = min(_TOKENS, rows.rectangle.columns - 1)
    decoding = {f"row {row}": 1 for row in batch[: BUCKETS[-1]]}
    try:
        for name in decoding:
            rows.place(_begun(name, 1, rows.stamp), batch)
        # From now on there is always a step that was begun ahead.
        rows.feed(decoding, Feeding.RAGGED)
        rows.place(_begun("prompt", tokens, rows.stamp), prompts)
        began, taken, filled = time.perf_counter(), 0, False
        while taken < steps or (not filled and taken < _MOST_STEPS):
            feed = decoding if filled else {**decoding, "prompt": tokens}
            filled = "prompt" in rows.feed(feed, Feeding.RAGGED).tokens or filled
            taken += 1
        return time.perf_counter() - began if filled else math.inf, taken
    finally:
        for name in [*rows.lens(batch), *rows.lens(prompts)]:
            rows.drop(name)
        stepper.reset()


def _begun(name: str, tokens: int, stamp: str) -> KVSegment:
    """A query for measuring."""
    params = SamplingParams(temperature=0, max_tokens=2 * _MOST_STEPS, ignore_eos=True)
    prompt, limit = (1,) * tokens, 2 * _MOST_STEPS
    return arrived(Query(id=name, prompt=prompt, params=params, seed=0, limit_tokens=limit, arrived=0.0), stamp)
