"""`baton serve` with several models: real processes that load, die, come back and end with their server."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tiny_checkpoint import save_tiny
from warm import WarmProcess


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[WarmProcess, str]]:
    command = ["-m", "baton", "serve", f"a={folder}", f"b={folder}", "--load-on-demand", "--port", "0"]
    process = WarmProcess(command)
    assert process.stderr is not None
    address = next(match[0] for line in process.stderr if (match := re.search(r"http://[\d.:]+", line)))
    yield process, address
    children = psutil.Process(process.pid).children() if process.poll() is None else []
    process.kill()
    process.communicate()
    psutil.wait_procs(children, timeout=20)


def ask(address: str, name: str) -> str:
    body = {"model": name, "prompt": "x", "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{address}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def models_of(process: WarmProcess) -> list[psutil.Process]:
    """The processes of models; Python has one more that watches over what processes share."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_processes_of_models_come_and_go_with_their_server(server: tuple[WarmProcess, str]) -> None:
    process, address = server
    assert models_of(process) == []
    text = ask(address, "a")
    (first,) = models_of(process)
    first.kill()
    while httpx.get(f"{address}/v1/models").json()["data"][0]["state"] != "unloaded":
        time.sleep(0.05)
    assert ask(address, "a") == text == ask(address, "b")
    cards = httpx.get(f"{address}/v1/models").json()["data"]
    assert [(card["id"], card["state"], card["max_model_len"]) for card in cards] == [
        ("a", "loaded", 96),
        ("b", "loaded", 96),
    ]
    children = models_of(process)
    assert len(children) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert psutil.wait_procs(children, timeout=20)[1] == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_server_that_is_killed_leaves_no_model_behind(server: tuple[WarmProcess, str]) -> None:
    process, address = server
    ask(address, "b")
    children = models_of(process)
    process.kill()
    assert children and psutil.wait_procs(children, timeout=30)[1] == []
