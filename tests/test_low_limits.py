"""Starts at a limit of the machine: one line that says what to do, never an abort, a hang or a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

OTHER_USER = "54399"
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("prlimit"),
    reason="only root can become a user whose processes are counted from none, with setpriv and prlimit",
)


def limited(*command: str) -> list[str]:
    """With the rights of root to read files, and the limits of another user."""
    return [
        *("setpriv", "--ruid", OTHER_USER, "--euid", "0", "--clear-groups"),
        *("--bounding-set=-sys_resource,-sys_admin", "prlimit", "--core=0"),
        *command,
    ]


@needs_root
def test_a_server_without_threads_says_so_and_ends() -> None:
    command = limited("--nproc=6", sys.executable, "-m", "baton", "serve", "--port", "0", "--threads", "2")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "terminate" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("baton: an engine with 2 computing threads takes 39 threads, and this process can start ")
