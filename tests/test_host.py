"""How much memory and how many cores this process may take, control groups of both versions included."""

from __future__ import annotations

import _thread
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from baton.compose import set_threads
from baton.core import host
from baton.core.config import Config
from baton.core.errors import LoadError, SettingError
from baton.core.host import cores, free_memory_bytes, threads_that_start

V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group(folder: Path, version: tuple[str, str, str], limit: int | str, used: int, droppable: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / version[0]).write_text(f"{limit}\n")
    (folder / version[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{version[2]} {droppable}\n")


def free(tmp_path: Path, own: str) -> int:
    (tmp_path / "own").write_text(own)
    return free_memory_bytes(tmp_path / "groups", tmp_path / "own")


def is_the_machines(free: int) -> bool:
    return abs(free - psutil.virtual_memory().available) < 2**30


@pytest.mark.parametrize(
    ("version", "own", "base"),
    [(V2, "0::/a/b\n", ""), (V1, "9:name=systemd:/\n4:memory:/a/b\n0::/\n", "memory")],
    ids=["version 2", "version 1"],
)
def test_of_its_group_and_those_around_it_the_one_with_least_left_counts(
    version: tuple[str, str, str], own: str, base: str, tmp_path: Path
) -> None:
    inner, outer = tmp_path / "groups" / base / "a" / "b", tmp_path / "groups" / base / "a"
    group(inner, version, 5000, 4000, droppable=100)
    assert free(tmp_path, own) == 1100
    group(outer, version, 9000, 8600)
    assert free(tmp_path, own) == 400
    group(outer, version, 9000, 9500)
    assert free(tmp_path, own) == 0


def test_in_a_container_its_group_is_the_root(tmp_path: Path) -> None:
    group(tmp_path / "groups", V2, 7000, 1000)
    assert free(tmp_path, "0::/not/seen/from/inside\n") == 6000


def test_where_nothing_bounds_it_the_machines_free_memory_counts(tmp_path: Path) -> None:
    group(tmp_path / "groups", V2, "max", 1000)
    assert is_the_machines(free(tmp_path, "0::/\n"))
    assert is_the_machines(free_memory_bytes(tmp_path / "none", tmp_path / "nothing"))
    assert is_the_machines(free(tmp_path, "5:cpu:/a\n"))


# Cores


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """CPUs 0 to 7, two to a core, all of which this process may use. Returns the folder that says so."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    for cpu in range(8):
        folder = tmp_path / "cpus" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path / "cpus"


def counted(tmp_path: Path, cpus: Path, own: str = "0::/a/b\n") -> int:
    (tmp_path / "own").write_text(own)
    return cores(tmp_path / "groups", tmp_path / "own", cpus)


def test_threads_of_one_core_are_one_core(eight_cpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counted(tmp_path, eight_cpus) == 4
    assert counted(tmp_path, tmp_path / "nothing is known of them") == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4}, raising=False)
    assert counted(tmp_path, eight_cpus) == 2


@pytest.mark.parametrize(("quota", "expected"), [("max", 4), (50000, 1), (150000, 1), (300000, 3), (900000, 4)])
@pytest.mark.parametrize("depth", ["a/b", "a", "."])
def test_the_time_of_a_group_or_of_one_around_it_bounds_cores(
    eight_cpus: Path, tmp_path: Path, depth: str, quota: int | str, expected: int
) -> None:
    second = tmp_path / "groups" / depth
    second.mkdir(parents=True)
    (second / "cpu.max").write_text(f"{quota} 100000\n")
    assert counted(tmp_path, eight_cpus) == expected
    (second / "cpu.max").unlink()
    first = tmp_path / "groups" / "cpu" / depth
    first.mkdir(parents=True)
    (first / "cpu.cfs_quota_us").write_text("-1\n" if quota == "max" else f"{quota}\n")
    (first / "cpu.cfs_period_us").write_text("100000\n")
    assert counted(tmp_path, eight_cpus, own="3:cpu,cpuacct:/a/b\n4:memory:/a/b\n0::/\n") == expected


def test_as_many_threads_compute_as_asked_and_texts_are_tokenised_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    try:
        set_threads(Config(threads="3"))
        assert torch.get_num_threads() == 3
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        set_threads(Config())
        assert torch.get_num_threads() == cores()
    finally:
        torch.set_num_threads(1)


def test_threads_are_tried_and_end_again() -> None:
    before = threading.active_count()
    assert threads_that_start(24) == 24 and threads_that_start(0) == 0
    assert threading.active_count() == before


def test_threads_that_cannot_be_had_or_never_begin_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, asked = _thread.start_new_thread, itertools.count()

    def start(run: Callable[[], None], arguments: tuple[()]) -> None:
        number = next(asked)
        if number == 5:
            raise RuntimeError("can't start new thread")
        if number != 3:
            begin(run, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", start)
    monkeypatch.setattr(host, "_THREAD_SECONDS", 0.2)
    assert threads_that_start(9) == 4


def test_an_engine_without_room_for_its_threads_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.loader.threads.threads_that_start", lambda count: count - 1)
    with pytest.raises(LoadError, match=r"takes 39 threads, and this process can start 38: .*--threads"):
        set_threads(Config(threads="2"))


@pytest.mark.parametrize("count", ["0", "1025", "5000000000", "9" * 5000, "-1", "1.5", "\u00b2"])
def test_a_number_of_threads_that_no_machine_has_is_refused(count: str) -> None:
    with pytest.raises(SettingError, match="--threads"):
        set_threads(Config(threads=count))
