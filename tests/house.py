"""Reads the imports of a source tree, deferred and type-only ones too, and reports which house rules they break.

The rules are those of ARCHITECTURE.md, "The floors"; the tree is a mapping of dotted module names to their source.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FLOORS = {"core": 0, "kv": 1, "sampling": 1, "grammar": 1, "policy": 1, "model": 2, "batch": 3, "native": 3, "cuda": 4}
FLOORS |= {"parsing": 1, "jobs": 1, "loader": 5, "engine": 5}
FLOORS |= dict.fromkeys(("server", "observe", "bench", "chat", "cluster", "builtin", "testing"), 6)
# The few modules that belong to no room: the Python API, and what joins bodies to ports.
TOP = {"compose", "fronts", "llm", "outputs", "__init__"}
HIGHEST = 7
ABOVE = {"measure": 8, "cli": 9, "__main__": 10}

# The GPU's wing has one door, so that a reader of the CPU's path never needs it. Stand-ins for it are what it has.
CUDA_DOORS = ("compose", "loader", "testing")

# Rooms that may import a third party's package.
TORCH = {
    "kv",
    "sampling",
    "model",
    "batch",
    "native",
    "cuda",
    "loader",
    "cluster",
    "builtin",
    "compose",
    "measure",
    "testing",
    "cli",
}
OWNERS = {
    "torch": TORCH,
    "transformers": {"model", "native", "cuda", "loader", "builtin"},
    "tokenizers": {"model", "builtin"},
    "huggingface_hub": {"loader"},
    "triton": {"cuda"},
    "cuda": {"cuda"},
    "llguidance": {"grammar"},
    "ray": {"cluster"},
    "opentelemetry": {"observe"},
    "fastapi": {"server", "observe"},
    "starlette": {"server", "observe"},
    "uvicorn": {"server", "observe"},
}
# What `core/host.py` asks the machine with; else the ground has no third party.
ON_THE_GROUND = {"psutil"}
# What a front knows of engines: their port, and how queries travel.
_SEEN_BY_CLUSTER = (
    "baton.engine.port",
    "baton.engine.inbox",
    "baton.kv.parcel",
    "baton.kv.segment",
)
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """`module` imports `target` in this line; `deferred`: inside a function; `typing_only`: under TYPE_CHECKING."""

    module: str
    target: str
    line: int
    deferred: bool = False
    typing_only: bool = False

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def tree_of(folder: Path) -> dict[str, str]:
    """All sources below the package's folder by dotted name; a package by its own name."""
    sources = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


def room_of(name: str) -> str:
    """The first part below the package: a room, or a module that is on the ground or on top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(name: str) -> int | None:
    room = room_of(name)
    return HIGHEST if room in TOP else {**FLOORS, **ABOVE}.get(room)


def ours(name: str) -> bool:
    return name.split(".")[0] == "baton"


def imports_of(tree: Mapping[str, str]) -> list[Import]:
    names = frozenset(tree)
    return [one for name, source in tree.items() for one in _imports_of(name, source, names)]


@cache
def _imports_of(name: str, source: str, tree: frozenset[str]) -> list[Import]:
    return _Reader(name, source, tree).read()


def broken_rules(tree: Mapping[str, str]) -> list[str]:
    """One line for each import or file that breaks a rule."""
    imports = imports_of(tree)
    return [
        *_homeless(tree),
        *_upward(imports),
        *_into_cuda(imports),
        *_ray(imports),
        *_past_the_port(imports),
        *_inside_functions(imports),
        *_by_name(tree),
        *_foreign(imports),
        *_circles(imports),
        *_drawers(tree),
        *_doors(tree),
    ]


def reached(tree: Mapping[str, str], start: str) -> set[str]:
    """All that is imported when `start` is: modules of ours, and the packages of others that they name."""
    return reached_over(edges_of(tree), start)


def edges_of(tree: Mapping[str, str]) -> dict[str, set[str]]:
    """What each module imports when it is imported."""
    edges: dict[str, set[str]] = {}
    for one in imports_of(tree):
        if not one.deferred and not one.typing_only:
            edges.setdefault(one.module, set()).add(one.target)
    return edges


def reached_over(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        name = todo.pop()
        parents = {name.rpartition(".")[0]} - {""} if ours(name) else set()
        new = (edges.get(name, set()) | parents) - seen
        seen |= new
        todo.extend(new)
    return seen


def _homeless(tree: Mapping[str, str]) -> Iterator[str]:
    for name in tree:
        if floor_of(name) is None:
            yield f"{name} stands on no floor"


def _upward(imports: Iterable[Import]) -> Iterator[str]:
    for one in imports:
        if not ours(one.target):
            continue
        mine, theirs = floor_of(one.module), floor_of(one.target)
        same_room = room_of(one.module) == room_of(one.target) or mine == theirs == HIGHEST
        if mine is not None and theirs is not None and not same_room and theirs >= mine:
            yield f"{one}: {'up' if theirs > mine else 'next door'}"


def _past_the_port(imports: Iterable[Import]) -> Iterator[str]:
    """The engine sees ports and never bodies; policies see the ground; server and observe see the engine's client."""
    for one in imports:
        if not ours(one.target) or room_of(one.module) == room_of(one.target):
            continue
        mine, theirs, floor = room_of(one.module), room_of(one.target), floor_of(one.target)
        if mine == "engine" and theirs in ("batch", "policy") and not one.target.endswith(".port"):
            yield f"{one}: a body, not a port"
        if mine == "engine" and theirs in ("model", "native", "cuda", "sampling"):
            yield f"{one}: past the batch and the prefiller"
        beside = one.target == "baton.engine.client" or (mine, theirs) in (("server", "parsing"), ("server", "jobs"))
        if mine in ("server", "observe") and floor != 0 and not beside:
            yield f"{one}: neither ground nor the engine's client"
        if mine == "cluster" and not (floor == 0 or one.target.startswith(_SEEN_BY_CLUSTER)):
            yield f"{one}: neither a port of the engine nor a parcel"
        if mine == "policy" and floor != 0:
            yield f"{one}: not the ground"


def _into_cuda(imports: Iterable[Import]) -> Iterator[str]:
    for one in imports:
        if not ours(one.target) or room_of(one.target) != "cuda":
            continue
        if room_of(one.module) not in (*CUDA_DOORS, "cuda"):
            yield f"{one}: only {' and '.join(CUDA_DOORS)} open the GPU's wing"


def _ray(imports: Iterable[Import]) -> Iterator[str]:
    """What knows Ray says so in its name, so that all else of a cluster works without it."""
    for one in imports:
        if one.target.split(".")[0] == "ray" and not one.module.startswith("baton.cluster.ray_"):
            yield f"{one}: only cluster/ray_*.py know Ray"


def _inside_functions(imports: Iterable[Import]) -> Iterator[str]:
    for one in imports:
        if one.deferred and ours(one.target) and room_of(one.module) != "cli":
            yield f"{one}: inside a function"


def _by_name(tree: Mapping[str, str]) -> Iterator[str]:
    """Imports that a reader of imports does not see. Two modules may: for public names, and for what it puts off."""
    for name, source in tree.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or name in ("baton", "baton.core.late_compiler"):
                continue
            if ast.unparse(node.func) in ("__import__", "importlib.import_module", "import_module", "exec", "eval"):
                yield f"{name}:{node.lineno} imports by name"


def _foreign(imports: Iterable[Import]) -> Iterator[str]:
    for one in imports:
        package = one.target.split(".")[0]
        if package in OWNERS and room_of(one.module) not in OWNERS[package]:
            yield f"{one}: not in this room"
        elif (
            floor_of(one.module) == 0
            and not ours(package)
            and package not in {*sys.stdlib_module_names, *ON_THE_GROUND}
        ):
            yield f"{one}: a third party on the ground"


def _circles(imports: Iterable[Import]) -> Iterator[str]:
    edges: dict[str, set[str]] = {}
    for one in imports:
        if ours(one.target):
            edges.setdefault(one.module, set()).add(one.target)
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> Iterator[str]:
        if name in way:
            yield f"a circle: {' > '.join((*way[way.index(name) :], name))}"
        elif name not in done:
            for target in sorted(edges.get(name, ())):
                yield from follow(target, (*way, name))
            done.add(name)

    for name in sorted(edges):
        yield from follow(name, ())


def _drawers(tree: Mapping[str, str]) -> Iterator[str]:
    for name in tree:
        if DRAWERS & set(name.split(".")):
            yield f"{name} is a drawer"


def _doors(tree: Mapping[str, str]) -> Iterator[str]:
    """Each room says in two lines what it is and what it may never do."""
    for name in sorted(
        {name for name in tree if name.count(".") == 1 and room_of(name) in {*FLOORS, *ABOVE} - {"__main__"}}
    ):
        text = ast.get_docstring(ast.parse(tree[name])) or ""
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) != 2 or "may never" not in lines[1].lower():
            yield f"{name} does not say in two lines what it is and what it may never do"


class _Reader(ast.NodeVisitor):
    """Collects one module's imports."""

    def __init__(self, module: str, source: str, tree: frozenset[str]) -> None:
        self._module = module
        self._source = source
        self._tree = tree
        self._package = module if any(name.startswith(f"{module}.") for name in tree) else module.rpartition(".")[0]
        self._depth = 0
        self._typing = 0
        self._imports: list[Import] = []

    def read(self) -> list[Import]:
        self.visit(ast.parse(self._source))
        return self._imports

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self._package.split(".")[: len(self._package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            name = f"{base}.{alias.name}"
            self._add(name if name in self._tree else base, node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        typing = "TYPE_CHECKING" in ast.unparse(node.test)
        self._typing += typing
        for child in node.body:
            self.visit(child)
        self._typing -= typing
        for child in node.orelse:
            self.visit(child)

    def _add(self, target: str, node: ast.stmt) -> None:
        self._imports.append(Import(self._module, target, node.lineno, self._depth > 0, self._typing > 0))
