"""Engines put together from settings: what cannot be honoured is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.compose import facts_of, make_engine, open_house
from baton.config import Config
from baton.errors import LoadError, SettingError
from baton.model.load import Loaded, load
from baton.policy.baton import Baton
from baton.trials import Contender, settings_of
from families import model_of
from saved import save_tokenizer


def loaded(name: str, folder: Path, config: Config) -> Loaded:
    model_of(name).save_pretrained(folder)
    save_tokenizer(folder)
    return load(config, str(folder), "tiny")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"policy": "orca"}, "selective batching aligns no rows"),
        ({"deterministic": True}, "--deterministic's must not"),
    ],
)
def test_what_aligned_rows_cannot_be_combined_with_is_refused(more: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        open_house(Config(device="cpu", threads="1", shaping="aligned", **more))
    assert refused.value.param == "shaping"


def test_int8_weights_and_aligned_rows_exclude_each_other() -> None:
    with pytest.raises(LoadError, match="int8 needs native steps: leave out --shaping aligned"):
        open_house(Config(device="cpu", threads="1", shaping="aligned", quantize="int8"))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("llama", Config(device="cpu", threads="1"), "needs steps in torch: add --no-compile"),
        ("mamba2", Config(device="cpu", threads="1", compile=False), "rows cannot be aligned"),
        ("bloom", Config(device="cpu", threads="1", compile=False), "rows cannot be aligned"),
    ],
)
def test_a_model_whose_rows_cannot_be_aligned_is_refused_with_the_reason(
    family: str, config: Config, message: str, tmp_path: Path
) -> None:
    model = loaded(family, tmp_path, config)
    settings = settings_of(config, model, Contender("aligned", {"shaping": "aligned"}))
    with pytest.raises(LoadError, match=f"--shaping aligned: .*{message}"):
        make_engine(model, settings, Baton())


def test_a_budget_that_holds_no_aligned_row_is_refused(tmp_path: Path) -> None:
    """A row takes all its columns, and some to spare, however few tokens it holds."""
    config = Config(device="cpu", threads="1", max_model_len="64", compile=False)
    model = loaded("llama", tmp_path, config)
    held = {"kv_memory": str(facts_of(model).footprint.of(64))}
    settings_of(config, model, Contender("ragged", held))
    with pytest.raises(SettingError, match="cannot hold one query of 64 tokens"):
        settings_of(config, model, Contender("aligned", {"shaping": "aligned", **held}))
