"""`baton serve --replicas`: one command starts Ray, serves, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import re
import signal
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from warm import WarmProcess

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="there is no Ray")
PATIENCE_SECONDS = 400  # a machine may be busy


class Command:
    """The command, its words on stderr, and all processes below it."""

    def __init__(self, *more: str) -> None:
        words = ["-m", "baton", "serve", "--port", "0", "--replicas", "1", "--replica-cpus", "1", *more]
        self.process = WarmProcess(words)
        self.said = ""

    def url(self) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"http://[0-9.:]+", line):
                return found[0]
        raise AssertionError(self.said)

    def all(self) -> list[psutil.Process]:
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]


@pytest.fixture(scope="module", autouse=True)
def left_by_a_killed_front() -> list[psutil.Process]:
    """All that a front has started which was killed.

    Two agents of Ray's look for its store for a minute before they end, in which the other tests run.
    """
    command = Command()
    command.url()
    everything = command.all()
    command.process.kill()
    return everything


@pytest.fixture
def command() -> Iterator[Command]:
    command = Command("--drain-timeout", "20")
    yield command
    for process in command.all() if command.process.poll() is None else []:
        process.kill()
    command.process.wait()


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_SECONDS)
    return not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]


def test_it_ends_with_all_that_it_started(command: Command) -> None:
    url = command.url()
    body = {"prompt": "Hello", "max_tokens": 200, "ignore_eos": True, "stream": True}
    everything = command.all()
    assert len(everything) > 4
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=PATIENCE_SECONDS) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        assert "replica" in httpx.get(f"{url}/live/data", timeout=PATIENCE_SECONDS).json()
        command.process.send_signal(signal.SIGTERM)
        # What is live ends as it would have.
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert command.process.wait(PATIENCE_SECONDS) == 0
    assert gone(everything)


def test_what_an_engine_refuses_is_said_in_one_line() -> None:
    began = time.monotonic()
    command = Command("--kv-memory", "1KB")
    _, said = command.process.communicate(timeout=PATIENCE_SECONDS)
    assert command.process.returncode in (1, 2), time.monotonic() - began
    assert "cannot hold one query" in said.splitlines()[-1] and "Traceback" not in said


def test_ray_ends_with_a_front_that_is_killed(left_by_a_killed_front: list[psutil.Process]) -> None:
    assert len(left_by_a_killed_front) > 4 and gone(left_by_a_killed_front)
