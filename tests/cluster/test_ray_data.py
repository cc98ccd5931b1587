"""The example with Ray Data: killed in the middle and started again, it answers the rest, and each line once."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

MISSING = [name for name in ("ray", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"there is no {', '.join(MISSING)}: pip install 'ray[data]'")
EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"
LINES = 200
PATIENCE_SECONDS = 400


def started(source: Path, target: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }
    return subprocess.Popen([sys.executable, str(EXAMPLE), str(source), str(target)], env=environment)


def answers(target: Path) -> list[dict[str, object]]:
    from pyarrow import parquet

    return [line for path in sorted(target.glob("*.parquet")) for line in parquet.read_table(path).to_pylist()]


def test_it_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    source, target = tmp_path / "questions.jsonl", tmp_path / "answers"
    lines = [{"id": number, "prompt": f"{number}, {number + 1}, "} for number in range(LINES)]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first = started(source, target)
    done, until = Path(f"{target}.done"), time.monotonic() + PATIENCE_SECONDS
    while len(list(done.glob("*.parquet"))) < 2:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    below = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    psutil.wait_procs(below, timeout=PATIENCE_SECONDS)
    before = len(answers(target))
    assert 0 < before < LINES
    assert started(source, target).wait(PATIENCE_SECONDS) == 0
    told = answers(target)
    # What was written and not yet written down as done may be there twice, and is the same.
    by_id: dict[object, object] = {}
    for line in told:
        assert by_id.setdefault(line["id"], line["answer"]) == line["answer"]
    assert by_id.keys() == {line["id"] for line in lines}
    assert len(told) < 2 * LINES - before
