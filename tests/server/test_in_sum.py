"""What all clients hold together is bounded: connections, bodies that are being read, answers that are not sent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect

import baton
from baton.core.limits import Limits
from baton.engine.held import Held
from baton.server.crowd import _SHORT, Crowd
from baton.server.stream import InSlices
from server.listening import listening
from server.scripted import ScriptedLoop, app_of
from server.wire import Wire, get, post
from service_level import Mute, until

BODY = b'{"prompt": "a"}'
TESTS = Path(__file__).parents[1]


@contextlib.contextmanager
def serving(loop: ScriptedLoop, **limits: Any) -> Iterator[str]:
    known = Limits(**limits)
    with listening(app_of(loop, known), known) as url:
        yield url


# Connections


def test_those_that_wait_make_room_and_the_one_that_waits_longest_first(loop: ScriptedLoop) -> None:
    with serving(loop, max_connections=3) as url, contextlib.ExitStack() as stack:
        wires = []
        for _ in range(3):
            wires.append(stack.enter_context(Wire(url)))
            assert wires[-1].send(get()).answer().status == 200
        assert wires[0].send(get()).answer().status == 200, "now it waits the shortest"
        newcomer = stack.enter_context(Wire(url))
        assert newcomer.send(get()).answer().status == 200
        assert wires[1].closed()
        for wire in (wires[0], wires[2], newcomer):
            assert wire.send(get()).answer().status == 200


def test_those_that_never_asked_make_room_too(loop: ScriptedLoop) -> None:
    with serving(loop, max_connections=3) as url, contextlib.ExitStack() as stack:
        for at in range(20):
            wire = stack.enter_context(Wire(url))
            if at % 2:
                wire.send(b"GET / HT")
        assert stack.enter_context(Wire(url)).send(get()).answer().status == 200


def test_who_works_is_left_alone_and_who_comes_hears_why(loop: ScriptedLoop) -> None:
    loop.held = True
    with serving(loop, max_connections=2) as url, contextlib.ExitStack() as stack:
        stream, slow = (stack.enter_context(Wire(url)) for _ in range(2))
        stream.send(post(b'{"prompt": "a", "stream": true}'))
        slow.send(post(BODY)[:-3])
        until(lambda: bool(loop.live))
        time.sleep(0.05)
        for _ in range(3):
            answer = stack.enter_context(Wire(url)).answer()
            assert answer.status == 503 and answer.headers["connection"] == "close"
            assert (answer.error["type"], answer.error["code"]) == ("server_error", "overloaded")
            assert int(answer.headers["retry-after"]) >= 1 and "--max-connections" in answer.error["message"]
        loop.held = False
        loop.release()
        assert slow.send(BODY[-3:]).answer().status == 200
        assert b"[DONE]" in stream.answer().body


def test_a_crowd_that_is_refused_costs_little(loop: ScriptedLoop, caplog: pytest.LogCaptureFixture) -> None:
    loop.held = True
    with serving(loop, max_connections=1) as url, contextlib.ExitStack() as stack:
        stream = stack.enter_context(Wire(url)).send(post(b'{"prompt": "a", "stream": true}'))
        until(lambda: bool(loop.live))
        refused = [stack.enter_context(Wire(url)) for _ in range(60)]
        until(lambda: sum(_closed(wire.socket) for wire in refused) >= 40)
        loop.release()
        assert b"[DONE]" in stream.answer().body
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def _closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


async def test_a_shortage_of_files_is_a_line_a_second_and_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    crowd, left = Crowd(100, lambda: now[0]), list[int]()
    for member in range(10):
        assert crowd.admit(member)
        crowd.waits(member, partial(left.append, member))
    crowd.works(0)
    loop = asyncio.get_running_loop()
    crowd.watch(loop)
    with caplog.at_level(logging.WARNING):
        for now[0] in (5.0, 5.2, 5.9, 6.1):
            for _ in range(500):
                loop.call_exception_handler({"message": _SHORT, "exception": OSError(errno.EMFILE, "full")})
        assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
        assert left == [1, 2, 3, 4, 5, 6, 7, 8], "those that wait, and never who works"
        assert not any(record.exc_info for record in caplog.records)
        loop.call_exception_handler({"message": "something else"})
        assert "something else" in caplog.text


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count files")
def test_few_file_descriptors() -> None:
    """With room for 64 files, and 150 connections that do nothing, a request is answered and nothing is logged."""
    path = os.pathsep.join([str(TESTS), str(Path(baton.__file__).parents[1])])
    command = f"ulimit -n 64; exec {sys.executable} {TESTS / 'server' / 'served.py'} -1 0"
    process = subprocess.Popen(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with contextlib.ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(Wire(url))
            for _ in range(5):
                assert httpx.get(f"{url}/health", timeout=20).status_code == 200
            busy = [stack.enter_context(Wire(url)).send(post(BODY, length=99)) for _ in range(60)]
            until(lambda: sum(_closed(wire.socket) for wire in busy) >= 10)
        until(lambda: httpx.get(f"{url}/health", timeout=20).status_code == 200)
        process.terminate()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out.strip(), err) == (0, "clean", "")
    finally:
        process.kill()
        process.wait()


# Bodies


def test_bodies_that_are_held_open_are_bounded_together_and_the_largest_goes(loop: ScriptedLoop) -> None:
    limits = {"max_body_bytes": 200_000, "max_bodies_bytes": 500_000}
    with serving(loop, **limits) as url, contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(url)) for _ in range(3)]
        for at, wire in enumerate(wires):
            wire.send(post(b" " * (150_000 + at), length=200_000))
        time.sleep(0.2)
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}).status_code == 200
        fourth = stack.enter_context(Wire(url)).send(post(b" " * 100_000, length=200_000))
        answer = wires[2].answer()
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert "--max-bodies-bytes" in answer.error["message"] and int(answer.headers["retry-after"]) >= 1
        for sent, wire in ((150_000, wires[0]), (150_001, wires[1]), (100_000, fourth)):
            assert wire.send(b" " * (200_000 - sent - len(BODY)) + BODY).answer().status == 200, "others go on"
    assert len(loop.queries) == 4


async def test_a_bodys_bytes_are_given_back_however_it_ends(loop: ScriptedLoop) -> None:
    limits = Limits(max_body_bytes=1000, max_bodies_bytes=1500, body_timeout=0.2)
    transport = httpx.ASGITransport(app=app_of(loop, limits), raise_app_exceptions=False)

    async def late() -> Any:
        yield b" " * 900
        await asyncio.sleep(1)

    headers = {"content-type": "application/json"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for _ in range(5):
            statuses = [
                (await http.post("/v1/completions", content=content, headers=headers)).status_code
                for content in (b" " * 1001, b" " * 1000, late(), json.dumps({"prompt": "a"}).encode())
            ]
            assert statuses == [413, 400, 408, 200]


# Answers


def _ends(loop: ScriptedLoop, mutes: list[Mute]) -> list[bytes]:
    """What each of them got when everything was released and finally read."""
    until(lambda: bool(loop.cancelled))
    loop.opening, loop.held = "", False
    loop.release()
    return [_read(mute) for mute in mutes]


def _read(mute: Mute) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := mute.socket.recv(2**20):
            parts.append(part)
    mute.close()
    return b"".join(parts)


@pytest.mark.parametrize("stream", [True, False])
def test_answers_that_nobody_reads_are_bounded_together(loop: ScriptedLoop, stream: bool) -> None:
    """Streams that are not read, and plain answers that are gathered: the largest is given up, others go on."""
    loop.held, loop.opening = True, "x" * 2**24
    with serving(loop, max_answers_bytes=18 * 2**20) as url:
        mutes = []
        for _ in range(2):  # the first gets the opening of the second too
            mutes.append(Mute(url, {"prompt": "a", "stream": stream}, buffer=2**17))
            until(lambda: len(loop.queries) == len(mutes))
        ends = _ends(loop, mutes)
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=20).status_code == 200
    given_up = [b"--max-answers-bytes" in end for end in ends]
    assert sorted(given_up) == [False, True]
    at = given_up.index(True)
    assert set(loop.cancelled) == {loop.queries[at].id}
    assert b"[DONE]" not in ends[at] and (stream or ends[at].startswith(b"HTTP/1.1 503"))
    assert len(ends[1 - at]) > 2**24 and (b"[DONE]" in ends[1 - at]) == stream


async def test_a_plain_answer_that_is_not_read_gives_way() -> None:
    held, read = Held(1_000_000), asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await read.wait()

    async def receive() -> Any:
        await read.wait()

    large, small = (
        asyncio.create_task(InSlices(b"x" * size, held)({"type": "http"}, receive, send)) for size in (600_000, 500_000)
    )
    await asyncio.wait([large, small], return_when=asyncio.FIRST_COMPLETED)
    assert large.done() and isinstance(large.exception(), ClientDisconnect)
    assert held.bytes == 500_000
    read.set()
    await small
    assert held.bytes == 0
