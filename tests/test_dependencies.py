"""pyproject.toml declares what the source imports, and bounds the packages of which private names are used."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import baton
from conftest import TESTS
from house import imports_of, ours, tree_of

PROJECT = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = {
    "cuda": "cuda-bindings",
    "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}
"""Modules, with all below them, whose first name differs from that of their distribution. The first that fits holds."""
OF_USERS = ("bench", "cluster", "cuda", "gguf", "otel")
"""Extras whose packages the source imports; the others are for developers."""
UNDOCUMENTED = {"uvicorn"}
"""Packages whose private names are used through a class of ours that inherits them, which imports do not show."""


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    return tree_of(Path(baton.__file__).parent)


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements by name, including those of these extras."""
    lines = [*PROJECT["dependencies"], *(line for name in extras for line in PROJECT["optional-dependencies"][name])]
    requirements = [Requirement(line) for line in lines]
    names = [canonicalize_name(one.name) for one in requirements]
    assert len(set(names)) == len(names), "a package stands twice"
    return dict(zip(names, requirements, strict=True))


def distribution(module: str) -> str:
    known = (name for start, name in DISTRIBUTIONS.items() if f"{module}.".startswith(f"{start}."))
    return canonicalize_name(next(known, module.split(".")[0]))


def imported(tree: Mapping[str, str]) -> set[str]:
    modules = {one.target for one in imports_of(tree) if not ours(one.target)}
    return {distribution(name) for name in modules if name.split(".")[0] not in sys.stdlib_module_names}


def private_names(tree: Mapping[str, str]) -> set[tuple[str, str]]:
    """Packages of others and names with an underscore in front that are imported from them, or asked of a module."""
    return {
        (package, name)
        for source in tree.values()
        for package, name in _private_names(ast.parse(source))
        if package not in sys.stdlib_module_names and not ours(package)
    }


def _private_names(source: ast.Module) -> Iterator[tuple[str, str]]:
    bound: dict[str, str] = {}
    for node in ast.walk(source):
        if isinstance(node, ast.Import):
            bound |= {(alias.asname or alias.name).split(".")[0]: alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            package, *inside = node.module.split(".")
            bound |= {alias.asname or alias.name: package for alias in node.names}
            yield from ((package, name) for name in (*inside, *(alias.name for alias in node.names)) if hidden(name))
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and hidden(node.attr):
            first = node.value
            while isinstance(first, ast.Attribute):
                first = first.value
            if isinstance(first, ast.Name) and first.id in bound:
                yield bound[first.id], node.attr


def hidden(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(tree: dict[str, str]) -> None:
    assert imported(tree) == set(declared(*OF_USERS))


def test_packages_of_which_private_names_are_used_have_an_upper_bound(tree: dict[str, str]) -> None:
    packages = {distribution(package) for package, _ in private_names(tree)} | UNDOCUMENTED
    assert {"torch", "transformers", "jinja2"} <= packages, "not all were read"
    bounds = {name: [one.operator for one in needed.specifier] for name, needed in declared(*OF_USERS).items()}
    assert [name for name in sorted(packages) if "<" not in bounds[name]] == []


@pytest.mark.parametrize(
    "source",
    [
        "from other.inside import _name",
        "from other._inside import name",
        "import other\nother.inside._name()",
        "from other import inside as it\nprint(it._name)",
        "def late():\n    import other.inside as it\n    it._name",
    ],
)
def test_private_names_are_found(source: str) -> None:
    assert [package for package, _ in private_names({"baton.core": source})] == ["other"]


def test_names_of_our_own_and_public_ones_are_not_private_names_of_others() -> None:
    source = "import other, os\nother.__version__\nother.name\nself._name\nos._exit(1)\nfrom baton.core import _name"
    assert private_names({"baton.core": source}) == set()
