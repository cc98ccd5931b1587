"""Engines put together from settings: what cannot be honoured is refused by name."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from baton.compose import make_engine, open_engine
from baton.core.config import Config
from baton.core.errors import LoadError, SettingError
from baton.core.settings import load_settings, resolve
from baton.cuda.mapped_rectangle import MappedRectangle
from baton.loader.facts import facts_of
from baton.loader.load import load
from baton.loader.loaded import Loaded
from baton.measure.contenders import Contender
from baton.measure.trials import settings_of
from baton.policy.baton import Baton
from baton.testing.host_driver import HostDriver
from families import model_of
from random_batch import query_of
from tiny_checkpoint import save_tokenizer


def loaded(name: str, folder: Path, config: Config) -> Loaded:
    model_of(name).save_pretrained(folder)
    save_tokenizer(folder)
    return load(load_settings(config, str(folder), "tiny"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"policy": "orca"}, "selective batching aligns no rows"),
        ({"deterministic": True}, "--deterministic's must not"),
    ],
)
def test_what_aligned_rows_cannot_be_combined_with_is_refused(more: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refused:
        open_engine(Config(device="cpu", threads="1", shaping="aligned", **more))
    assert refused.value.param == "shaping"


def test_int8_weights_and_aligned_rows_exclude_each_other() -> None:
    with pytest.raises(SettingError, match="int8 needs native steps: leave out --shaping aligned"):
        open_engine(Config(device="cpu", threads="1", shaping="aligned", quantize="int8"))


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


@pytest.mark.skipif(sys.platform != "linux", reason="needs mprotect")
def test_an_engine_whose_memory_is_mapped_counts_the_pages_that_its_rows_have(tmp_path: Path) -> None:
    config = Config(device="cpu", threads="1", compile=False, kv_mapping=True, prefix_cache=False)
    model = loaded("llama", tmp_path, config)
    assert model.driver is None and "no such calls" in model.why_not_mapped
    driver = HostDriver(pages=1000)
    model = dataclasses.replace(model, driver=driver)
    settings = resolve(config, facts_of(model))
    engine = make_engine(model, settings, Baton())
    rectangle = engine.prefiller.rectangle  # type: ignore[attr-defined]
    assert isinstance(rectangle, MappedRectangle) and settings.kv_mapping
    heard: list[int] = []
    engine.accept(query_of("a", range(3, 80), 5), lambda updates: heard.extend(t for u in updates for t in u.token_ids))
    used = 0
    while engine.busy:
        engine.iterate()
        engine.flush()
        used = max(used, engine.kv_bytes_used)
    assert len(heard) == 5
    # The prompt's row and the batch's, which is the first and keeps its first page.
    assert used == engine.batch.footprint.of(81)  # type: ignore[attr-defined]
    assert (1000 - driver.left) * rectangle.footprint.page == 2 * used
    assert rectangle.spare_bytes == 2 * used - rectangle.footprint.page
