"""`benchmarks/cpu/soak.py` for a few seconds: every kind of request and of attack, and all back at its base."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_soak_of_a_few_seconds_keeps_all_promises(tmp_path: Path) -> None:
    soak: list[str | Path] = [sys.executable, "-m", "benchmarks.cpu.soak", "--log", tmp_path / "log"]
    command = [*soak, "--minutes", "0.1", "--cases", "16", "--clients", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("kept all promises\n")
