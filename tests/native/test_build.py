"""hatch_build.py compiles what changed and no more; if it cannot, it says why and an install goes on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from baton.native import library as native

ROOT = Path(__file__).resolve().parents[2]
VALUE = '#include "kernels.h"\nextern "C" __attribute__((visibility("default"))) int value() { return VALUE; }\n'
compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no compiler here")


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """hatch_build.py, without what the tester's environment asks of it."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("BATON_NO_NATIVE", raising=False)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # as hatchling does: not in sys.modules
    return module


@pytest.fixture
def small(builder: ModuleType, tmp_path: Path) -> Path:
    """A root whose sources have all the names and hardly any text."""
    source = tmp_path / builder.SOURCE
    source.mkdir(parents=True)
    for name in (*builder.EACH_VARIANT, *builder.ONCE):
        (source / name).write_text("")
    (source / "kernels.h").write_text('#include "sizes.h"\n')
    (source / "sizes.h").write_text("#define VALUE 1\n")
    (source / "main.cpp").write_text(VALUE)
    return tmp_path


def compiled(builder: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """How many objects a build compiled."""
    capsys.readouterr()
    builder.build(root, root / builder.LIBRARY)
    return capsys.readouterr().out.count("compiling ")


def value(library: Path) -> int:
    # By another name each time: what is loaded from a path once is not loaded from it again.
    copy = library.with_name(f"{library.stat().st_mtime_ns}.so")
    shutil.copy(library, copy)
    return CDLL(str(copy)).value()


@compiler
def test_only_what_changed_is_compiled_again(
    builder: ModuleType, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library, source = small / builder.LIBRARY, small / builder.SOURCE
    variants = len(builder.Compiler.find().variants)
    everything = variants * len(builder.EACH_VARIANT) + len(builder.ONCE)
    assert compiled(builder, small, capsys) == everything
    assert compiled(builder, small, capsys) == 0
    assert value(library) == 1
    (source / "linear.cpp").write_text("\n")
    assert compiled(builder, small, capsys) == variants
    (source / "sizes.h").write_text("#define VALUE 2\n")
    assert compiled(builder, small, capsys) == 1, "what includes it, by way of another"
    assert value(library) == 2


@compiler
def test_a_build_that_fails_leaves_the_library_and_says_where(builder: ModuleType, small: Path) -> None:
    library = small / builder.LIBRARY
    builder.build(small, library)
    (small / builder.SOURCE / "pool.cpp").write_text("int x = y;\n")
    with pytest.raises(builder.CannotBuild, match=r"pool\.cpp:1:9: error: .*y"):
        builder.build(small, library)
    assert value(library) == 1
    assert sorted(path.suffix for path in (small / builder.CACHE).iterdir() if path.suffix != ".o") == []


@compiler
def test_a_wheel_with_the_library_is_for_this_platform_and_any_python(builder: ModuleType, small: Path) -> None:
    build_data = hook(builder, small)
    assert build_data["tag"].startswith("py3-none-") and build_data["pure_python"] is False
    assert build_data["artifacts"] == ["/src/baton/native/_kernels.so"]


@compiler
def test_what_does_not_compile_leaves_a_pure_install(
    builder: ModuleType, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = small / builder.LIBRARY
    library.write_text("of an earlier install")
    (small / builder.SOURCE / "pool.cpp").write_text("int x = y;\n")
    assert hook(builder, small) == PURE
    line = capsys.readouterr().out.splitlines()[-1]
    assert (
        line.startswith("no native kernels: ") and "pool.cpp:1:9: error: " in line and line.endswith("slower on CPUs")
    )
    assert not library.exists()


@pytest.mark.parametrize(
    ("variable", "answer", "reason"),
    [
        ("CXX", "/bin/false", "/bin/false does not work"),
        ("CXX", "no-such-compiler", "no C++ compiler (no-such-compiler)"),
        ("BATON_NO_NATIVE", "1", "BATON_NO_NATIVE asks for none"),
    ],
)
def test_an_install_without_a_compiler_goes_on(
    variable: str,
    answer: str,
    reason: str,
    builder: ModuleType,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, answer)
    assert hook(builder, small) == PURE
    assert capsys.readouterr().out == f"no native kernels: {reason}. baton works without them, slower on CPUs\n"


@compiler
def test_a_compiler_that_does_not_know_bfloat16_leaves_that_variant_out(
    builder: ModuleType, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = small / "old-compiler"
    real = builder.Compiler.find().command[0]
    old.write_text(f'#!/bin/sh\ncase "$*" in *-mavx512bf16*) exit 1;; esac\nexec {real} "$@"\n')
    old.chmod(0o755)
    monkeypatch.setenv("CXX", str(old))
    (small / builder.SOURCE / "main.cpp").write_text(f"#ifdef WITHOUT_AVX512BF16\n{VALUE}#endif\n")
    assert "avx512bf16" not in builder.build(small, small / builder.LIBRARY)
    assert value(small / builder.LIBRARY) == 1


@compiler
def test_where_a_compiler_is_the_library_was_built() -> None:
    """Otherwise the tests of the kernels would be skipped where they could have run."""
    if {"BATON_NATIVE", "BATON_NO_NATIVE"} & set(os.environ):
        pytest.skip("the tester asks for something else")
    assert native.library is not None, native.describe()


@compiler
def test_a_library_of_other_sources_is_refused(ask: Callable[..., str], builder: ModuleType, tmp_path: Path) -> None:
    text = 'extern "C" int baton_abi() { return ANSWER; }\n'
    (tmp_path / "other.cpp").write_text(text)
    for answer, complaint in (
        (-1, f"other.so was built from other sources (ABI -1, not {native.ABI})"),
        (native.ABI, "other.so cannot be used"),
    ):
        command = [*builder.Compiler.find().command, f"-DANSWER={answer}", "-shared", "-fPIC", "other.cpp", "-o"]
        subprocess.run([*command, "other.so"], cwd=tmp_path, check=True)
        said = ask(BATON_NATIVE_LIBRARY=str(tmp_path / "other.so"))
        assert complaint in said and said.endswith("True True")


PURE: dict[str, Any] = {"artifacts": []}


def hook(builder: ModuleType, root: Path) -> dict[str, Any]:
    """What the build hook makes of a wheel's build data."""
    data: dict[str, Any] = {"artifacts": []}
    builder.NativeKernels.initialize(SimpleNamespace(root=str(root)), "standard", data)
    return data
