"""baton: one running batch, re-batched at every iteration, for stock Hugging Face models.

May never import torch before `OMP_WAIT_POLICY` is set, nor do anything slow when it is imported.
"""

import importlib
import os
from typing import TYPE_CHECKING

# libgomp reads it once, when torch loads it. With active waiting, two compute threads and any other busy process fight
# over the cores: a decode step took 776 ms instead of 122.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Not at once, though: the next region of a forward comes within microseconds, and waking a thread takes a hundred
# (docs/lab-notes.md, 2026-11-21, "spinning a little").
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    from baton.core.query import SamplingParams
    from baton.llm import LLM, AsyncLLM

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "baton.llm", "AsyncLLM": "baton.llm", "SamplingParams": "baton.core.query"}


def __getattr__(name: str) -> object:
    """The public names, imported when first asked for: `baton --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'baton' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
