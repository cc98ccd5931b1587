"""Rows that are swapped instead of copied, in torch: every query gives what it gives alone."""

from __future__ import annotations

import random

import pytest
import torch

from baton.kv.rectangle import Rectangle
from baton.loader.choose import choose
from baton.model.forward import TorchForward
from baton.model.visibility import Span
from baton.policy.table import POLICIES
from families import model_of
from random_batch import RandomBatch, Shaken, alone, random_batch, some_queries

# Every way of running a model: rings, experts, states, latents, its own attention, recomputation.
FAMILIES = ("llama", "gemma3", "qwen3_moe", "mamba", "jamba", "deepseek_v3", "bloom", "phi3_longrope", "gpt_oss")
CASES = [*((family, "baton", False) for family in FAMILIES), ("llama", "run_to_completion", False)]
CASES += [("gemma3", "orca", False), ("llama", "baton", True), ("mistral_window", "priority", True)]


def batch_that_exchanges(family: str, policy: str, ahead: bool) -> tuple[RandomBatch, dict[str, list[int]]]:
    queries = some_queries(9, random.Random(3))
    expected = {query.id: alone(family, query)[0] for query in queries}
    dice = random.Random(f"{family} {policy}")
    batch = random_batch(model_of(family), Shaken(POLICIES[policy](), dice), native=False, ahead=ahead)
    batch.run(queries, dice)
    return batch, expected


@pytest.mark.parametrize(("family", "policy", "ahead"), CASES)
def test_exchanged_rows_give_what_each_query_gives_alone(
    family: str, policy: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Rectangle.write
    monkeypatch.setattr(TorchForward, "swaps_rows", True)
    monkeypatch.setattr(Rectangle, "move", None)
    monkeypatch.setattr(Rectangle, "write", lambda self, row, *more: (written.append(row), write(self, row, *more)))
    batch, expected = batch_that_exchanges(family, policy, ahead)
    assert {name: batch.tokens(name) for name in expected} == expected
    assert batch.rows is not None
    row_slots = batch.rows.rectangle.row_slots
    assert sorted(row_slots) == [*range(len(row_slots))] != row_slots
    # Only rows that were swapped out come by a copy, into the batch's rows.
    assert max(written, default=0) < 4


def test_the_comparison_notices_rows_that_are_found_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchForward, "swaps_rows", True)
    monkeypatch.setattr("baton.model.forward._placed", lambda rectangle, spans: spans)
    batch, expected = batch_that_exchanges("llama", "baton", False)
    assert {name: batch.tokens(name) for name in expected} != expected


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rows_out_of_order_are_attended_each_to_its_own(family: str) -> None:
    """As many as there are, in one masked call, but not in the order in which they lie."""
    forward = choose(model_of(family), native=False).forward
    of = {"capacity": 2, "columns": 40, "dtype": torch.float32, "device": torch.device("cpu")}
    rectangle = Rectangle(forward.geometry.shapes, **of)  # type: ignore[arg-type]
    texts = [list(range(5, 17)), list(range(30, 40))]
    _, ran = forward.fill(
        rectangle, [Span(row, 0, len(text)) for row, text in enumerate(texts)], [*texts[0], *texts[1]]
    )
    ran.commit()
    expected, ran = forward.decode(rectangle, [Span(row, len(text), 1) for row, text in enumerate(texts)], [3, 4])
    assert ran.columns_read == 2 * 13
    rectangle.swap_rows(0, 1)
    exchanged = [Span(row, len(text), 1) for row, text in enumerate(reversed(texts))]
    assert torch.equal(forward.decode(rectangle, exchanged, [4, 3])[0], expected.flip(0))
