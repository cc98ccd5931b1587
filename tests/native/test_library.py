"""The native library is found, describes itself, is chosen by name, and is optional."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from ctypes import c_int64, sizeof
from pathlib import Path

import pytest

import baton
from baton.core.errors import SettingError
from baton.native import library as native
from baton.native import structs

Ask = Callable[..., str]
PACKAGE = Path(baton.__file__).parent
there = pytest.mark.skipif(native.library is None, reason="no native library here")


@there
def test_each_variant_is_had_by_its_name_or_refused_by_it(ask: Ask) -> None:
    assert native.library is not None
    for name in native.VARIANTS:
        if name in native.variants():
            assert native.library.baton_name(native.kernels(name)) == name.encode()
            assert ask(BATON_NATIVE=name) == f"native kernels ({name}) False False"
        else:
            with pytest.raises(SettingError, match=name):
                native.kernels(name)
    assert "plain" in native.variants()


@there
def test_the_best_is_the_last_that_the_machine_runs(ask: Ask) -> None:
    assert ask() == f"native kernels ({native.variants()[-1]}) False False"


@there
def test_an_unknown_variant_is_refused_by_name(ask: Ask) -> None:
    said = ask(BATON_NATIVE="sse9")
    assert "SettingError: BATON_NATIVE=sse9: this machine has plain" in said


def test_it_can_be_switched_off(ask: Ask) -> None:
    assert ask(BATON_NATIVE="off") == "no native kernels: BATON_NATIVE=off True True"
    assert ask(BATON_NATIVE="OFF") == "no native kernels: BATON_NATIVE=off True True"


def test_an_install_without_the_library_says_so_and_does_without(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "baton").mkdir()
    shutil.copy(PACKAGE / "__init__.py", tmp_path / "baton")
    shutil.copytree(PACKAGE / "core", tmp_path / "baton" / "core")
    shutil.copytree(PACKAGE / "native", tmp_path / "baton" / "native", ignore=shutil.ignore_patterns("_kernels.so*"))
    place = {"PYTHONPATH": str(tmp_path), "BATON_NATIVE_LIBRARY": ""}
    said = ask(**place)
    assert said.startswith("no native kernels: _kernels.so was not built") and said.endswith("True True")
    assert "BATON_NATIVE=avx2: no native kernels: _kernels.so was not built" in ask(**place, BATON_NATIVE="avx2")


def test_a_file_that_is_no_library_is_named(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_text("not a library")
    said = ask(BATON_NATIVE_LIBRARY=str(tmp_path / "broken.so"))
    assert said.startswith("no native kernels: broken.so cannot be used") and said.endswith("True True")


@there
def test_structures_are_as_large_on_both_sides() -> None:
    assert native.library is not None
    sizes = (c_int64 * 64)()
    assert native.library.baton_sizes(sizes, len(sizes)) == len(structs.STRUCTURES)
    assert list(sizes)[: len(structs.STRUCTURES)] == [sizeof(structure) for structure in structs.STRUCTURES]


def test_the_library_is_loaded_without_torch(ask: Ask) -> None:
    assert ask("import sys, baton.native.library; print('torch' in sys.modules)") == "False"
