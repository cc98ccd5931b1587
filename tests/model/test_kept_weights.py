"""Weights that an earlier start quantised are mapped, where they are those of this model, and else made anew."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from baton.loader.loaded import Loaded
from baton.loader.selfcheck import check_texts, our_logits
from baton.native import library as native
from baton.native import structs
from baton.native.packing import Packing
from checkpoints import edited, loaded_of
from tiny_checkpoint import save_tiny

pytestmark = [pytest.mark.models, pytest.mark.skipif(native.best() is None, reason=native.describe())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was packed."""
    pack, shapes = Packing.pack, list[Any]()

    def counted(self: Packing, library: Any, kernels: Any, weight: torch.Tensor, *more: Any) -> structs.Weight:
        shapes.append(weight.shape)
        return pack(self, library, kernels, weight, *more)

    monkeypatch.setattr(Packing, "pack", counted)
    return shapes


def logits_of(loaded: Loaded) -> torch.Tensor:
    return torch.cat(our_logits(loaded.model, loaded.forward, check_texts(loaded.model)))


def started(folder: Path, cache: Path, **more: Any) -> torch.Tensor:
    return logits_of(loaded_of(folder, **{"quantize": "int4", "quantized_cache": str(cache), **more}))


@pytest.mark.parametrize("format", ["int8", "int4", "int4:exact"])
def test_the_second_start_packs_nothing_and_gives_the_same_bits(
    format: str, folder: Path, tmp_path: Path, packed: list[Any]
) -> None:
    first = started(folder, tmp_path / "cache", quantize=format)
    assert packed
    packed.clear()
    assert started(folder, tmp_path / "cache", quantize=format).equal(first)
    assert not packed and len(list((tmp_path / "cache").iterdir())) == 1
    # With a kept step as well.
    for _ in range(2):
        again = started(folder, tmp_path / "cache", quantize=format, step_cache=str(tmp_path / "steps"))
        assert again.equal(first) and not packed


def test_other_weights_and_other_formats_have_files_of_their_own(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    started(folder, cache)
    started(folder, cache, quantize="int8")
    assert len(list(cache.iterdir())) == 2

    def one_number(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.layers.0.mlp.up_proj.weight"][17, 3] += 1
        return weights

    other = edited(folder, tmp_path / "other", one_number)
    assert started(other, cache).equal(started(other, cache, quantized_cache="off"))
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("at", [0, 3, 20, -1, -9000, "short", "empty"])
def test_a_damaged_file_is_noticed_and_made_anew(
    at: int | str, folder: Path, tmp_path: Path, packed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = started(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    if isinstance(at, int):
        content[at] ^= 0x41
    file.write_bytes(content[: {"short": -1, "empty": 0}.get(str(at), len(content))])
    packed.clear()
    with caplog.at_level(logging.WARNING):
        assert started(folder, tmp_path / "cache").equal(first)
    assert packed and "packed weights are made anew" in caplog.text
    packed.clear()
    assert started(folder, tmp_path / "cache").equal(first) and not packed


def test_a_file_of_another_model_under_this_name_is_noticed(
    folder: Path, tmp_path: Path, packed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same shapes, and with sound checksums."""
    other = edited(folder, tmp_path / "other", lambda weights: {name: one.flip(0) for name, one in weights.items()})
    started(other, tmp_path / "others")
    first = started(folder, tmp_path / "cache")
    (file,), (foreign,) = (tmp_path / "cache").iterdir(), (tmp_path / "others").iterdir()
    key, of_other = file.name[:32].encode(), foreign.name[:32].encode()
    file.write_bytes(foreign.read_bytes().replace(of_other, key))
    packed.clear()
    assert started(folder, tmp_path / "cache").equal(first)
    assert packed


def test_a_full_disk_is_told_and_nothing_else_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = started(folder, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING):
        assert started(folder, tmp_path / "cache").equal(first)
    assert "are not kept for the next start" in caplog.text and "no room" in caplog.text
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "file").write_bytes(b"")
    assert started(folder, tmp_path / "file").equal(first)


def test_a_folder_holds_no_more_bytes_than_asked(
    folder: Path, tmp_path: Path, packed: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The file that was not used for the longest time goes; what is too large by itself is told and not kept."""
    cache = tmp_path / "cache"
    for format in ("int4", "int4:exact"):
        started(folder, cache, quantize=format)
    first, second = sorted(cache.iterdir(), key=lambda one: one.stat().st_mtime_ns)
    sizes = first.stat().st_size, second.stat().st_size
    os.utime(second, (1, 1))
    started(folder, cache, quantize="int8", quantized_cache_size=2 * 2**30)
    (third,) = set(cache.iterdir()) - {first, second}
    room = first.stat().st_size + third.stat().st_size
    third.unlink()
    started(folder, cache, quantize="int8", quantized_cache_size=room)
    assert set(cache.iterdir()) == {first, third} and sizes[0] == first.stat().st_size
    shutil.rmtree(cache)
    with caplog.at_level(logging.WARNING):
        started(folder, cache, quantized_cache_size=1000)
    assert "more than --quantized-cache-size 1,000" in caplog.text and not list(cache.iterdir())


def test_a_folder_takes_no_more_than_half_of_what_is_free(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5000))
    with caplog.at_level(logging.WARNING):
        started(folder, tmp_path / "cache")
    assert "more than half of the 5,000 that are free" in caplog.text and not list((tmp_path / "cache").iterdir())


def test_every_file_of_a_folder_tells_its_weights_apart(folder: Path, tmp_path: Path) -> None:
    """What a sample of the numbers does not show, a file's time does, whatever the file is called."""
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "part.bin").write_bytes(b"1")
    started(other, tmp_path / "cache")
    started(other, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (other / "part.bin").write_bytes(b"2")
    os.utime(other / "part.bin", ns=(1, 1))
    started(other, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_packing_tells_how_far_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = list[_Bar]()

    def bar(**shown: Any) -> _Bar:
        bars.append(_Bar(shown["total"]))
        return bars[-1]

    monkeypatch.setattr("baton.native.weights.progress.tqdm", bar)
    started(folder, tmp_path / "cache")
    (one,) = bars
    assert one.total == sum(one.steps) > 0 and len([step for step in one.steps if step]) > 5


class _Bar:
    def __init__(self, total: int) -> None:
        self.total, self.steps = total, list[int]()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, count: int) -> None:
        self.steps.append(count)
