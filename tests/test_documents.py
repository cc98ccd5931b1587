"""What documents point to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts.pages import PAGES

from families import FAMILIES, REFUSED

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("benchmarks/**/*.md"),
    ROOT / "src/baton/builtin/model/README.md",
]
COMMANDS = [ROOT / ".ci/run", *(path for path in (ROOT / "scripts").iterdir() if path.is_file())]
SOURCES = [
    path for folder in ("src", "tests", "benchmarks", "scripts", "examples") for path in (ROOT / folder).rglob("*.py")
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert not missing


def test_every_path_that_documents_and_sources_name_is_there() -> None:
    """Patterns such as `run_*.py` and `test_NAME.py` are no paths."""
    path = re.compile(r"(?<![\w./-])(?:benchmarks|scripts|examples|tests|docs|deploy)/[\w/.-]*\w(?![\w*{<])")
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in (*DOCUMENTS, *SOURCES, *COMMANDS)
        for name in path.findall(file.read_text())
        if not (ROOT / name).exists() and "NAME" not in name and file != Path(__file__)
    ]
    assert missing == []


def test_every_module_that_documents_and_sources_name_is_there() -> None:
    """By its name alone, or with folders: `rows.py`, `batch/rows.py`. Some belong to others, or are made by a test."""
    others = {"convert_hf_to_gguf.py", "cuda.py", "hello.py", "own.py"}
    there = {f"/{path.relative_to(ROOT)}" for path in (*SOURCES, ROOT / "hatch_build.py")}
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in (*DOCUMENTS, *SOURCES)
        for name in re.findall(r"(?<![\w./*{-])\w[\w/]*\.py\b", file.read_text())
        if name not in others and "NAME" not in name and not any(path.endswith(f"/{name}") for path in there)
    ]
    assert missing == []


def test_every_benchmark_that_documents_call_has_the_flags_they_give() -> None:
    """The flags are read in the script and in what all scripts share; running `--help` of each would load torch."""
    command = re.compile(r"-m (benchmarks(?:\.\w+)+)((?:[^`\n]|\n(?=\S))*)")
    shared = (ROOT / "benchmarks/report.py").read_text()
    calls = [call for file in (*DOCUMENTS, *SOURCES) for call in command.findall(file.read_text())]
    wrong = []
    for module, rest in calls:
        script = ROOT / f"{module.replace('.', '/')}.py"
        known = script.read_text() + shared if script.exists() else ""
        flags = re.findall(r"(?<=\s)--(?!help)[a-z][\w-]*", rest.split("] [-- ")[0])
        wrong += [f"{module} {flag}" for flag in flags if f'"{flag}"' not in known] or ([] if known else [module])
    assert len(calls) > 50 and wrong == []


@pytest.mark.parametrize("readme", sorted((ROOT / "benchmarks").rglob("README.md")), ids=lambda path: path.parent.name)
def test_the_list_of_a_folder_of_benchmarks_has_a_line_for_each_script(readme: Path) -> None:
    listed = re.findall(r"^- `([\w.]+\.py)`: .", readme.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in readme.parent.glob("*.py") if path.name != "__init__.py")


def test_no_line_names_a_folder_of_one_machine_or_how_the_work_went() -> None:
    """A stranger must be able to repeat each command, and a date with what was measured is enough."""
    named = re.compile(rf"/(?:work|tmp/bash_jobs|farm)/|(?<!\w){re.escape('../')}shared/|\b[Ss]itting\b")
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in (*DOCUMENTS, *SOURCES)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if named.search(line) and path != Path(__file__)
    ]
    assert lines == []


def test_no_line_cites_a_document_that_is_not_here() -> None:
    known = {path.name for path in ROOT.rglob("*.md")} | {"AGENTS.md"}
    of_the_site = ROOT / "scripts/site_pages.py"  # names pages that are there when the site is built
    cited = re.compile(r"\b([\w-]+\.md)\b")
    cited_names = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (*DOCUMENTS, *SOURCES)
        for name in cited.findall(path.read_text())
        if name not in known and path not in (Path(__file__), of_the_site)
    ]
    assert cited_names == []


def test_the_page_of_models_names_every_family_that_is_tested() -> None:
    page = (ROOT / "docs/models.md").read_text()
    assert [family.name for family in FAMILIES if f"| {family.name} |" not in page] == []
    assert [name for name in REFUSED if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_that_is_made_from_the_code_is_as_made(page: Path) -> None:
    assert page.read_text() == PAGES[page](page.read_text()), "scripts/docs writes it"


def test_the_changelog_keeps_its_form() -> None:
    """Each version has known kinds of change, each once, and every change is a line of one of them."""
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    _, *versions = re.split(r"^## \[", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert re.match(r"Unreleased\]\n", versions[0])
    for version in versions:
        head, *parts = re.split(r"^### ", version, flags=re.MULTILINE)
        names = [part.split("\n")[0] for part in parts]
        assert "- " not in head and names == [kind for kind in kinds if kind in names]
        assert all(re.fullmatch(r"\w+\n\n(?:- .*\n(?:  .*\n)*)+\n?", part) for part in parts)


def test_the_tour_is_read_in_ten_minutes() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().split()) <= 1500
