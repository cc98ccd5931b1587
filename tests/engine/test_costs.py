"""What is measured is what it costs; and with it rows that run are held up no longer than the bound."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest

from baton.core.events import Event, IterationDone
from baton.core.query import State
from baton.engine.costs import AnswerMeter, CostMeter
from baton.policy.baton import SMALLEST_CHUNK, Baton
from baton.testing.clock import ManualClock
from random_batch import query_of
from toy import prompt_of, toy_alone, toy_batch
from turns import accept, done, turn

Cost = Callable[[int, float], float]
"""Seconds of a fill, by its tokens and the sum of columns that each attends to."""


def measured(cost: Cost, fills: list[tuple[int, int]], noise: random.Random | None = None) -> CostMeter:
    """A meter that saw these fills: tokens, and how many were cached before."""
    meter = CostMeter()
    for tokens, cached in fills:
        columns = tokens * (cached + tokens / 2)
        meter.filled(tokens, columns, cost(tokens, columns) * (noise.uniform(0.95, 1.05) if noise else 1.0))
    return meter


def linear(tokens: int, columns: float) -> float:
    return 0.01 + 0.001 * tokens + 1e-6 * columns


FILLS = [(tokens, cached) for tokens in (16, 40, 100, 200) for cached in (0, 500, 3000, 9000)]


def test_nothing_is_known_before_the_first_measurement() -> None:
    costs = CostMeter().costs
    assert (costs.step_seconds, costs.fill_token_seconds, costs.fill_tokens) == (None, None, 0)


def test_the_parts_of_a_fills_cost_are_told_apart() -> None:
    costs = measured(linear, FILLS).costs
    assert costs.fill_fixed_seconds == pytest.approx(0.01, rel=0.05)
    assert costs.fill_token_seconds == pytest.approx(0.001, rel=0.05)
    assert costs.fill_column_seconds == pytest.approx(1e-6, rel=0.05)
    assert costs.fill_tokens == 200


@pytest.mark.parametrize("seed", range(5))
def test_what_is_told_is_on_the_high_side(seed: int) -> None:
    dice = random.Random(seed)
    fills = [(dice.randint(16, 200), dice.randint(0, 4000)) for _ in range(48)]
    costs = measured(linear, fills, dice).costs
    told = [costs.fill_fixed_seconds + costs.chunk_seconds(tokens, cached) for tokens, cached in fills]
    real = [linear(tokens, tokens * (cached + tokens / 2)) for tokens, cached in fills]
    assert sum(t >= 0.95 * r for t, r in zip(told, real, strict=True)) >= 0.85 * len(fills)
    assert all(t <= 1.25 * r for t, r in zip(told, real, strict=True))


def test_experts_cost_as_many_as_are_chosen() -> None:
    """A mixture reads most of its experts for few tokens, and hardly more for many."""
    share, meter = 1 / 16, CostMeter(1 / 16)
    for tokens, cached in [*FILLS, (4, 0), (4, 3000)]:
        columns = tokens * (cached + tokens / 2)
        meter.filled(tokens, columns, linear(tokens, columns) + 0.4 * (1 - (1 - share) ** tokens))
    costs = meter.costs
    for tokens in (4, 10, 60, 200):
        expected = linear(tokens, tokens * tokens / 2) + 0.4 * (1 - (1 - share) ** tokens)
        told = costs.fill_fixed_seconds + costs.chunk_seconds(tokens, 0)
        assert told == pytest.approx(expected, rel=0.1)
    # What a chunk adds beside others is less by the experts that those read already.
    both = costs.chunk_seconds(10, 0) + costs.chunk_seconds(20, 0, beside=10)
    assert both == pytest.approx(costs.chunk_seconds(30, 0), rel=0.02)
    for beside in (0, 7):
        most = costs.tokens_within(0.2, 100, beside)
        assert costs.chunk_seconds(most, 100, beside) <= 0.2 < costs.chunk_seconds(most + 1, 100, beside)


def test_one_hiccup_does_not_spoil_it() -> None:
    meter = measured(linear, FILLS)
    meter.filled(100, 5000.0, 9.0)
    costs = meter.costs
    assert costs.fill_fixed_seconds + costs.chunk_seconds(100, 500) <= 1.5 * linear(100, 100 * 550)


def test_old_measurements_are_forgotten() -> None:
    meter = measured(linear, FILLS * 3)
    for tokens, cached in FILLS * 3:
        meter.filled(tokens, tokens * (cached + tokens / 2), 10 * linear(tokens, tokens * (cached + tokens / 2)))
    assert meter.costs.fill_token_seconds == pytest.approx(0.01, rel=0.05)


def test_a_steps_cost_moves_with_the_measurements() -> None:
    meter = CostMeter()
    meter.stepped(1.0, rows=2)
    assert meter.costs.step_seconds == 1.0
    meter.stepped(2.0, rows=3)
    assert meter.costs.step_seconds == pytest.approx(1.1)
    assert meter.costs.step_seconds_by_rows == ((2, 1.0), (3, 2.0))


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.3, 2.0])
@pytest.mark.parametrize("cached", [0, 7000])
def test_the_largest_chunk_within_so_many_seconds(seconds: float, cached: int) -> None:
    for columns in (0.0, 1e-6):
        costs = measured(lambda tokens, all_columns, b=columns: 0.001 * tokens + b * all_columns, FILLS).costs
        tokens = costs.tokens_within(seconds, cached)
        assert costs.chunk_seconds(tokens, cached) <= seconds + 1e-9
        assert costs.chunk_seconds(tokens + 1, cached) > seconds - 1e-9


def test_how_much_queries_generate_of_what_they_might_is_all_until_enough_have_finished() -> None:
    meter = AnswerMeter()
    for _ in range(15):
        meter.finished(10, 100)
    assert meter.share == 1.0
    meter.finished(50, 100)
    assert meter.share == 0.1
    for _ in range(5):
        meter.finished(80, 100)
    assert meter.share == 0.8


# One decodes, others attack with the longest prompts

BOUND = 0.2
STEP = 0.03


def attacked(cost: Cost, *, fused: bool, bound: float = BOUND) -> tuple[list[float], list[IterationDone], Any]:
    """The victim's gaps between tokens while prompts as long as may be come in, one after the other."""
    clock, told, heard = ManualClock(), list[Event](), list[float]()
    batch = toy_batch(
        Baton(fused=fused),
        clock=clock,
        sinks=[told.append],
        max_model_len=1000,
        kv_bytes=2**30,
        prefill_chunk=None,
        max_stall_seconds=bound,
    )
    forward = batch.engine.batch._rows.feeder.forward  # type: ignore[attr-defined]

    def costing(run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(rectangle: Any, spans: Any, tokens: Any) -> Any:
            fills = [span for span in spans if span.row >= batch.engine.settings.max_rows]
            if len(fills) < len(spans):
                clock.advance(STEP)
            if fills:
                columns = sum(span.count * (span.start + span.count / 2) for span in fills)
                clock.advance(cost(sum(span.count for span in fills), columns))
            return run(rectangle, spans, tokens)

        return timed

    for name in ("decode", "fill"):
        setattr(forward, name, costing(getattr(forward, name)))
    victim = query_of("victim", prompt_of(4), 400)
    accept(batch, victim)
    for turned in range(300):
        if turned >= 3 and batch.engine.lifecycle.count(State.WAITING) < 2:
            accept(batch, query_of(f"attacker{turned}", prompt_of(990, turned), 3))
        before = len(batch.tokens("victim"))
        turn(batch)
        heard += [clock()] * (len(batch.tokens("victim")) - before)
    assert batch.tokens("victim") == toy_alone(victim)[: len(batch.tokens("victim"))]
    assert len(heard) > 290
    gaps = [later - earlier for earlier, later in itertools.pairwise(heard)]
    return gaps, done(told), batch


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "cost",
    [
        lambda tokens, columns: 0.001 * tokens,
        lambda tokens, columns: 0.02 + 0.0005 * tokens + 5e-6 * columns,
        lambda tokens, columns: 0.0001 * tokens + 1e-5 * columns,
        lambda tokens, columns: 0.005 * tokens,
    ],
    ids=["tokens", "all", "columns", "dear"],
)
def test_who_decodes_waits_no_longer_than_the_bound_and_a_step_while_others_attack(cost: Cost, fused: bool) -> None:
    gaps, iterations, batch = attacked(cost, fused=fused)
    assert max(gaps) <= BOUND + STEP + 1e-9
    # And prefill gets what the bound leaves: most of it, once the costs are known.
    late = [event.prefilled_tokens for event in iterations[100:] if event.prefilled_tokens]
    assert sum(late) / len(late) >= SMALLEST_CHUNK
    stalls = [event.stall_seconds.get("prefill", 0.0) for event in iterations[100:] if event.prefilled_tokens > 30]
    assert sum(stalls) / len(stalls) > 0.5 * BOUND
    assert batch.engine.lifecycle.ended[State.FINISHED] >= 3, "the attackers' prompts are answered, too"


def test_prefill_makes_its_least_progress_whatever_it_costs() -> None:
    _, iterations, _ = attacked(lambda tokens, columns: 1.0 * tokens, fused=True, bound=0.001)
    fed = [event.prefilled_tokens for event in iterations[5:]]
    assert set(fed) == {SMALLEST_CHUNK}, "no more, and in every iteration"
