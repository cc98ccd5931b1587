"""Every variant of the kernels that this machine runs, and what a fresh process says of the library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from baton.native.library import VARIANTS, variants
from baton.native.library import kernels as kernels_of

SAY = "from baton.native.library import describe, best, library; print(describe(), best() is None, library is None)"


@pytest.fixture(params=VARIANTS)
def kernels(request: pytest.FixtureRequest) -> int:
    """The address of one variant's table; the test runs once for each."""
    if request.param not in variants():
        pytest.skip(f"no library, or this machine does not run {request.param}")
    address = kernels_of(request.param)
    assert address is not None
    return address


@pytest.fixture
def ask() -> Callable[..., str]:
    """Runs a program with these variables set. Returns its last line; if it fails, its error's last line."""

    def answer(program: str = SAY, **environment: str) -> str:
        others = {name: value for name, value in os.environ.items() if name != "BATON_NATIVE"}
        done = subprocess.run(
            [sys.executable, "-c", program], env={**others, **environment}, capture_output=True, text=True, timeout=60
        )
        return (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]

    return answer
