"""Clients that wait long, read slowly or not at all: they get errors, unread bytes are bounded, others go on."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from baton.core.errors import QueueFull
from baton.core.events import Update
from baton.core.limits import Limits
from baton.server.run import bind, server_config, url_of
from server.scripted import ScriptedLoop, app_of
from service_level import Mute, until

Serve = Callable[..., str]
with_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc to count connections and files")


@pytest.fixture
def serve(loop: ScriptedLoop) -> Iterator[Serve]:
    """Serves the scripted engine under other limits. Yields the address."""
    begun: list[tuple[uvicorn.Server, threading.Thread]] = []

    def run(**limits: Any) -> str:
        held = Limits(**limits)
        bound = bind("127.0.0.1", 0)
        server = uvicorn.Server(server_config(app_of(loop, limits=held), held))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        begun.append((server, thread))
        thread.start()
        until(lambda: server.started)
        return url_of(bound)

    yield run
    for server, thread in begun:
        server.should_exit = server.force_exit = True
        thread.join(10)


def stream(http: httpx.Client, url: str, **more: Any) -> Any:
    return http.stream("POST", f"{url}/v1/completions", json={"prompt": "a", "stream": True, **more})


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20) as client:
        yield client


# Comments


def test_who_waits_for_a_first_token_is_sent_comments(loop: ScriptedLoop, serve: Serve, http: httpx.Client) -> None:
    loop.held = True
    with stream(http, serve(stream_comment=0.05)) as response:
        lines = response.iter_lines()
        assert response.status_code == 200
        assert [next(lines) for _ in range(4)] == [": waiting", "", ": waiting", ""]
        loop.release()
        rest = [line for line in lines if line.startswith("data: ")]
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in rest[:-1]) == "hello"
    assert rest[-1] == "data: [DONE]"


def test_who_waits_between_tokens_is_sent_comments(loop: ScriptedLoop, serve: Serve, http: httpx.Client) -> None:
    loop.held, loop.opening = True, "h"
    with stream(http, serve(stream_comment=0.05)) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: "), "no comment before what is there"
        assert [next(lines) for _ in range(5)] == ["", ": waiting", "", ": waiting", ""]
        loop.release()
        assert list(lines)[-2:] == ["data: [DONE]", ""]


def test_no_comment_before_its_time(loop: ScriptedLoop, serve: Serve, http: httpx.Client) -> None:
    loop.held = True
    url = serve(stream_comment=30.0)
    threading.Timer(0.2, loop.release).start()
    with stream(http, url) as response:
        assert not any(line.startswith(":") for line in response.iter_lines())


def test_failure_behind_a_comment_is_an_event_and_before_it_a_status(
    loop: ScriptedLoop, serve: Serve, http: httpx.Client
) -> None:
    loop.held, loop.fail_after = True, 0
    url = serve(stream_comment=0.2)
    with stream(http, url) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        loop.release()
        told = [line for line in lines if line]
    assert json.loads(told[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    loop.held = False
    assert http.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True}).status_code == 500
    loop.refuse = QueueFull("full")
    assert http.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True}).status_code == 429


@pytest.mark.parametrize("begun", [False, True])
def test_time_limit_has_its_status_and_in_a_stream_its_event(
    begun: bool, loop: ScriptedLoop, serve: Serve, http: httpx.Client
) -> None:
    loop.held, loop.opening = True, "h" if begun else ""
    url = serve()
    why = "the query waited 61.0 s for a row, the limit is 60 s (--queue-timeout)"

    def expire() -> None:
        assert loop.came.wait(10)
        (query, deliver), *_ = loop.live.values()
        deliver([Update(query.id, finish_reason="expired", error=why)])

    told = {"message": why, "type": "timeout_error", "param": None, "code": "request_timeout"}
    if begun:
        with stream(http, url) as response:
            lines = response.iter_lines()
            assert response.status_code == 200 and next(lines).startswith("data: ")
            expire()
            assert json.loads([line for line in lines if line][-1].removeprefix("data: "))["error"] == told
    else:
        threading.Thread(target=expire).start()
        response = http.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True})
        assert (response.status_code, response.json()["error"]) == (504, told)


# Readers that do not read


def test_reader_that_does_not_read_is_cut_off_and_its_query_cancelled(loop: ScriptedLoop, serve: Serve) -> None:
    loop.held, loop.opening = True, "x" * 2**23
    url = serve(send_timeout=0.3)
    mute = Mute(url, {"prompt": "a", "stream": True})
    assert loop.came.wait(10)
    (name,) = list(loop.live)
    loop.say("y")  # it hangs in what came before
    assert loop.cancels.wait(10)
    assert loop.cancelled == [name]
    assert b"[DONE]" not in mute.read_to_its_end(), "the connection is closed"
    mute.close()


@with_proc
def test_plain_answer_that_is_not_read_is_cut_off(loop: ScriptedLoop, serve: Serve) -> None:
    url = serve(send_timeout=0.3)
    loop.held, loop.opening = True, "x" * 2**23
    mute = Mute(url, {"prompt": "a"})
    assert loop.came.wait(10)
    loop.release()
    before = time.monotonic()
    while _established(mute):
        assert time.monotonic() - before < 10
        time.sleep(0.02)
    assert len(mute.read_to_its_end()) < 2**23
    mute.close()


def _established(mute: Mute) -> bool:
    """Whether the server's end of the connection is open still."""
    with open("/proc/net/tcp") as table:
        port = f":{mute.socket.getpeername()[1]:04X}"
        mine = f":{mute.socket.getsockname()[1]:04X}"
        return any(f[1].endswith(port) and f[2].endswith(mine) and f[3] == "01" for f in map(str.split, table))


def test_what_is_unread_is_bounded_and_the_reader_hears_why(loop: ScriptedLoop, serve: Serve) -> None:
    loop.held, loop.opening = True, "x" * 2**23
    url = serve(max_unread_bytes=100_000)
    mute = Mute(url, {"prompt": "a", "stream": True})
    assert mute.socket.recv(12) == b"HTTP/1.1 200"
    (name,) = list(loop.live)
    for _ in range(3):
        loop.say(*["y" * 50] * 200)
    assert loop.cancels.wait(10), "its query ends at once, and not when the connection does"
    said = mute.read_to_its_end()
    assert set(loop.cancelled) == {name}
    last = said.rstrip().removesuffix(b"\r\n0").split(b"data: ")[-1]
    error = json.loads(last[: last.index(b"}}") + 2])["error"]
    assert (error["code"], b"[DONE]" in said) == ("request_timeout", False)
    assert "--max-unread-bytes" in error["message"]
    mute.close()


def test_slow_reader_gets_all_of_it(loop: ScriptedLoop, serve: Serve) -> None:
    loop.answer = "hello" * 10
    url = serve(send_timeout=0.5)
    mute = Mute(url, {"prompt": "a", "stream": True, "max_tokens": 50})
    said = b""
    while b"[DONE]" not in said:
        said += mute.socket.recv(512)
        time.sleep(0.002)
    assert said.count(b"data: ") == 52
    mute.close()


# Nothing is left over


@with_proc
def test_clients_that_vanish_leave_nothing(loop: ScriptedLoop, serve: Serve, http: httpx.Client) -> None:
    url = serve()
    loop.held, loop.opening = True, "h"
    http.get(f"{url}/health")
    gc.collect()
    files, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for wave in range(3):
        mutes = [Mute(url, {"prompt": ["a", "b"], "stream": bool(i % 2)}) for i in range(40)]
        until(lambda: len(loop.live) == 80)
        for mute in mutes:
            mute.close()
        until(lambda: not loop.live)
        assert len(set(loop.cancelled)) == len(loop.cancelled) == 80 * (wave + 1), "each is cancelled once"
    until(lambda: len(os.listdir("/proc/self/fd")) <= files)
    assert threading.active_count() <= threads + 24, "threads are kept for later, and no more of them come"
    loop.held = False
    assert http.post(f"{url}/v1/completions", json={"prompt": "b"}).status_code == 200


async def test_streams_leave_no_task(loop: ScriptedLoop) -> None:
    """In this process and on this event loop: those that end, those that fail and those whose client leaves."""
    before = asyncio.all_tasks()
    transport = httpx.ASGITransport(app=app_of(loop), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for stream in (True, False):
            assert (await client.post("/v1/completions", json={"prompt": "a", "stream": stream})).status_code == 200
            loop.fail_after = 2
            await client.post("/v1/completions", json={"prompt": "a", "stream": stream})
            loop.fail_after, loop.held = None, True
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.post("/v1/completions", json={"prompt": "a", "stream": stream})
            loop.held = False
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
