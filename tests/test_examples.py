"""Every example runs as a user would run it, and says what it is there to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from warm import run_warm

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "many_prompts.py": "tokens generated, 0.0% of the computed token slots idle",
    "own_policy.py": "first token after",
    "stream_two.py": "'cancelled': 1",
}

ELSEWHERE = {"ray_data.py"}
"""What has a test of its own, because it needs more than is installed everywhere: `tests/cluster/test_ray_data.py`."""


def test_each_example_is_known_here() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAYS, *ELSEWHERE}


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_runs_and_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 40
    done = run_warm([EXAMPLES / name])
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout
