"""Processes that begin with all that baton imports, as forks of one that has: an import of torch takes seconds.

They are otherwise processes as a user starts them, with arguments, an environment and pipes of their own. That `python
-m baton` starts from nothing is shown elsewhere (scripts/smoke.py, tests/test_cli.py).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, TextIO

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["baton.builtin.model", "baton.cli.serve", "baton.cli.batch", "baton.measure.trials"])


class WarmProcess:
    """Like `subprocess.Popen(["python", *arguments], text=True)`; the output that is not a pipe is nowhere.

    `arguments`: as Python takes them: `-m MODULE`, `-c CODE` or a file, and what follows. `environment` is added.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        stdout: bool = False,
        stderr: bool = True,
        together: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        ours: dict[int, TextIO] = {}
        theirs = {}
        for number, wanted in ((0, True), (1, stdout), (2, stderr and not together)):
            reading, writing = os.pipe() if wanted else (os.open(os.devnull, os.O_RDWR), -1)
            mine, given = (writing, reading) if number == 0 or not wanted else (reading, writing)
            theirs[number] = given
            if mine >= 0:
                ours[number] = os.fdopen(mine, "w" if number == 0 else "r", buffering=1)
        if together:
            os.dup2(theirs[1], theirs[2])
        self.stdin, self.stdout, self.stderr = ours[0], ours.get(1), ours.get(2)
        given_env = {**os.environ, **(environment or {})}
        files = [DupFd(theirs[number]) for number in range(3)]
        no_hangups = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        body = (list(map(str, arguments)), given_env, os.getcwd(), files, no_hangups)
        self._process = _forks.Process(target=_begin, args=body)
        self._process.start()
        for fd in theirs.values():
            os.close(fd)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a warm process", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def communicate(self, given: str = "", timeout: float | None = None) -> tuple[str, str]:
        """What it still wrote, until its end."""
        read = {1: "", 2: ""}

        def drain(number: int, source: TextIO) -> None:
            read[number] = source.read()

        pipes = [(number, pipe) for number, pipe in ((1, self.stdout), (2, self.stderr)) if pipe is not None]
        drains = [threading.Thread(target=drain, args=pipe, daemon=True) for pipe in pipes]
        for one in drains:
            one.start()
        with self.stdin:
            self.stdin.write(given)
        self.wait(timeout)
        for one in drains:
            one.join(timeout)
        return read[1], read[2]


def run_warm(
    arguments: Sequence[str | Path],
    *,
    given: str = "",
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run`, with the output captured as text."""
    process = WarmProcess(arguments, stdout=True, environment=environment)
    try:
        out, err = process.communicate(given, timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(list(arguments), process.wait(), out, err)


def _begin(
    arguments: list[str], environment: Mapping[str, str], folder: str, files: Sequence[Any], no_hangups: bool
) -> None:
    """In the fork. `no_hangups`: the process that asked for it ignores them, which would be inherited."""
    for number, file in enumerate(files):
        given = file.detach()
        os.dup2(given, number)
        os.close(given)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    path = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*path, *(one for one in sys.path if one not in path)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_IGN if no_hangups else signal.SIG_DFL)
    how, rest = arguments[0], arguments[1:]
    if how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "-c", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [how, *rest]
        sys.path.insert(0, str(Path(how).parent))
        runpy.run_path(how, run_name="__main__")
