"""Exactness: the tests that need a GPU, and how far a model's logits are from its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baton.loader.loaded import Loaded
from baton.loader.selfcheck import check_texts, self_check, stock_logits

from .models import stock

ROOT = Path(__file__).parents[2]


def exact(tiny: bool, seconds: float) -> list[dict[str, Any]]:
    """The tests that need a GPU, file by file: first light's families in float32 against `generate`, then kernels."""
    began, results = time.perf_counter(), []
    for name in ("cuda", "packed", "cuda_aside", "triton_decode"):
        left = seconds - (time.perf_counter() - began)
        results.append({"tests": name, **_tested(f"tests/model/test_{name}.py", tiny, max(1.0, left))})
    return results


def _tested(file: str, tiny: bool, seconds: float) -> dict[str, Any]:
    how = ["--collect-only"] if tiny else ["-n", "12", "--tb=line", "-rfE"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", *how, file]
    with tempfile.TemporaryFile("w+") as out:
        try:
            code: int | str = subprocess.run(command, stdout=out, stderr=out, cwd=ROOT, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = f"not done after {seconds:.0f} s"
        out.seek(0)
        lines = out.read().strip().splitlines()
    return {"rc": code, "said": lines[-1] if lines else "nothing", "failures": _failures(lines)}


def _failures(lines: Sequence[str]) -> str:
    failures = (line[:200] for line in lines if line.startswith(("FAILED", "ERROR", "E  ")) or "Error" in line)
    return "; ".join(failures)[:3000]


def logits_error(loaded: Loaded, tolerance: float | None = None) -> dict[str, Any]:
    """How far our logits are from the model's own, relative to the largest. Raises LoadError beyond the tolerance."""
    texts = check_texts(loaded.model)
    with stock(loaded.model):
        expected = stock_logits(loaded.model, texts)
    return {
        "logits differ by": self_check(loaded.model, loaded.forward, texts, expected, tolerance=tolerance),
        "dtype": str(loaded.dtype),
        "how": loaded.description,
    }
