"""The files deployed beside baton use metrics that exist, and their rules do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from baton.observe.catalog import FAMILIES, Kind

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
FILES = [path for path in DEPLOY.rglob("*") if path.suffix in (".yml", ".json")]


def known() -> set[str]:
    names = {family.name for family in FAMILIES}
    for family in FAMILIES:
        if family.kind is Kind.HISTOGRAM:
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_metric_that_is_named_is_on_the_page(path: Path) -> None:
    named = set(re.findall(r"\bbaton_[a-z_]+\b", path.read_text()))
    assert named - known() == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool (Debian's package prometheus has it)")
def test_the_rules_pass_their_tests() -> None:
    for verb in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        ran = subprocess.run(["promtool", *verb], cwd=DEPLOY / "prometheus", capture_output=True, check=False)
        assert ran.returncode == 0, ran.stdout.decode() + ran.stderr.decode()
