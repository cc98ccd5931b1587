"""A model that only torch can run is not run in a number format in which torch is slow here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baton.core.config import Config
from baton.core.settings import load_settings
from baton.loader import load as loading
from baton.loader import slow_dtype
from baton.loader.load import load
from baton.loader.oracle import Oracle
from baton.loader.slow_dtype import float32_gain
from checkpoints import edited, loaded_of
from families import model_of
from tiny_checkpoint import save_tiny

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was saved in bfloat16."""
    folder = tmp_path_factory.mktemp("models")
    return edited(
        save_tiny(folder / "float32"),
        folder / "bfloat16",
        lambda weights: {name: weight.bfloat16() for name, weight in weights.items()},
        dtype="bfloat16",
    )


@pytest.mark.parametrize(("gain", "dtype"), [(3.0, torch.float32), (1.1, torch.bfloat16), (0.0, torch.bfloat16)])
def test_it_is_widened_where_that_is_faster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, gain: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(loading, "float32_gain", lambda model: gain)
    loaded = loaded_of(folder, compile=False)
    assert loaded.dtype == loaded.model.dtype == dtype
    told = "computed in float32, for torch takes 3.0 times as long in bfloat16 here (--dtype bfloat16 keeps it)"
    assert (told in loaded.description) == (dtype is torch.float32)


def test_a_check_is_of_the_model_as_it_is_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "float32_gain", lambda model: 3.0)
    oracle = Oracle(answer=4, longest=20)
    loaded = load(load_settings(Config(device="cpu", compile=False), str(folder), "tiny"), before=oracle)
    assert loaded.dtype == torch.float32 and "3.0 times as long in bfloat16" in loaded.description
    once = Oracle(answer=4, longest=20)
    load(load_settings(Config(device="cpu", compile=False, dtype="float32"), str(folder), "tiny"), before=once)
    assert len(oracle.cases) == len(once.cases) and oracle.tolerance == once.tolerance
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(oracle.cases, once.cases, strict=True))


def test_what_was_asked_for_holds_and_native_steps_are_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "float32_gain", lambda model: 3.0)
    assert loaded_of(folder, compile=False, dtype="bfloat16").dtype == torch.bfloat16
    assert loaded_of(folder).dtype == torch.bfloat16


def test_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    assert float32_gain(model) == 0
    model.bfloat16()
    took = {torch.bfloat16: 6.0, torch.float32: 2.0}
    monkeypatch.setattr(slow_dtype, "_seconds", lambda weight: took[weight.dtype])
    assert float32_gain(model) == 3
    monkeypatch.setattr(slow_dtype, "free_bytes", lambda device: 1 << 20)
    assert float32_gain(model) == 0


def test_a_product_takes_some_time() -> None:
    assert slow_dtype._seconds(torch.ones(64, 32, dtype=torch.bfloat16)) > 0
