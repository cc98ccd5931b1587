"""A short run of schemathesis over the description, in this process; at length: tests/clients/schemathesis.sh."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from baton.core.limits import Limits
from baton.jobs.folder import Folder
from server.scripted import ScriptedLoop, app_of

schemathesis = pytest.importorskip("schemathesis", minversion="4.0")

CLIENTS = Path(__file__).parents[1] / "clients"
sys.path.insert(0, str(CLIENTS))
import schemathesis_checks  # noqa: E402  (registers its check)

config = schemathesis.Config.from_path(CLIENTS / "schemathesis.toml")
config.projects.default.generation.update(max_examples=5)
kept = tempfile.TemporaryDirectory()
folder = Folder(Path(kept.name), Limits())
schema = schemathesis.openapi.from_asgi("/openapi.json", app_of(ScriptedLoop(), batches=folder), config=config)


@schema.parametrize()
def test_what_the_description_says_holds(case: schemathesis.Case) -> None:  # type: ignore[name-defined]
    case.call_and_validate(additional_checks=[schemathesis_checks.refused_for_a_reason])
