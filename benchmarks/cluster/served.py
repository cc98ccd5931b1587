"""`baton serve` in a process of its own, for benchmarks of several engines."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Server:
    """A server that is ready. `log`: what it has said."""

    url: str
    process: psutil.Process
    log: Path

    def engines(self) -> list[psutil.Process]:
        """The processes of its engines that live."""
        return [one for one in self.process.children(recursive=True) if is_engine(one)]


def is_engine(process: psutil.Process) -> bool:
    try:
        words = " ".join(process.cmdline())
        return "ServeReplica" in words and "engine" in words and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_on_sigterm() -> None:
    """SIGTERM ends this process as Ctrl-C does, so that it ends what it has started."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextlib.contextmanager
def serving(*words: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Serves the built-in model, or what the words say. Raises RuntimeError if the server does not start."""
    log = Path(tempfile.mkstemp(suffix=".log", prefix="baton-")[1])
    command = [sys.executable, "-m", "baton", "serve", "--port", "0", *words]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with log.open("w") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=lines, env={**kept, **(environment or {})})
    try:
        while " http://" not in (said := log.read_text()) or "\nready" not in said:
            if process.poll() is not None:
                raise RuntimeError(said)
            time.sleep(0.2)
        url = next(word for word in said.split("\nready")[1].split() if word.startswith("http://"))
        yield Server(url, psutil.Process(process.pid), log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
