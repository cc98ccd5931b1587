"""priority, deadline_ms and user over HTTP: what reaches the engine, what is refused, and what becomes of the late."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.core.clock import monotonic
from baton.engine.client import Client
from baton.engine.loop import EngineLoop
from baton.policy.port import Policy, traits
from baton.policy.table import POLICIES
from baton.server.app import create_app
from baton.server.auth import Access
from baton.testing.clock import ManualClock
from server.scripted import MODEL, Letters, ScriptedLoop, app_of, client_of
from toy import hashed, toy_batch, toy_settings

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
PLAIN = ("/v1/completions", {"prompt": "hi"})
ROUTES = pytest.mark.parametrize(("path", "body"), [PLAIN, CHAT])


@asynccontextmanager
async def talking_to(app: ASGIApp, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        yield http


def prioritised(loop: ScriptedLoop) -> FastAPI:
    """An app whose policy honours priorities."""
    return app_of(loop, client=client_with(loop, honours=traits(POLICIES["priority"]()).honours))


def client_with(loop: ScriptedLoop, honours: Collection[str] = (), **changes: Any) -> Client:
    settings = replace(client_of(loop).settings, **changes)
    return Client(model_name=MODEL, settings=settings, tokenizer=Letters(), loop=loop, clock=monotonic, honours=honours)


@ROUTES
async def test_terms_reach_the_engine(loop: ScriptedLoop, path: str, body: dict[str, Any]) -> None:
    async with talking_to(prioritised(loop)) as http:
        asked = {**body, "priority": -3, "deadline_ms": 1500, "user": "me", "n": 2}
        assert (await http.post(path, json=asked)).status_code == 200
        assert (await http.post(path, json={**body, "priority": None, "deadline_ms": None})).status_code == 200
    assert [(query.priority, query.user) for query in loop.queries] == [(-3, "me")] * 2 + [(0, "")]
    assert all(query.deadline == query.arrived + 1.5 for query in loop.queries[:2])
    assert loop.queries[2].deadline is None


@ROUTES
async def test_a_priority_is_refused_by_name_where_the_policy_has_none(
    http: httpx.AsyncClient, loop: ScriptedLoop, path: str, body: dict[str, Any]
) -> None:
    response = await http.post(path, json={**body, "priority": 1})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "priority"
    assert response.json()["error"]["code"] == "unsupported_parameter"
    assert (await http.post(path, json={**body, "priority": 0, "deadline_ms": 9000})).status_code == 200
    assert len(loop.queries) == 1


@ROUTES
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 1.5),
        ("priority", "high"),
        ("priority", True),
        ("priority", 2**31),
        ("deadline_ms", 0),
        ("deadline_ms", -1),
        ("deadline_ms", 2.5),
        ("deadline_ms", "1000"),
        ("user", 7),
        ("user", "x" * 257),
    ],
)
async def test_terms_out_of_their_limits(
    loop: ScriptedLoop, path: str, body: dict[str, Any], field: str, value: object
) -> None:
    async with talking_to(prioritised(loop)) as http:
        response = await http.post(path, json={**body, field: value})
    assert response.status_code == 400, response.text
    assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (field, "invalid_value")
    assert loop.queries == []


async def test_who_names_no_user_is_known_by_the_key_and_nobody_sees_the_key(loop: ScriptedLoop) -> None:
    path, body = PLAIN
    for key in ("Bearer one", "Bearer two", "Bearer one"):
        async with talking_to(app_of(loop), authorization=key) as http:
            await http.post(path, json=body)
            await http.post(path, json={**body, "user": "me"})
    users = [query.user for query in loop.queries]
    assert users[1::2] == ["me"] * 3
    one, two, again = users[::2]
    assert one == again != two
    assert "one" not in one and one


def keyed(loop: ScriptedLoop, sharing: str = "key") -> FastAPI:
    """An app whose requests need one of two keys."""
    client = client_with(loop, prefix_sharing=sharing, has_keys=True)
    return app_of(loop, client=client, access=Access(keys=("one", "two")))


@ROUTES
async def test_stored_prefixes_are_shared_within_a_key_and_a_salt(
    loop: ScriptedLoop, path: str, body: dict[str, Any]
) -> None:
    app = keyed(loop)
    asked = [
        ("Bearer one", body),
        ("bearer  one ", {**body, "cache_salt": None}),
        ("Bearer two", body),
        ("Bearer one", {**body, "cache_salt": "pepper"}),
        ("BEARER one", {**body, "cache_salt": "pepper", "user": "me", "n": 2}),
        ("Bearer two", {**body, "cache_salt": "pepper", "user": "me"}),
    ]
    for key, sent in asked:
        async with talking_to(app, authorization=key) as http:
            assert (await http.post(path, json=sent)).status_code == 200
    spaces = [query.prefix_space for query in loop.queries]
    assert [spaces.index(space) for space in spaces] == [0, 0, 2, 3, 3, 3, 6], spaces
    assert not any("one" in str(space) or "pepper" in str(space) for space in spaces)
    *_, mine, theirs = [query.user for query in loop.queries]
    assert mine != theirs, "a user of one key takes no share of another key's"


@ROUTES
@pytest.mark.parametrize("salt", ["", 7, ["a"], "x" * 257])
async def test_a_salt_is_a_text(loop: ScriptedLoop, path: str, body: dict[str, Any], salt: object) -> None:
    async with talking_to(app_of(loop)) as http:
        response = await http.post(path, json={**body, "cache_salt": salt})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "cache_salt")
    assert loop.queries == []


async def test_of_two_authorization_headers_the_one_that_let_it_in_says_whose_it_is(loop: ScriptedLoop) -> None:
    path, body = PLAIN
    app = keyed(loop)
    for keys in (["two"], ["one", "two"]):
        async with talking_to(app) as http:
            headers = [("authorization", f"Bearer {key}") for key in keys]
            response = await http.post(path, json=body, headers=headers)
            assert response.status_code in (200, 400, 401)
    assert len({query.prefix_space for query in loop.queries}) == 1


# Deadlines that pass, on a real engine


@asynccontextmanager
async def served(
    policy: Policy, sent: threading.Event | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Client]]:
    """Each token that is said takes 10 ms of a clock that nothing else moves.

    The third token of a prompt of three is said when `sent` is set, which is when part of an answer was sent.
    """
    clock = ManualClock()

    def say(tokens: list[int]) -> int:
        if sent is not None and len(tokens) == 5:
            assert sent.wait(10)
        clock.advance(0.01)
        return hashed(tokens)

    loop = EngineLoop(toy_batch(policy, say=say, clock=clock, max_rows=2).engine, clock)
    client = Client(model_name="toy", settings=toy_settings(max_rows=2), tokenizer=Letters(), loop=loop, clock=clock)
    app = create_app(client, render_metrics=lambda: (b"", "text/plain"), version="9.9")
    try:
        async with talking_to(app if sent is None else watched(app, sent)) as http:
            yield http, client
    finally:
        app.state.close()
        client.close()


def watched(app: ASGIApp, sent: threading.Event) -> ASGIApp:
    async def passed_on(scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body":
                sent.set()

        await app(scope, receive, tell)

    return passed_on


def timed_out(error: dict[str, Any]) -> bool:
    return (error["type"], error["code"]) == ("timeout_error", "request_timeout") and "deadline" in error["message"]


def body(**more: Any) -> dict[str, Any]:
    return {"prompt": [3, 4, 5], "max_tokens": 35, "ignore_eos": True, "temperature": 0, **more}


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_a_deadline_that_passes_is_answered_504_and_costs_nobody_else_anything(policy: str) -> None:
    async with served(POLICIES[policy]()) as (http, client):
        first, late, waits = await asyncio.gather(
            http.post("/v1/completions", json=body()),
            http.post("/v1/completions", json=body(deadline_ms=40)),
            http.post("/v1/completions", json=body(deadline_ms=1)),
        )
        assert first.status_code == 200
        for response in (late, waits):
            assert response.status_code == 504, response.text
            assert timed_out(response.json()["error"])
        alone = await http.post("/v1/completions", json=body(deadline_ms=60_000))
        assert alone.json()["choices"] == first.json()["choices"]
        await until(lambda: client.stats().kv_bytes_used == 0)
        outcomes = client.stats().outcomes
        assert (outcomes["finished"], outcomes["expired"]) == (2, 2)


@pytest.mark.parametrize("policy", ["baton", "slo"])
async def test_a_stream_that_is_late_ends_with_an_error_event(policy: str) -> None:
    async with served(POLICIES[policy](), threading.Event()) as (http, _):
        response = await http.post("/v1/completions", json=body(stream=True, deadline_ms=60))
        assert response.status_code == 200
        events = response.text.removesuffix("\n\n").split("\n\n")
        assert len(events) > 1, "it had begun"
        assert all("choices" in json.loads(event.removeprefix("data: ")) for event in events[:-1])
        assert timed_out(json.loads(events[-1].removeprefix("data: "))["error"])
        assert "[DONE]" not in response.text


async def until(there: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not there():
            await asyncio.sleep(0.005)
