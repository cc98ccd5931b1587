"""A step that an earlier start proved is taken again only where it is the same step of the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from baton.core.files import user_cache
from baton.core.settings import cache_folder
from baton.loader import choose as chosen
from baton.loader import kept_steps
from baton.loader.choose import choose
from baton.loader.formats import FORMATS, PLAIN
from baton.loader.kept_steps import StaleSteps, StepCache
from baton.loader.loaded import Loaded
from baton.loader.selfcheck import our_logits, short_texts, stock_logits
from baton.native import library as native
from baton.native import written
from checkpoints import loaded_of
from families import model_of
from packed_checkpoints import gptq, save_packed
from packed_experts import save_mxfp4
from tiny_checkpoint import save_tiny

pytestmark = [pytest.mark.models, pytest.mark.skipif(native.best() is None, reason=native.describe())]

Recordings = list[PreTrainedModel]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    """The models whose steps were recorded."""
    models: Recordings = []
    record = chosen.record

    def counted(model: PreTrainedModel, *args: Any) -> Any:
        models.append(model)
        return record(model, *args)

    monkeypatch.setattr(chosen, "record", counted)
    return models


def logits_of(model: PreTrainedModel, folder: Path, format: str = "none", columns: int = 0) -> torch.Tensor:
    kind = FORMATS[format]
    choice = choose(model, format=kind, release=True, columns=columns, cache=StepCache(folder, model, kind, columns))
    return torch.cat(our_logits(model, choice.forward, short_texts(model)))


# Plain, windows and a softcap, sinks and experts, states, heads of states and attention, latents.
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss", "lfm2", "mamba2", "bamba", "qwen3_moe", "deepseek_v3"])
def test_a_kept_step_gives_the_same_bits(name: str, tmp_path: Path, recorded: Recordings) -> None:
    first = logits_of(model_of(name), tmp_path)
    assert len(recorded) == 1
    again = logits_of(model_of(name), tmp_path)
    assert len(recorded) == 1
    assert first.equal(again)


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_rounded_weights_too(format: str, tmp_path: Path, recorded: Recordings) -> None:
    first = logits_of(model_of("llama"), tmp_path, format)
    assert first.equal(logits_of(model_of("llama"), tmp_path, format))
    assert len(recorded) == 1


def test_other_formats_sizes_and_versions_have_their_own(
    tmp_path: Path, recorded: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for format, columns in (("none", 0), ("int8", 0), ("none", 64)):
        logits_of(model_of("llama"), tmp_path, format, columns)
    monkeypatch.setattr(kept_steps, "_source_digest", lambda: "another")
    logits_of(model_of("llama"), tmp_path)
    assert len(recorded) == len(list(tmp_path.iterdir())) == 4


def changed(model: PreTrainedModel) -> PreTrainedModel:
    """Another number where the digest of weights does not look."""
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight").detach().reshape(-1)
    looked = torch.linspace(0, weight.numel() - 1, 256, dtype=torch.float64).long().tolist()
    weight[next(at for at in range(weight.numel()) if at not in looked)] += 1.0
    return model


def test_weights_that_changed_unseen_are_proved_afresh(
    tmp_path: Path, recorded: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "SMALL_NUMBERS", 0)
    logits_of(model_of("llama"), tmp_path)
    path = next(tmp_path.iterdir())
    other = logits_of(changed(model_of("llama")), tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert len(recorded) == 2
    assert other.equal(logits_of(changed(model_of("llama")), tmp_path))
    assert len(recorded) == 2


@pytest.mark.parametrize("name", ["llama", "bamba", "deepseek_v3"])
def test_constants_of_other_weights_are_not_taken(
    name: str, tmp_path: Path, recorded: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with the norms of other weights would give the same bits again."""
    monkeypatch.setattr(kept_steps, "weights_digest", lambda model: "the sample sees no difference")
    logits_of(model_of(name), tmp_path)
    for number, changes in enumerate(("norm.weight", "kv_b_proj.weight"), start=2):
        model = model_of(name)
        found = [one for at, one in model.named_parameters() if at.endswith(changes)]
        if found:
            found[-1].detach().reshape(-1)[3] += 0.5
            expected = torch.cat(stock_logits(model, short_texts(model)))
            ours = logits_of(model, tmp_path)
            assert len(recorded) == number
            assert (ours - expected).abs().max() < 1e-3 * expected.abs().max()


def test_rounded_ones_that_changed_unseen_must_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "SMALL_NUMBERS", 0)
    logits_of(model_of("llama"), tmp_path, "int8")
    with pytest.raises(StaleSteps):
        logits_of(changed(model_of("llama")), tmp_path, "int8")
    assert not list(tmp_path.iterdir())


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_an_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def foreign(path: Path) -> None:
    path.write_text("something else")


@pytest.mark.parametrize("harm", [damaged, without_an_end, foreign])
def test_a_damaged_file_is_made_anew(harm: Callable[[Path], None], tmp_path: Path, recorded: Recordings) -> None:
    first = logits_of(model_of("llama"), tmp_path)
    path = next(tmp_path.iterdir())
    whole = path.read_bytes()
    harm(path)
    assert first.equal(logits_of(model_of("llama"), tmp_path))
    assert len(recorded) == 2
    assert path.read_bytes() == whole


def test_where_nothing_can_be_written_the_model_loads_all_the_same(tmp_path: Path, recorded: Recordings) -> None:
    (tmp_path / "file").write_text("no folder")
    logits_of(model_of("llama"), tmp_path / "file" / "steps")
    assert len(recorded) == 1


def test_code_of_a_model_folder_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    monkeypatch.setattr(type(model), "__module__", "transformers_modules.mine")
    logits_of(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_oldest_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_steps, "MOST_FILES", 1)
    logits_of(model_of("llama"), tmp_path)
    before = list(tmp_path.iterdir())
    logits_of(model_of("llama"), tmp_path, "int8")
    assert len(before) == len(list(tmp_path.iterdir())) == 1
    assert before != list(tmp_path.iterdir())


def loaded_twice(folder: Path, cache: Path, **settings: Any) -> tuple[Loaded, Loaded]:
    first, again = (loaded_of(folder, step_cache=str(cache), **settings) for _ in range(2))
    assert first.description == again.description
    assert first.choice.checked_tokens == again.choice.checked_tokens
    return first, again


@pytest.mark.parametrize("settings", [{}, {"quantize": "int8"}])
def test_a_folder_that_is_loaded_twice(settings: dict[str, Any], tmp_path: Path, recorded: Recordings) -> None:
    loaded_twice(save_tiny(tmp_path / "model"), tmp_path / "cache", **settings)
    assert len(recorded) == 1


@pytest.mark.parametrize("experts", [False, True])
def test_a_packed_checkpoint_that_is_loaded_twice(experts: bool, tmp_path: Path, recorded: Recordings) -> None:
    folder = tmp_path / "model"
    first, again = loaded_twice(save_mxfp4(folder) if experts else save_packed(folder, gptq()), tmp_path / "cache")
    assert len(recorded) == 1
    texts = short_texts(first.model)
    assert all(
        a.equal(b)
        for a, b in zip(
            our_logits(first.model, first.forward, texts), our_logits(again.model, again.forward, texts), strict=True
        )
    )


def test_stale_rounded_weights_are_read_again_by_the_loader(
    tmp_path: Path, recorded: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model")
    settings = {"step_cache": str(tmp_path / "cache"), "quantize": "int8"}
    loaded_of(folder, **settings)
    digest, seen = kept_steps._digest, []

    def other_at_first(logits: list[torch.Tensor]) -> str:
        seen.append(digest(logits))
        return "other" if len(seen) == 1 else seen[-1]

    monkeypatch.setattr(kept_steps, "_digest", other_at_first)
    loaded_of(folder, **settings)
    assert len(recorded) == 2


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr("baton.core.settings.user_cache", user_cache)
    assert cache_folder("auto", "steps") == Path("/caches/baton/steps")
    assert cache_folder("off", "steps") is None
    assert cache_folder("/mine", "steps") == Path("/mine")
    assert FORMATS["none"] is PLAIN
