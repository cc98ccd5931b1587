"""The folder that one process leaves to the next: what is read is what was written, or it is set aside."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from baton.core.errors import BatonError, SettingError, StorageFull
from baton.kv.handover import MOST_TRIES, BadFile, HandoverFolder
from baton.kv.segment import KVSegment
from kv.test_parcel import QUERY, compiled

TOLD = '{"text": "é"}'.encode()


def segment(size: int = 8) -> KVSegment:
    parts = [torch.randn(4, size), torch.zeros(0, 3), torch.arange(4)]
    return KVSegment(QUERY, [1, 2, 3, 9, 8], "stamp", cached=4, computed=4, parts=parts)


class Opened:
    """A folder, and what it said."""

    def __init__(self, path: Path, most_bytes: int = 2**20, now: float = 101.0) -> None:
        self.lines: list[str] = []
        self.path = path
        self.folder = HandoverFolder(path, most_bytes, lambda: now, self.lines.append)

    def again(self, now: float = 1101.0) -> Opened:
        """The next process."""
        self.folder.close()
        return Opened(self.path, now=now)

    @property
    def files(self) -> list[Path]:
        return sorted(self.path.glob("*.*"))


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path / "kept")


def test_what_is_taken_is_what_was_put(opened: Opened) -> None:
    sent = segment()
    parts = [part.clone() for part in sent.parts]
    assert opened.folder.put("a", TOLD, [sent, replace(segment(3), query=replace(QUERY, id="r"))])
    assert sent.parts == ()
    later = opened.again()
    assert later.folder.names() == ["a"] and later.folder.digest("x") == opened.folder.digest("x") != "x"
    told, (first, second) = later.folder.take("a", compiled)
    assert told == TOLD and second.query.id == "r"
    assert all(torch.equal(one, right) for one, right in zip(first.parts, parts, strict=True))
    assert (first.tokens, first.cached, first.stamp, first.query.arrived) == ([1, 2, 3, 9, 8], 4, "stamp", 1100.0)


def test_only_the_owner_can_read(opened: Opened) -> None:
    opened.folder.put("a", TOLD, [segment()])
    assert opened.path.stat().st_mode & 0o77 == 0
    assert {path.stat().st_mode & 0o777 for path in opened.path.iterdir()} == {0o600}


def test_a_process_that_ends_too_early_loses_nothing(opened: Opened) -> None:
    opened.folder.put("a", TOLD, [segment()])
    for _ in range(MOST_TRIES):
        opened = opened.again()
        told, segments = opened.folder.take("a", compiled)
        assert told == TOLD and segments[0].cached == 4
    with pytest.raises(BadFile, match="3 processes ended"):
        opened.again().folder.take("a", compiled)


def test_what_is_put_again_counts_anew(opened: Opened) -> None:
    opened.folder.put("a", b"{}", [segment()])
    later = opened.again()
    later.folder.take("a", compiled)
    later.folder.put("a", TOLD, [])
    assert [path.name for path in later.files] == ["a.0.safetensors"]
    assert later.again().folder.take("a", compiled) == (TOLD, [])
    later.folder.drop("a")
    assert later.files == []


@pytest.mark.parametrize("where", [0.02, 0.3, 0.99])
def test_a_damaged_file_is_set_aside(opened: Opened, where: float) -> None:
    opened.folder.put("a", TOLD, [segment()])
    data = bytearray(opened.files[0].read_bytes())
    data[int(len(data) * where)] ^= 4
    opened.files[0].write_bytes(data)
    with pytest.raises(BatonError) as error:
        opened.folder.take("a", compiled)
    opened.folder.set_aside("a", error.value.message)
    assert opened.folder.names() == [] and [path.suffix for path in opened.files] == [".aside"]
    assert "set aside" in opened.lines[0]


def test_half_a_file_is_damaged(opened: Opened) -> None:
    opened.folder.put("a", TOLD, [segment()])
    os.truncate(opened.files[0], opened.files[0].stat().st_size // 2)
    with pytest.raises(BadFile, match="damaged"):
        opened.folder.take("a", compiled)


def test_another_version_is_refused_by_its_number(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.kv.handover.VERSION", "9")
    opened.folder.put("a", TOLD, [segment()])
    monkeypatch.undo()
    with pytest.raises(BadFile, match="version 9"):
        opened.folder.take("a", compiled)


def test_without_room_for_keys_and_values_the_tokens_stay(tmp_path: Path) -> None:
    opened = Opened(tmp_path, most_bytes=6000)
    assert opened.folder.put("a", TOLD, [segment(8)])
    assert not opened.folder.put("b", TOLD, [segment(4000)])
    (kept,) = opened.folder.take("b", compiled)[1]
    assert (kept.cached, kept.computed, kept.tokens) == (0, 4, [1, 2, 3, 9, 8])
    with pytest.raises(StorageFull, match="--handover-bytes"):
        opened.folder.put("c", b"x" * 6000, [])


def test_what_was_set_aside_makes_room(tmp_path: Path) -> None:
    opened = Opened(tmp_path, most_bytes=20_000)
    opened.folder.put("a", TOLD, [segment(800)])
    opened.folder.set_aside("a", "why")
    assert opened.folder.put("b", TOLD, [segment(800)])
    assert [path.name for path in opened.files] == ["b.0.safetensors"]


def test_two_processes_cannot_have_one_folder(opened: Opened) -> None:
    with pytest.raises(SettingError, match="another process uses it"):
        Opened(opened.path)


def test_what_was_being_written_is_removed(opened: Opened) -> None:
    (opened.path / "a.0.safetensors.part").write_bytes(b"half")
    assert opened.again().files == []
