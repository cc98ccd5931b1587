"""The pages that are made from the code: one module each, with its `PAGE` and its `text`.

May never import torch: pages are checked in a second.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.pages import dashboard, fields, limits, metrics, models, sampling, settings

PAGES: dict[Path, Callable[[str], str]] = {
    module.PAGE: module.text for module in (dashboard, metrics, models, sampling, settings)
}
PAGES[limits.PAGE] = lambda page: fields.text(limits.text(page))
"""`text` takes the page as it is, because some pages are made only in part."""
