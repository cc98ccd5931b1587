"""torch's compiler is loaded by whoever compiles, and not before."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from baton.core.late_compiler import ALONE, load_compiler_late

_PACKAGE = """
marked = []
def allow_in_graph(function):
    marked.append(("allowed", function.__name__))
    return function
def disable(function=None, recursive=True, *, reason=None):
    if function is None:
        return lambda one: disable(one, recursive, reason=reason)
    def call(*args):
        marked.append(("disabled", function.__name__, recursive))
        return function(*args)
    return call
from . import inner
def compile(function):
    return function
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with a compiler like torch's in it."""
    folder = tmp_path / "parent" / "compiler"
    folder.mkdir(parents=True)
    (tmp_path / "parent" / "__init__.py").write_text("")
    (folder / "__init__.py").write_text(_PACKAGE)
    (folder / "inner").with_suffix(".py").write_text("from parent.compiler import disable\nassert disable\n")
    (folder / f"{ALONE}.py").write_text("word = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = list(sys.meta_path)
    load_compiler_late("parent.compiler")
    yield importlib.import_module("parent")
    sys.meta_path[:] = before
    for name in [one for one in sys.modules if one.partition(".")[0] == "parent"]:
        del sys.modules[name]


def is_loaded() -> bool:
    return "parent.compiler.inner" in sys.modules


def test_marks_wait_and_are_told_when_it_loads(parent: Any) -> None:
    importlib.import_module("parent.compiler")

    def first() -> int:
        return 1

    def second(x: int) -> int:
        return x + 1

    assert parent.compiler.allow_in_graph(first) is first
    plain, named = parent.compiler.disable(second), parent.compiler.disable(None, False, reason="why")(second)
    assert (plain(1), named(2), plain.__name__) == (2, 3, "second")
    assert not is_loaded()
    assert parent.compiler.compile(first) is first
    assert is_loaded()
    assert parent.compiler.marked == [("allowed", "first")]
    assert (plain(1), named(2)) == (2, 3)
    assert parent.compiler.marked[1:] == [("disabled", "second", True), ("disabled", "second", False)]


def test_the_part_that_stands_alone_does_not_load_it_and_any_other_does(parent: Any) -> None:
    alone = importlib.import_module(f"parent.compiler.{ALONE}")
    assert not is_loaded()
    assert importlib.import_module("parent.compiler.inner") is sys.modules["parent.compiler.inner"]
    assert is_loaded()
    assert getattr(parent.compiler, ALONE) is alone
    assert sys.modules["parent.compiler"] is parent.compiler


def test_what_is_no_function_is_marked_by_the_compiler_itself(parent: Any) -> None:
    importlib.import_module("parent.compiler")

    class Shown:
        def __call__(self) -> int:
            return 1

        __name__ = "shown"

    assert parent.compiler.disable(Shown())() == 1
    assert is_loaded()


def test_an_attribute_that_modules_may_lack_does_not_load_it(parent: Any) -> None:
    importlib.import_module("parent.compiler")
    assert not hasattr(parent.compiler, "__wrapped__")
    assert not is_loaded()


_SERVER = """
import sys
import baton.cli.serve_engine, torch
from transformers.models.llama import modeling_llama
assert "torch._dynamo.utils" not in sys.modules
compiled = torch.compile(lambda x: (2 * x).sum(), backend="eager", fullgraph=True)
assert compiled(torch.ones(3)) == 6
assert "torch._dynamo.utils" in sys.modules
assert type(torch._dynamo) is type(sys)
"""


def test_the_server_starts_without_it_and_torch_compiles_all_the_same() -> None:
    subprocess.run([sys.executable, "-c", _SERVER], check=True, timeout=120)
