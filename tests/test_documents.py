"""What documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import limits_page
import sampling_page
from families import FAMILIES, REFUSED

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "src/baton/builtin/model/README.md"]
SOURCES = [
    path for folder in ("src", "tests", "benchmarks", "scripts", "examples") for path in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_every_script_that_documents_name_is_there() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    named = set(re.findall(r"\b(?:benchmarks|scripts|examples|tests)/[\w/]+\.(?:py|md)", text))
    assert named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_no_line_names_a_folder_of_one_machine_or_how_the_work_went() -> None:
    """A stranger must be able to repeat each command, and a date with what was measured is enough."""
    named = re.compile(rf"/(?:work|tmp/bash_jobs|farm)/|(?<!\w){re.escape('../')}shared/|\b[Ss]itting\b")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (*DOCUMENTS, *SOURCES)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if named.search(line) and path != Path(__file__)
    ]
    assert found == []


def test_no_line_cites_a_document_that_is_not_here() -> None:
    known = {path.name for path in ROOT.rglob("*.md")} | {"AGENTS.md"}
    cited = re.compile(r"\b([\w-]+\.md)\b")
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*DOCUMENTS, *SOURCES)
        for name in cited.findall(path.read_text())
        if name not in known and path != Path(__file__)
    ]
    assert found == []


def test_the_page_of_models_names_every_family_that_is_tested() -> None:
    page = (ROOT / "docs/models.md").read_text()
    assert [family.name for family in FAMILIES if f"| {family.name} |" not in page] == []
    assert [name for name in REFUSED if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("page", [limits_page, sampling_page], ids=lambda page: page.__name__)
def test_a_table_in_the_documents_is_that_of_the_code(page: ModuleType) -> None:
    assert page.PAGE.read_text() == page.with_table(page.PAGE.read_text()), f"python tests/{page.__name__}.py writes it"
