"""Exactness: the tests that need a GPU, and how far a model's logits are from its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baton.model.load import Loaded
from baton.model.selfcheck import check_texts, self_check, stock_logits

from .models import stock

ROOT = Path(__file__).parents[2]


def exact(tiny: bool, seconds: float) -> dict[str, Any]:
    """The tests that need a GPU: kernels against float64, and first light's families in float32 against `generate`."""
    files = [f"tests/model/test_{name}.py" for name in ("triton_decode", "packed", "cuda", "cuda_aside")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "-n", "8", *files]
    if tiny:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--collect-only", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=seconds)
    lines = done.stdout.strip().splitlines()
    return {"rc": done.returncode, "said": lines[-1] if lines else done.stderr[-300:], "failures": _failures(lines)}


def _failures(lines: Sequence[str]) -> str:
    return "; ".join(line[:200] for line in lines if line.startswith(("FAILED", "ERROR", "E  ")))[:2000]


def logits_error(loaded: Loaded, tolerance: float | None = None) -> dict[str, Any]:
    """How far our logits are from the model's own, relative to the largest. Raises LoadError beyond the tolerance."""
    texts = check_texts(loaded.model)
    with stock(loaded.model):
        expected = stock_logits(loaded.model, texts)
    return {
        "logits differ by": self_check(loaded.model, loaded.forward, texts, expected, tolerance=tolerance),
        "dtype": str(loaded.dtype),
        "how": loaded.forward.description,
    }
