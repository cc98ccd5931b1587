"""What grows with what a client sent or a model said is done on threads of its own, which are there from the start."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.core.errors import QueueFull, ShuttingDown
from baton.core.limits import Limits
from baton.parsing.calls import CallParser
from baton.server.workers import LARGE_BYTES, LIGHT
from baton.server.written import written
from server.scripted import Letters, ScriptedLoop, app_of

LOOP = threading.main_thread().name
LONG = 3000
HERMES_TEMPLATE = "{{ tools }} <tool_call> {{ messages }}"


def client_of(loop: ScriptedLoop) -> httpx.AsyncClient:
    app = app_of(loop, Limits(max_unread_bytes=2**30), live=lambda serial, time: b"{}")
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


class Overheard:
    """By which threads something was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.threads: set[str] = set()
        right: Callable[..., Any] = getattr(owner, name)

        def called(*given: Any, **more: Any) -> Any:
            self.threads.add(threading.current_thread().name)
            return right(*given, **more)

        monkeypatch.setattr(owner, name, called)

    @property
    def on_the_event_loop(self) -> bool:
        return LOOP in self.threads


@pytest.mark.parametrize("stream", [False, True])
async def test_many_log_probabilities_are_written_beside_the_event_loop(
    loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    loop.context = LONG + 100
    pieces = Overheard(monkeypatch, Letters, "piece")
    body = {"prompt": "b" * LONG, "echo": True, "logprobs": 3, "stream": stream}
    async with client_of(loop) as http:
        response = await http.post("/v1/completions", json=body)
    assert response.status_code == 200 and response.text.count("text_offset") >= 1
    assert pieces.threads and all(name.startswith("baton-answers") for name in pieces.threads if name != LOOP)
    if stream:  # the letters of the answer come one by one, and are nothing
        first = json.loads(response.text.split("\n\n")[0][6:])["choices"][0]["logprobs"]
        assert len(first["tokens"]) == LONG
    else:
        assert not pieces.on_the_event_loop


@pytest.mark.parametrize("stream", [False, True])
async def test_a_large_call_is_read_beside_the_event_loop(
    loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    call = json.dumps({"name": "f", "arguments": {"a": "b" * LIGHT}})
    # In one piece: of letters that come one by one, a few may be read at once.
    loop.opening, loop.answer = f"<tool_call>{call}</tool_call>", "."
    loop.context, loop.tokenizer.template = 2 * LIGHT, HERMES_TEMPLATE
    reading = Overheard(monkeypatch, CallParser, "argue")
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools, "stream": stream}
    async with client_of(loop) as http:
        response = await http.post("/v1/chat/completions", json=body)
    assert "tool_calls" in response.text and reading.threads and not reading.on_the_event_loop


async def test_little_is_written_at_once(loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread would cost more than the work."""
    pieces = Overheard(monkeypatch, Letters, "piece")
    async with client_of(loop) as http:
        await http.post("/v1/completions", json={"prompt": "b", "logprobs": 3, "stream": True})
    assert pieces.on_the_event_loop


async def test_large_texts_wait_for_one_another_and_small_ones_do_not(
    loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, right = threading.Event(), Letters.encode

    def encode(self: Letters, text: str, **more: Any) -> list[int]:
        assert len(text) < LARGE_BYTES or gate.wait(20)
        return right(self, text, **more)

    monkeypatch.setattr(Letters, "encode", encode)
    async with client_of(loop) as http:
        large = [asyncio.create_task(http.post("/tokenize", json={"prompt": "a" * LARGE_BYTES})) for _ in range(30)]
        await asyncio.sleep(0.05)
        for path in ("/v1/completions", "/tokenize"):
            assert (await http.post(path, json={"prompt": "a"})).status_code == 200
        assert not any(task.done() for task in large)
        gate.set()
        assert {(await task).json()["count"] for task in large} == {LARGE_BYTES}


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_texts_to_be_counted_stand_in_the_same_line(
    loop: ScriptedLoop, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body: dict[str, Any] = {"prompt": "a"} if path == "/tokenize" else {"tokens": [1]}
    for refused, status in ((QueueFull("full"), 429), (ShuttingDown("the end"), 503)):
        loop.refuse = refused
        response = await http.post(path, json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, refused.code)
        assert int(response.headers["retry-after"]) >= 1
    loop.refuse = None
    gate = threading.Event()
    asked: list[int] = []
    monkeypatch.setattr(loop, "check_room", asked.append)
    monkeypatch.setattr(Letters, "encode", lambda *given, **more: [1] if gate.wait(20) else [])
    waiting = [asyncio.create_task(http.post(name, json={"prompt": "a"})) for name in ("/tokenize", "/v1/completions")]
    await asyncio.sleep(0.05)
    assert (await http.post("/detokenize", json={"tokens": [1]})).status_code == 200
    gate.set()
    assert [(await task).status_code for task in waiting] == [200, 200]
    assert asked == [1, 2, 3], "each is counted with those that are there"


async def test_no_request_starts_a_thread(loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    async with client_of(loop) as http:
        await http.post("/v1/completions", json={"prompt": "a"})  # the post's, which `Client.prepare` starts
        monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
        for path in ("/metrics", "/live/data", "/tokenizer_info", "/health", "/ready", "/load", "/openapi.json", "/"):
            assert (await http.get(path)).status_code == 200
        for body in ({"prompt": "a"}, {"prompt": "a", "stream": True}, {"prompt": "a", "echo": True, "logprobs": 2}):
            assert all(r.status_code == 200 for r in await asyncio.gather(*(_ask(http, body) for _ in range(40))))


async def _ask(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
    return await http.post("/v1/completions", json=body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None, derandomize=True)
@given(value=JSON_VALUES)
def test_json_in_pieces_is_json(value: object) -> None:
    assert written(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def test_large_json_in_pieces_is_json() -> None:
    value = {"a": list(range(5000)), "b": [{"c": [1, 2]}] * 700, "d": 'é"\\\n' * 100_000, "e": [[]] * 300, "f": [{}]}
    assert written(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
