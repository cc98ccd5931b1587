"""What the machine reads a second, and what a step of a model reads of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baton.cli.live import machine_of, read_bytes_per_second
from baton.core.footprint import Columns, Footprint
from baton.loader.formats import FORMATS

FOOTPRINT = Footprint((Columns(token_bytes=64, count=4),))


def loaded_of(device: str = "cpu", eight_bits: bool = False, **config: Any) -> Any:
    settings = SimpleNamespace(**{"tie_word_embeddings": True, "vocab_size": 100, "hidden_size": 8, **config})
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: settings))
    facts = {
        "model": model,
        "device": torch.device(device),
        "dtype": torch.bfloat16,
        "format": FORMATS["int8" if eight_bits else "none"],
    }
    return SimpleNamespace(parameters=5000, **facts)


def test_memory_is_read_at_some_speed_that_is_one() -> None:
    assert 1e8 < read_bytes_per_second() < 1e13


@pytest.mark.parametrize(
    ("loaded", "weights", "read"),
    [
        (loaded_of(), 10_000, 1e9),
        (loaded_of(eight_bits=True), 5000, 1e9),
        (loaded_of(tie_word_embeddings=False), 8400, 1e9),
        (loaded_of(device="meta"), 10_000, 0.0),
        (loaded_of(num_local_experts=8), 10_000, 0.0),
        (loaded_of(num_experts=None), 10_000, 1e9),
    ],
    ids=["tied", "int8", "input apart", "other device", "experts", "no experts"],
)
def test_what_a_step_reads(loaded: Any, weights: int, read: float) -> None:
    machine = machine_of(loaded, FOOTPRINT, 1e9)
    assert (machine.weight_bytes, machine.kv_token_bytes, machine.read_bytes) == (weights, 256, read)
