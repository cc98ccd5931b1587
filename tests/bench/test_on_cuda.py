"""The measurement for CUDA, in small on the CPU: a GPU's minutes are not for finding mistakes in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.results import Results

ROOT = Path(__file__).parents[2]
PARTS = ("machine", "steps", "offline", "online", "memory", "kernel", "draws", "fills", "aside", "experts", "float8")


def test_every_part_runs_in_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.on_cuda", "--tiny", "--models", "llama-3.1-8b"]
    # Interpreted kernels have no times, and tests of their own: tests/model/test_triton_decode.py.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--parts", *PARTS, "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    measurements = json.loads((tmp_path / "cuda.json").read_text())
    parts = [part if isinstance(part, list) else [part] for part in measurements.values()]
    assert not [one for part in parts for one in part if "failed" in one]
    assert "llama-3.1-8b in float8: steps" in measurements
    offline = measurements["llama-3.1-8b: offline"]
    assert {one["policy"] for one in offline} >= {"baton", "baton compiled", "orca", "run_to_completion"}
    # All of them generated what was asked.
    assert len({one["tokens"] for one in offline}) == 1 and all(one["whole"] for one in offline)
    whole = {"kernel", "offline", "aside", "float8"}
    assert {part.split(": ")[-1] for part in measurements} >= {"steps compiled", "fills beside steps", *PARTS} - whole
    kept, forgotten = measurements["llama-3.1-8b: aside, preemption"]
    assert kept["lost rows"] and kept["whole"] and kept["tokens"] == forgotten["tokens"]
    assert all(one["MB"] for one in measurements["llama-3.1-8b: aside, prefixes"])
    at_once, mapped, *pages = measurements["llama-3.1-8b: memory"]
    assert mapped["memory"] == "mapped" and mapped["whole"]
    assert not mapped["failed queries"] and not mapped["out of memory"]
    assert mapped["rows at once"] > at_once["rows at once"] and all("map us" in one for one in pages)
    assert "| baton |" in (tmp_path / "cuda.md").read_text()


def test_what_a_stage_found_before_it_died_counts_and_others_go_on(tmp_path: Path) -> None:
    results = Results(tmp_path, budget=60.0)
    body = "import sys, os; open(sys.argv[1], 'w').write('{\"part\": {\"ms\": 1.5}}'); os.abort()"
    results.stage("first", [sys.executable, "-c", body, str(tmp_path / "first.json")])
    results.stage("second", [sys.executable, "-c", ""])
    assert results.by_part == {"part": {"ms": 1.5}, "first: ended": {"failed": "the process ended with -6"}}
    assert json.loads((tmp_path / "cuda.json").read_text()) == results.by_part
    assert Results(tmp_path, 60.0, "second").known("part") == {"ms": 1.5}
