"""A hook of mkdocs.yml: pages that lie outside docs/ join the site, and links that leave docs/ lead to them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Pages of the site, by their paths in the repository. The README is the first page.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "src/baton/builtin/model/README.md": "built-in-model.md",
    "tests/clients/README.md": "clients.md",
}
LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    # Other files of the repository that pages link to are in the site as they are.
    for file in files.documentation_pages():
        source = _source(file.src_uri)
        for link in LINK.findall(file.content_string):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
            target = _site(path)
            if target == path and (ROOT / path).is_file() and target not in files.src_uris:
                files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source, here = _source(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[0]))
        return posixpath.relpath(_site(path), here or ".")

    return LINK.sub(link, markdown)


def _source(page: str) -> str:
    """Where a page of the site is in the repository."""
    return next((source for source, name in PAGES.items() if name == page), f"docs/{page}")


def _site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return PAGES.get(path, path.removeprefix("docs/"))
