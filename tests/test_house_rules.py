"""The house rules hold for the source, and the reader of imports notices when they do not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import baton
from conftest import MARKS, TESTS, marks_of
from house import broken_rules, reached, room_of, tree_of

SOURCE = Path(baton.__file__).parent
DOOR = '"""What it is.\n\nMay never do the other thing."""\n'


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    return tree_of(SOURCE)


def test_only_what_joins_the_rooms_sees_the_whole_config(tree: dict[str, str]) -> None:
    """Rooms are given what they need of it: `LoadSettings`, `Settings`, `ServerSettings`."""
    names = [
        name
        for name, source in tree.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == "baton.core.config"
        if any(alias.name == "Config" for alias in node.names)
    ]
    assert {room_of(name) for name in names} == {"core", "compose", "fronts", "llm", "measure", "cli"}


def test_the_source_keeps_every_rule(tree: dict[str, str]) -> None:
    assert broken_rules(tree) == []


def test_every_file_that_is_to_have_a_mark_is_there() -> None:
    assert [name for names in MARKS.values() for name in names if not (TESTS / name).exists()] == []


def test_all_rooms_were_read(tree: dict[str, str]) -> None:
    assert {"core", "kv", "native", "model", "batch", "cuda", "policy", "engine"} <= {room_of(name) for name in tree}
    assert len(tree) > 30


def test_the_command_line_answers_without_torch(tree: dict[str, str]) -> None:
    modules = reached(tree, "baton.cli.main")
    assert "baton.core.config" in modules
    assert not modules & {"torch", "transformers", "baton.cli.serve", "baton.compose"}


@pytest.mark.parametrize(
    "start", ["baton.cli.main", "baton.cli.serve", "baton.compose", "baton.llm", "baton.server.app"]
)
def test_without_replicas_nothing_of_ray_is_imported(tree: dict[str, str], start: str) -> None:
    assert not [name for name in reached(tree, start) if name.split(".")[0] == "ray" or ".ray_" in name]


def test_policies_are_reached_without_torch(tree: dict[str, str]) -> None:
    modules = reached(tree, "baton.policy.baton")
    assert "baton.core.query" in modules
    assert not {name.split(".")[0] for name in modules} & {"torch", "transformers", "numpy"}


def test_the_built_in_tasks_are_reached_without_torch(tree: dict[str, str]) -> None:
    modules = reached(tree, "baton.builtin.tasks")
    assert not {name.split(".")[0] for name in modules} & {"torch", "transformers"}


def test_fast_tests_never_import_torch(tree: dict[str, str]) -> None:
    tests = {path: path.read_text() for path in TESTS.rglob("*.py")}
    helpers = {".".join(path.relative_to(TESTS).with_suffix("").parts): text for path, text in tests.items()}
    fast = [path for path in tests if path.name.startswith("test_") and "fast" in marks_of(path)]
    assert len(fast) > 20
    named = {f"fast_{at}": tests[path] for at, path in enumerate(fast)}
    everything = {**tree, **helpers, **named, "fast": "".join(f"import {name}\n" for name in named)}
    assert not reached(everything, "fast") & {"torch", "transformers"}


def small(**sources: str) -> dict[str, str]:
    """A small house that keeps the rules, but for the sources given (dots written as two underscores)."""
    rooms = {
        f"baton.{room}": DOOR
        for room in ("core", "kv", "native", "model", "batch", "cuda", "loader", "policy", "engine", "server", "cli")
    }
    ports = {f"baton.{room}.port": "" for room in ("batch", "policy")}
    plain = {
        "baton": "",
        "baton.core.query": "import math\n",
        "baton.kv.segment": "import torch\n",
        "baton.cli.main": "",
    }
    return {**rooms, **ports, **plain, **{f"baton.{name.replace('__', '.')}": text for name, text in sources.items()}}


def test_a_house_that_keeps_the_rules_is_left_in_peace() -> None:
    good = small(
        batch__batch="from baton.kv.segment import KVSegment\nfrom baton.core import query\nimport torch\n",
        engine__engine="from baton.batch.port import Batch\nfrom baton.engine.inbox import Inbox\n",
        engine__inbox="import baton.core.query\n",
        engine__client="",
        server__app="import fastapi\nfrom baton.engine.client import Client\n",
        cli__main="def serve():\n    from baton.compose import open_engine\n",
        compose="from baton.batch.batch import RectangleBatch\nfrom baton.cuda.graphs import capture\nimport torch\n",
        cuda__graphs="import triton\n",
    )
    assert broken_rules(good) == []


@pytest.mark.parametrize(
    ("place", "source", "complaint"),
    [
        ("kv.rectangle", "from baton.engine.engine import Engine", "up"),
        ("core.query", "from baton.kv.segment import KVSegment", "up"),
        ("kv.rectangle", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import baton.model", "up"),
        ("batch.batch", "from baton.native.library import kernels", "next door"),
        ("policy.baton", "from baton.kv.segment import KVSegment", "next door"),
        ("policy.baton", "from baton.kv.segment import KVSegment", "not the ground"),
        ("batch.batch", "from baton.cuda.graphs import capture", "open the GPU's wing"),
        ("engine.engine", "import baton.cuda", "open the GPU's wing"),
        ("server.app", "from baton import observe", "next door"),
        ("server.app", "from baton.engine.engine import Engine", "neither ground nor the engine's client"),
        ("cluster.far", "import ray", "only cluster/ray_*.py know Ray"),
        ("cluster.far", "from baton.engine.loop import EngineLoop", "neither a port of the engine nor a parcel"),
        ("engine.engine", "from baton.batch.batch import RectangleBatch", "a body, not a port"),
        ("engine.engine", "from ..batch import batch", "a body, not a port"),
        ("engine.engine", "from baton.model import probe", "past the batch"),
        ("engine.engine", "def go():\n    from baton.core.query import Query", "inside a function"),
        ("engine.engine", "class A:\n    async def go(self):\n        import baton.core.query", "inside a function"),
        ("engine.engine", "import importlib\nx = importlib.import_module('baton.server')", "by name"),
        ("engine.engine", "x = __import__('torch')", "by name"),
        ("engine.engine", "import torch", "not in this room"),
        ("engine.engine", "def go():\n    import torch.nn as nn", "not in this room"),
        ("native.library", "from baton.batch.batch import RectangleBatch", "next door"),
        ("batch.batch", "import transformers", "not in this room"),
        ("kv.segment", "from tokenizers import Tokenizer", "not in this room"),
        ("engine.engine", "from fastapi import FastAPI", "not in this room"),
        ("llm", "import torch", "not in this room"),
        ("core.query", "import numpy", "a third party on the ground"),
        ("kv.utils", "", "a drawer"),
        ("misc", "", "stands on no floor"),
        ("attic.box", "", "stands on no floor"),
        ("kv", '"""One line."""', "two lines"),
        ("kv", "", "two lines"),
        ("model", '"""What it is.\n\nAnd what else."""', "two lines"),
    ],
)
def test_a_broken_rule_is_noticed(place: str, source: str, complaint: str) -> None:
    others = small(
        batch__batch="", batch__rows="", engine__engine="", engine__client="", native__library="", observe=DOOR
    )
    assert broken_rules(others) == []
    broken = broken_rules({**others, f"baton.{place}": source})
    assert [line for line in broken if complaint in line and place.split(".")[0] in line], broken


def test_circles_are_noticed_also_when_a_function_or_a_type_check_hides_them() -> None:
    circle = small(
        kv__a="from baton.kv.b import x",
        kv__b="def later():\n    from baton.kv.c import y",
        kv__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import a",
    )
    assert [
        line for line in broken_rules(circle) if line == "a circle: baton.kv.a > baton.kv.b > baton.kv.c > baton.kv.a"
    ]


def test_only_the_command_line_may_import_inside_functions() -> None:
    deferred = "def go():\n    from baton.core.query import Query"
    assert not broken_rules(small(cli__main=deferred))
    assert broken_rules(small(llm=deferred))


def test_what_a_function_imports_is_not_reached_when_its_module_is() -> None:
    tree = small(cli__main="import click\ndef go():\n    import baton.kv.segment")
    assert "click" in reached(tree, "baton.cli.main")
    assert "torch" not in reached(tree, "baton.cli.main")
    assert "torch" in reached(small(cli__main="import baton.kv.segment"), "baton.cli.main")
