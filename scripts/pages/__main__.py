"""`scripts/docs [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.pages import PAGES

ROOT = Path(__file__).parents[2]


def main() -> None:
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: scripts/docs [--check]")
    stale = []
    for page, text in PAGES.items():
        old = page.read_text() if page.exists() else ""
        if (new := text(old)) != old:
            stale.append(str(page.relative_to(ROOT)))
            if not sys.argv[1:]:
                page.write_text(new)
    if sys.argv[1:] and stale:
        sys.exit(f"not as scripts/docs makes them: {', '.join(stale)}")
    print("\n".join(f"wrote {page}" for page in stale) or "every page is as made")


if __name__ == "__main__":
    main()
