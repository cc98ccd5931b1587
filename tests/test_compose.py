"""How much memory this process may still take, control groups of both versions included."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from baton.compose import free_memory_bytes

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


def is_the_machines(found: int) -> bool:
    return abs(found - psutil.virtual_memory().available) < 2**30


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
