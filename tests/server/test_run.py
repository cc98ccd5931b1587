"""The server's process: its port, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import baton
from baton.cli import serve_engine
from baton.cli.serve import run_server
from baton.core.config import Config, make_config
from baton.core.errors import SettingError
from baton.core.settings import ServerSettings
from baton.server.run import Pulse, bind, url_of
from warm import WarmProcess

TESTS = Path(__file__).parents[1]
Start = Callable[[float, float], tuple[WarmProcess, str]]


@pytest.fixture
def start() -> Iterator[Start]:
    begun: list[WarmProcess] = []

    def run(megabytes: float, drain_seconds: float) -> tuple[WarmProcess, str]:
        command: list[str | Path] = [TESTS / "server" / "served.py", str(megabytes), str(drain_seconds)]
        process = WarmProcess(command, stdout=True)
        begun.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield run
    for process in begun:
        process.kill()
        process.wait()


def test_port_in_use_is_one_line() -> None:
    bound = bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    assert url_of(bound) == f"http://127.0.0.1:{port}"
    with pytest.raises(SettingError) as error:
        bind("127.0.0.1", port)
    assert error.value.message == f"port {port} on 127.0.0.1 is in use: choose another with --port"
    bound.close()
    bind("127.0.0.1", port).close()


def test_a_server_holds_its_port_from_before_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    def loading(config: Config, server: ServerSettings, bound: socket.socket, *given: object) -> None:
        with pytest.raises(SettingError) as error:
            bind("127.0.0.1", bound.getsockname()[1])
        messages.append(error.value.message)

    monkeypatch.setattr(serve_engine, "run_bound", loading)
    run_server(make_config({"port": 0}), 0.0)
    assert len(messages) == 1 and "is in use: choose another with --port" in messages[0]


def test_address_that_is_not_ours() -> None:
    with pytest.raises(SettingError, match=r"cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(SettingError, match="no such address"):
        bind("no.such.host.invalid", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_idle_server_ends_cleanly(start: Start, number: signal.Signals) -> None:
    process, url = start(-1, 0.0)
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 200
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "clean", "")


@pytest.fixture(autouse=True)
def hangups_are_heard() -> Iterator[None]:
    """Tests that nohup started ignore them, and so would the servers that they start."""
    ours = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, ours)


def _signal_with_a_stream(start: Start, *numbers: signal.Signals) -> tuple[int, str]:
    """How the process ends that gets these signals while a stream is open, and what the stream said."""
    process, url = start(0, 2.0)
    with httpx.Client(timeout=20) as other, httpx.Client(timeout=20) as client:
        sent = _send_in_background(
            client, client.build_request("POST", f"{url}/v1/completions", json={"prompt": "a", "stream": True})
        )
        while other.get(f"{url}/load").json()["rows_occupied"] == 0:
            pass
        began = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        text = sent().text
        assert time.monotonic() - began > 1.9, "the running query may finish"
    process.communicate(timeout=20)
    return process.wait(), text


def test_a_closed_terminal_drains_and_is_no_hurry(start: Start) -> None:
    """The kernel and the shell both send it."""
    status, text = _signal_with_a_stream(start, signal.SIGHUP, signal.SIGHUP)
    assert status == 0 and "shutting_down" in text


def test_a_hangup_that_is_ignored_stays_ignored(start: Start) -> None:
    ours = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does before it starts a process
    try:
        process, url = start(-1, 0.0)
    finally:
        signal.signal(signal.SIGHUP, ours)
    process.send_signal(signal.SIGHUP)
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 200
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_drain_cuts_at_its_timeout_and_a_second_signal_hurries(start: Start) -> None:
    process, url = start(0, 3600.0)
    with httpx.Client(timeout=20) as other, httpx.Client(timeout=20) as client:
        assert other.get(f"{url}/ready").status_code == 200
        request = client.build_request("POST", f"{url}/v1/completions", json={"prompt": "a", "stream": True})
        sent = _send_in_background(client, request)
        while other.get(f"{url}/load").json()["rows_occupied"] == 0:
            pass
        process.send_signal(signal.SIGTERM)
        while other.get(f"{url}/ready").status_code == 200:
            pass
        assert other.get(f"{url}/ready").json()["error"]["code"] == "shutting_down"
        assert process.poll() is None, "the running query may finish"
        process.send_signal(signal.SIGTERM)
        response = sent()
        assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "clean", "")


def test_client_that_reads_nothing_does_not_hold_up_the_end(start: Start) -> None:
    process, url = start(20, 0.0)
    body = '{"prompt": "a", "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out.strip(), err) == (0, "clean", "")


def _send_in_background(client: httpx.Client, request: httpx.Request) -> Callable[[], httpx.Response]:
    pool = ThreadPoolExecutor(1)
    return pool.submit(client.send, request).result


async def test_an_event_loop_that_stands_still_is_seen_from_another_thread() -> None:
    pulse = Pulse(asyncio.get_running_loop())
    time.sleep(0.1)
    assert pulse.silent() >= 0.1
    await asyncio.sleep(0.01)
    assert pulse.silent() < 0.1


def test_a_server_whose_event_loop_hangs_ends_itself() -> None:
    """In a process of its own: a handler never comes back."""
    path = os.pathsep.join([str(TESTS), str(Path(baton.__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, "-c", _HANGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with contextlib.suppress(httpx.HTTPError):
        httpx.get(f"{url}/ready", timeout=20)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 70
    assert "no sign of the event loop" in err and "this process ends with status 70" in err


_HANGS = """
import time
from baton.core.limits import Limits
from baton.server.run import Hang, bind, serve
from server.scripted import ScriptedLoop, app_of
loop = ScriptedLoop()
loop.not_ready = lambda: time.sleep(60)
serve(app_of(loop), bind("127.0.0.1", 0), drain=loop.drain, drain_timeout_seconds=0.0, limits=Limits(),
      hang=Hang(0.2, 0.5, lambda: 0.0), on_started=lambda url: print(url, flush=True))
"""
