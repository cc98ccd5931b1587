"""Queries of a real engine behind HTTP: their time limits, clients that leave or do not read, and the end of all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service_level import ROWS, Mute, Served, Streams, a_query, live, serving, until

ENDLESS = 1500
"""More tokens than any test waits for."""


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with serving() as run:
        yield run


# Time limits


async def test_query_that_takes_too_long_is_cut_and_says_so(serve: Callable[..., Served]) -> None:
    served = serve({"query_timeout": 1.0})
    async with Streams(served.url) as streams:
        (task,) = await streams.begin(a_query(0, ENDLESS))
        served.faults.add("iteration_slow@1:1.2")
        cut = await task
        served.faults.add("iteration_slow@9:1.2")
        plain = await streams.http.post("/v1/completions", json=a_query(1, ENDLESS))
    assert cut.status == 200 and cut.text and cut.error is not None and not cut.done
    for error in (cut.error, plain.json()["error"]):
        assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
        assert "the limit is 1 s (--query-timeout)" in error["message"]
    assert plain.status_code == 504
    await asyncio.to_thread(served.check_promises)
    assert served.client.stats().outcomes["expired"] == 2


async def test_query_that_waits_too_long_gets_its_status_and_who_runs_goes_on(serve: Callable[..., Served]) -> None:
    served = serve({"queue_timeout": 1.0})
    text = await asyncio.to_thread(served.alone, a_query(0, 300))
    async with Streams(served.url) as streams:
        running = await streams.begin(*(a_query(0, 300) for _ in range(ROWS)))
        served.faults.add("iteration_slow@1:1.5")
        late = [asyncio.create_task(streams.ask(a_query(1))) for _ in range(2)]
        plain = await streams.http.post("/v1/completions", json=a_query(2))
        answers = [await task for task in running]
        expired = [(answer.status, answer.error) for answer in await asyncio.gather(*late)]
    for status, error in (*expired, (plain.status_code, plain.json()["error"])):
        assert status == 504 and error is not None and error["code"] == "request_timeout"
        assert "the limit is 1 s (--queue-timeout)" in error["message"]
    assert all(answer.right and answer.text == text for answer in answers)
    await asyncio.to_thread(served.check_promises)


# Clients that leave


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count files")
async def test_clients_that_leave_at_any_moment_leave_nothing(serve: Callable[..., Served]) -> None:
    """While they wait, while their prompt is computed, while they run; streamed and plain; again and again."""
    served = serve()
    text = await asyncio.to_thread(served.alone, a_query(3))
    before = len(os.listdir("/proc/self/fd"))
    for wave in range(4):
        mutes = [Mute(served.url, a_query(i, ENDLESS, stream=bool(i % 2), n=1 + i % 3)) for i in range(12)]
        await asyncio.to_thread(until, lambda: live(served.client.stats()) == 24)
        if wave % 2:
            await asyncio.to_thread(until, lambda: served.client.stats().running == ROWS)
        neighbour = asyncio.create_task(asyncio.to_thread(served.alone, a_query(3)))
        for mute in mutes:
            mute.close()
        assert await neighbour == text
        await asyncio.to_thread(until, lambda: live(served.client.stats()) == 0)
        assert served.client.stats().outcomes["cancelled"] == 24 * (wave + 1)
    await asyncio.to_thread(served.check_promises)
    until(lambda: (served.connections, served.tasks) == (0, 0))
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)


# Clients that do not read


@pytest.mark.parametrize("limits", [{"max_unread_bytes": 50_000}, {"send_timeout": 0.3}])
async def test_client_that_does_not_read_loses_its_row_and_slows_nobody(
    limits: dict[str, Any], serve: Callable[..., Served]
) -> None:
    served = serve(limits, send_buffer=4096)
    text = await asyncio.to_thread(served.alone, a_query(1, 300))
    mute = Mute(served.url, a_query(0, ENDLESS, stream=True, logprobs=5))
    await asyncio.to_thread(until, lambda: served.client.stats().running == 1)
    async with Streams(served.url) as streams:
        answers = [await task for task in await streams.begin(*(a_query(1, 300) for _ in range(3)))]
    assert all(answer.right and answer.text == text for answer in answers)
    await asyncio.to_thread(until, lambda: served.client.stats().outcomes["cancelled"] == 1)
    assert served.client.stats().kv_bytes_used == 0, "before the client has read anything"
    said = await asyncio.to_thread(mute.read_to_its_end)
    mute.close()
    assert b"[DONE]" not in said
    assert (b"--max-unread-bytes" in said) == ("max_unread_bytes" in limits)
    await asyncio.to_thread(served.check_promises)


# The end


async def test_drain_lets_finish_what_runs_refuses_what_comes_and_cuts_what_is_left(
    serve: Callable[..., Served],
) -> None:
    served = serve()
    text = await asyncio.to_thread(served.alone, a_query(0))
    async with Streams(served.url) as streams:
        long, short = await streams.begin(a_query(1, ENDLESS), a_query(0))
        draining = asyncio.create_task(asyncio.to_thread(served.client.drain, 60.0))
        while served.client.not_ready() is None:
            await asyncio.sleep(0.001)
        for path in ("/v1/completions", "/v1/chat/completions"):
            refused = await streams.http.post(path, json={})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert int(refused.headers["retry-after"]) >= 1
        assert (await streams.http.get("/ready")).status_code == 503
        finished = await short
        assert (finished.right, finished.text) == (True, text)
        assert not long.done()
        await asyncio.to_thread(served.client.drain, 0.0)
        cut = await long
        assert cut.text and cut.error is not None and cut.error["code"] == "shutting_down" and not cut.done
        await draining
    await asyncio.to_thread(until, lambda: live(served.client.stats()) == 0)
    stats = served.client.stats()
    assert (stats.outcomes["cancelled"], live(stats), stats.kv_bytes_used) == (1, 0, 0)


def test_a_server_that_ended_leaves_no_thread_of_its_engine(serve: Callable[..., Served]) -> None:
    served = serve()
    served.client.drain(1.0)
    served.client.close()
    assert not served.client._loop._thread.is_alive()  # type: ignore[attr-defined]
    response = httpx.post(f"{served.url}/v1/completions", json=a_query())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
