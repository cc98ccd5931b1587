"""What goes over the wire when, seen from below the framework."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from baton.core.events import Update
from baton.server.stream import until_gone
from server.by_hand import Wire, submitted
from server.scripted import ScriptedLoop, usage_body


async def test_usage_goes_by_choice_and_not_by_who_ended_first(loop: ScriptedLoop) -> None:
    loop.held, loop.cached = True, [1, 1, 3, 3]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    wire = Wire(loop, {"prompt": ["abcd", "efgh"], "n": 2, "max_tokens": 1, **options})
    await submitted(loop)
    first, *others = loop.live
    loop.live = {name: loop.live[name] for name in (*others, first)}
    loop.release()
    await asyncio.wait_for(wire.task, 10)
    usage = json.loads(b"".join(wire.bodies).decode().split("\n\n")[-3][6:])["usage"]
    assert usage == usage_body(8, 4, cached=4), "1 of one prompt and 3 of the other; in the order of the ends 1 and 1"


async def test_nothing_is_sent_before_the_first_update(loop: ScriptedLoop) -> None:
    loop.held = True
    wire = Wire(loop, {"prompt": "a", "stream": True})
    await submitted(loop)
    await asyncio.sleep(0)
    assert wire.sent == []
    loop.say("h")
    await wire.heard(2)
    assert wire.sent[0]["status"] == 200 and b'"text": "h"'.replace(b" ", b"") in wire.bodies[0]
    wire.close.set()
    await wire.task


async def test_early_failure_has_its_own_status(loop: ScriptedLoop) -> None:
    loop.fail_after = 0
    wire = Wire(loop, {"prompt": "a", "stream": True})
    await wire.task
    assert wire.sent[0]["status"] == 500


async def test_what_is_there_at_once_is_one_write(loop: ScriptedLoop) -> None:
    loop.held = True
    wire = Wire(loop, {"prompt": "a", "stream": True})
    await submitted(loop)
    loop.say("a", "b", "c")
    await wire.heard(2)
    assert wire.bodies[0].count(b"data: ") == 3
    wire.close.set()
    await wire.task


async def test_error_event_is_the_end(loop: ScriptedLoop) -> None:
    loop.held = True
    wire = Wire(loop, {"prompt": "a", "stream": True})
    await submitted(loop)
    loop.say("a")
    await wire.heard(2)
    loop.fail_after = 1
    loop.release()
    await wire.task
    assert b'"text":"h"' in wire.bodies[1], "what came before the error is sent"
    event = wire.bodies[-1]
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "internal_error"
    assert b"[DONE]" not in b"".join(wire.bodies)


async def test_query_cut_by_the_shutdown(loop: ScriptedLoop, http: httpx.AsyncClient) -> None:
    loop.held = True
    wire = Wire(loop, {"prompt": "a", "stream": True})
    await submitted(loop)
    loop.say("a")
    await wire.heard(2)
    plain = asyncio.create_task(http.post("/v1/completions", json={"prompt": "b"}))
    while len(loop.live) < 2:
        await asyncio.sleep(0.001)
    loop.drain(0)
    await wire.task
    assert b'"shutting_down"' in wire.bodies[-1] and b"[DONE]" not in wire.bodies[-1]
    response = await plain
    assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"


async def test_closed_connection_cancels_once(loop: ScriptedLoop) -> None:
    loop.held = True
    wire = Wire(loop, {"prompt": ["a", "b"], "stream": True})
    await submitted(loop)
    (first, deliver), _ = loop.live.values()
    deliver([Update(first.id, (1,), "x", "stop")])
    await wire.heard(2)
    wire.close.set()
    await wire.task
    assert await asyncio.to_thread(loop.cancels.wait, 10)
    assert loop.cancelled == [loop.queries[1].id], "what has ended is not cancelled"


async def test_until_gone_answers_the_work() -> None:
    async def never() -> Any:
        await asyncio.Event().wait()

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def work() -> int:
        return 7

    async def broken() -> int:
        raise KeyError("x")

    assert await until_gone(never, work()) == 7
    assert await until_gone(gone, never()) is None
    with pytest.raises(KeyError):
        await until_gone(never, broken())
