"""Ten times more than fits: accepted answers are right, the rest is refused at once, and the server still reports.

"At once" is before any accepted answer is there: `benchmarks/cpu/overload.py` has the milliseconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from baton.core.errors import QueueFull
from server.scripted import ScriptedLoop
from service_level import ROWS, Answer, Served, Streams, a_query, until

WAITING = 4
LONG = 160


@pytest.fixture
def served() -> Iterator[Served]:
    server = Served({"max_waiting": WAITING}, max_waiting=WAITING)
    yield server
    server.close()


@pytest.mark.parametrize("streamed", [False, True])
async def test_ten_times_what_fits(streamed: bool, served: Served) -> None:
    text = await asyncio.to_thread(served.alone, a_query(tokens=LONG))
    ended: list[tuple[float, Answer]] = []
    told: list[tuple[float, int]] = []

    async with Streams(served.url) as streams:

        async def ask() -> None:
            if streamed:
                answer = await streams.ask(a_query(tokens=LONG))
            else:
                response = await streams.http.post("/v1/completions", json=a_query(tokens=LONG))
                body = response.json()
                answer = Answer(response.status_code, headers=response.headers, error=body.get("error"))
                answer.text = "" if answer.error else body["choices"][0]["text"]
            ended.append((time.monotonic(), answer))

        async def tell() -> None:
            while len(ended) < 10 * (ROWS + WAITING):
                for path in ("/health", "/metrics"):
                    told.append((time.monotonic(), (await streams.http.get(path)).status_code))

        await asyncio.gather(tell(), *(ask() for _ in range(10 * (ROWS + WAITING))))

    accepted = [(when, answer) for when, answer in ended if answer.status == 200]
    refused = [(when, answer) for when, answer in ended if answer.status != 200]
    assert len(accepted) >= ROWS + WAITING, "as many as fit are taken"
    assert {answer.text for _, answer in accepted} == {text}
    for _, answer in refused:
        assert answer.status == 429 and answer.error is not None and answer.headers is not None
        assert (answer.error["type"], answer.error["code"]) == ("rate_limit_error", "queue_full")
        assert int(answer.headers["retry-after"]) >= 1 and "--max-waiting" in answer.error["message"]
    first = min(when for when, _ in accepted)
    assert sorted(when for when, _ in refused)[len(refused) // 2] < first, "refusals do not wait for answers"
    assert {status for _, status in told} == {200}
    assert sum(when < first for when, _ in told) >= 2, "health and metrics do not, either"
    served.check_promises()
    rejections = [line for line in served.get("/metrics").text.splitlines() if "rejections_total{" in line]
    assert sum(float(line.split()[-1]) for line in rejections if "queue_full" in line) == len(refused)


async def test_full_server_says_so_and_is_ready_again_when_it_is_not(served: Served) -> None:
    async with Streams(served.url) as streams:
        tasks = await streams.begin(*(a_query(tokens=LONG) for _ in range(ROWS)))
        tasks += [asyncio.create_task(streams.ask(a_query(tokens=8))) for _ in range(WAITING)]
        while (ready := await streams.http.get("/ready")).status_code == 200:
            assert not all(task.done() for task in tasks)
        assert "are waiting (--max-waiting)" in ready.json()["error"]["message"]
        answers = await asyncio.gather(*tasks)
    assert all(answer.right for answer in answers)
    await asyncio.to_thread(served.check_promises)


async def test_refusal_for_a_full_queue_costs_no_tokenisation(
    loop: ScriptedLoop, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.refuse = QueueFull("full")
    monkeypatch.setattr(loop.tokenizer, "encode", lambda text: pytest.fail("nobody asked for its tokens"))
    for stream in (False, True):
        response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")


async def test_requests_that_are_being_prepared_hold_their_places(
    loop: ScriptedLoop, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a burst is not tokenised as a whole before the first of it is in the queue."""
    gate, encoded = threading.Event(), list[str]()
    right: Callable[[str], Any] = loop.tokenizer.encode

    def encode(text: str) -> Any:
        encoded.append(text)
        assert gate.wait(20)
        return right(text)

    def check_room(count: int) -> None:
        if count > 3:
            raise QueueFull("full")

    monkeypatch.setattr(loop.tokenizer, "encode", encode)
    monkeypatch.setattr(loop, "check_room", check_room)
    tasks = [asyncio.create_task(http.post("/v1/completions", json={"prompt": "a"})) for _ in range(8)]
    done, _ = await asyncio.wait(tasks, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    while len(done) < 5:
        done, _ = await asyncio.wait(tasks, timeout=0.05)
    gate.set()
    statuses = sorted(response.status_code for response in await asyncio.gather(*tasks))
    assert statuses == [200] * 3 + [429] * 5
    assert len(encoded) == 3
    assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 200, "places are given back"
    until(lambda: not loop.live)
