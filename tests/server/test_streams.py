"""Answers that are kept: clients leave, come back, and hear the rest, from this process or from the next."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from baton.core.errors import EngineUnhealthy
from baton.core.limits import Limits
from baton.server.auth import Access
from server.scripted import ScriptedLoop, app_of

ID = "0123456789abcdef"
CHAT = {"messages": [{"role": "user", "content": "x"}], "stream": True}
HERE = f"/v1/baton/streams/{ID}"


class Shelf:
    """A folder in memory. `full`: raised by `put`."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, Sequence[Any]]] = {}
        self.aside: dict[str, str] = {}
        self.full: Exception | None = None

    def digest(self, text: str) -> str:
        return f"digest of {text}"

    def put(self, name: str, told: bytes, segments: Sequence[Any]) -> bool:
        if self.full is not None:
            raise self.full
        self.files[name] = (told, segments)
        return True

    def names(self) -> list[str]:
        return list(self.files)

    def take(self, name: str, compile: Callable[..., Any]) -> tuple[bytes, list[Any]]:
        told, segments = self.files[name]
        return told, list(segments)

    def drop(self, name: str) -> None:
        self.files.pop(name, None)

    def set_aside(self, name: str, why: str) -> None:
        self.files.pop(name)
        self.aside[name] = why


class Served:
    """A server over a scripted loop and a shelf."""

    def __init__(
        self, loop: ScriptedLoop, shelf: Shelf, limits: Limits | None = None, keys: Sequence[str] = ()
    ) -> None:
        self.loop = loop
        self.app: FastAPI = app_of(loop, limits, handover=shelf, access=Access(tuple(keys)))
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=20)

    def ask(self, body: dict[str, Any] = CHAT, name: str = ID, path: str = "/v1/chat/completions") -> Any:
        return asyncio.create_task(self.http.post(path, json=body, headers={"x-request-id": name}))

    async def asked(self, *given: Any) -> Any:
        """Asks, and waits until the engine has the query."""
        task = self.ask(*given)
        await asyncio.to_thread(self.loop.came.wait, 10)
        await asyncio.sleep(0.05)
        return task


@pytest.fixture
async def served(loop: ScriptedLoop) -> Served:
    return Served(loop, Shelf())


def events(response: httpx.Response) -> list[tuple[int | None, str]]:
    assert response.status_code == 200, response.text
    pairs = []
    for block in response.text.split("\n\n")[:-1]:
        if not block.startswith(":"):
            lines = dict(line.split(": ", 1) for line in block.splitlines())
            pairs.append((int(lines["id"]) if "id" in lines else None, lines["data"]))
    return pairs


async def test_events_are_numbered_and_the_rest_can_be_heard(served: Served) -> None:
    first = await served.ask()
    assert first.headers["x-baton-stream"] == ID
    whole = events(first)
    assert [number for number, _ in whole] == list(range(1, len(whole) + 1)) and whole[-1][1] == "[DONE]"
    for after in range(len(whole) + 2):
        assert events(await served.http.get(f"{HERE}?after={after}")) == whole[after:]
        assert events(await served.http.get(HERE, headers={"last-event-id": str(after)})) == whole[after:]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1, "n": 2}),
        ("/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", CHAT | {"max_tokens": 9}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_every_kind_of_answer_is_told_again(served: Served, path: str, body: Any, stream: bool) -> None:
    body = {name: value for name, value in body.items() if stream or name != "stream_options"} | {"stream": stream}
    first = await served.ask(body, ID, path)
    again = await served.http.get(HERE)
    assert first.status_code == again.status_code == 200 and first.headers["x-baton-stream"] == ID
    assert again.text == first.text and again.headers["content-type"] == first.headers["content-type"]


async def test_a_client_comes_back_while_its_first_connection_lives(served: Served) -> None:
    served.loop.held, served.loop.opening = True, "ab"
    first = await served.asked()
    second = asyncio.create_task(served.http.get(f"{HERE}?after=1"))
    await asyncio.sleep(0.05)
    served.loop.release()
    whole = events(await first)
    assert events(await second) == whole[1:] and len(whole) > 4
    assert len(served.loop.queries) == 1 and not served.loop.cancelled


async def test_what_runs_goes_on_in_the_next_process(served: Served) -> None:
    served.loop.held, served.loop.opening = True, "ab"
    shelf = Shelf()
    served = Served(served.loop, shelf)
    await served.app.state.begin()
    streamed = await served.asked()
    served.loop.opening = ""
    plain = served.ask({**CHAT, "stream": False}, "f" * 16)
    await asyncio.sleep(0.2)
    await asyncio.to_thread(served.app.state.drain, 1.0)
    begun = events(await streamed)
    assert begun[-1][0] is None and json.loads(begun.pop()[1])["error"]["code"] == "handed_over"
    refused = await plain
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "handed_over"
    assert refused.headers["retry-after"] and "/v1/baton/streams" in refused.text

    loop = ScriptedLoop()
    later = Served(loop, shelf)
    assert await later.app.state.begin() == 2
    rest = events(await later.http.get(f"{HERE}?after={len(begun)}"))
    assert [number for number, _ in begun + rest] == list(range(1, len(begun + rest) + 1))
    text = "".join(json.loads(data)["choices"][0]["delta"].get("content") or "" for _, data in (begun + rest)[:-1])
    assert text == "abhello"
    whole = (await later.http.get(f"/v1/baton/streams/{'f' * 16}")).json()
    assert whole["choices"][0]["message"]["content"] == "hello"
    assert loop.queries == served.loop.queries and len(shelf.files) == 2
    loop.close()


async def test_a_finished_answer_is_there_after_a_restart(served: Served) -> None:
    shelf = Shelf()
    served = Served(served.loop, shelf)
    await served.app.state.begin()
    first = await served.ask()
    await asyncio.to_thread(served.app.state.drain, 1.0)
    loop = ScriptedLoop()
    later = Served(loop, shelf)
    await later.app.state.begin()
    assert (await later.http.get(HERE)).text == first.text and not loop.queries
    loop.close()


async def test_what_took_part_in_two_processes_is_summed(served: Served) -> None:
    shelf = Shelf()
    served.loop.held = True
    served = Served(served.loop, shelf)
    await served.app.state.begin()
    task = await served.asked({**CHAT, "stream": False, "baton_usage": True})
    await asyncio.to_thread(served.app.state.drain, 1.0)
    await task
    loop = ScriptedLoop()
    later = Served(loop, shelf)
    await later.app.state.begin()
    usage = (await later.http.get(HERE)).json()["usage"]["baton"]
    assert (usage["useful_slots"], usage["preemptions"], usage["decode_seconds"]) == (60, 2, 3.0)
    loop.close()


async def test_without_room_in_the_folder_clients_are_told_so(served: Served) -> None:
    shelf = Shelf()
    shelf.full = OSError(28, "no space")
    served.loop.held = True
    served = Served(served.loop, shelf)
    await served.app.state.begin()
    task = await served.asked({**CHAT, "stream": False})
    await asyncio.to_thread(served.app.state.drain, 1.0)
    assert (await task).json()["error"]["code"] == "shutting_down"


async def test_an_engine_that_gives_nothing_is_drained_as_ever(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def give(query_ids: Sequence[str] | None = None) -> Any:
        raise EngineUnhealthy("the engine has stopped")

    monkeypatch.setattr(served.loop, "give", give)
    served.loop.held = True
    await served.app.state.begin()
    tasks = [await served.asked({**CHAT, "stream": False}, f"{at:016}") for at in range(3)]
    begun = time.monotonic()
    await asyncio.to_thread(served.app.state.drain, 0.1)
    assert time.monotonic() - begun < 5
    assert [(await task).json()["error"]["code"] for task in tasks] == ["shutting_down"] * 3


@pytest.mark.parametrize("trouble", ["other bytes", "another model"])
async def test_what_cannot_go_on_is_set_aside(served: Served, trouble: str) -> None:
    shelf = Shelf()
    served.loop.held = True
    served = Served(served.loop, shelf)
    await served.app.state.begin()
    task = await served.asked()
    await asyncio.to_thread(served.app.state.drain, 1.0)
    await task
    ((name, (told, segments)),) = shelf.files.items()
    changed = told[:-9] if trouble == "other bytes" else told.replace(b"lab/letters", b"lab/others!")
    shelf.files[name] = (changed, segments)
    loop = ScriptedLoop()
    later = Served(loop, shelf)
    assert await later.app.state.begin() == 0
    assert list(shelf.aside) == [name] and ("lab/others!" in shelf.aside[name]) == (trouble == "another model")
    assert (await later.http.get(HERE)).status_code == 404 and not loop.queries
    loop.close()


async def test_an_answer_whose_client_left_ends_after_a_while(loop: ScriptedLoop) -> None:
    served = Served(loop, Shelf(), Limits(handover_grace=0.3))
    loop.held = True
    task = await served.asked()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert not loop.cancelled
    back = asyncio.create_task(served.http.get(HERE))
    await asyncio.sleep(0.5)
    assert not loop.cancelled
    back.cancel()
    await asyncio.to_thread(loop.cancels.wait, 5)
    assert loop.cancelled == [loop.queries[0].id]
    assert (await served.http.get(HERE)).status_code == 404


async def test_finished_answers_are_kept_for_a_while(loop: ScriptedLoop) -> None:
    served = Served(loop, Shelf(), Limits(handover_seconds=0.2))
    await served.ask()
    assert (await served.http.get(HERE)).status_code == 200
    await asyncio.sleep(0.4)
    assert (await served.http.get(HERE)).status_code == 404


async def test_finished_answers_make_room_the_oldest_first(loop: ScriptedLoop) -> None:
    served = Served(loop, Shelf(), Limits(handover_memory=9000))
    names = [f"{at:016}" for at in range(6)]
    for name in names:
        assert (await served.ask(CHAT, name)).status_code == 200
    found = [(await served.http.get(f"/v1/baton/streams/{name}")).status_code for name in names]
    assert found == [404] * 3 + [200] * 3


async def test_a_live_answer_that_is_too_large_is_given_up(loop: ScriptedLoop) -> None:
    served = Served(loop, Shelf(), Limits(handover_memory=9000))
    loop.held, loop.opening = True, "x" * 10_000
    response = await (await served.asked())
    assert "--handover-memory" in response.text and loop.cancelled


async def test_an_answer_is_its_keys_alone(loop: ScriptedLoop) -> None:
    served = Served(loop, Shelf(), keys=("one", "two"))
    for key in ("one", "two"):
        served.http.headers["authorization"] = f"Bearer {key}"
        assert (await served.http.get(HERE)).status_code == 404
        if key == "one":
            loop.answer = "mine"
            assert "m" in (await served.ask(CHAT, "short")).text
    assert (await served.http.get("/v1/baton/streams/short")).status_code == 404
    served.http.headers["authorization"] = "Bearer one"
    assert (await served.http.get("/v1/baton/streams/short")).status_code == 200
    del served.http.headers["authorization"]
    assert (await served.http.get("/v1/baton/streams/short")).status_code == 401


async def test_an_id_that_others_could_guess_is_not_kept(served: Served) -> None:
    response = await served.ask(CHAT, "1")
    assert response.status_code == 200 and "x-baton-stream" not in response.headers
    assert not response.text.startswith("id:")
    ours = await served.http.post("/v1/chat/completions", json=CHAT)
    assert len(ours.headers["x-baton-stream"]) == 32


async def test_an_id_in_use_is_not_given_twice(served: Served) -> None:
    served.loop.held, served.loop.opening = True, "ab"
    first = await served.asked()
    second = await served.asked()
    served.loop.held = False
    served.loop.release()
    assert "x-baton-stream" in (await first).headers and "x-baton-stream" not in (await second).headers
    assert "x-baton-stream" in (await served.ask()).headers


async def test_an_answer_can_be_dropped(served: Served) -> None:
    served.loop.held, served.loop.opening = True, "ab"
    task = await served.asked()
    assert (await served.http.delete(HERE)).json() == {"id": ID, "deleted": True}
    assert events(await task)[-1][0] is None
    assert await asyncio.to_thread(served.loop.cancels.wait, 10) and served.loop.cancelled
    for method in ("GET", "DELETE"):
        assert (await served.http.request(method, HERE)).status_code == 404


@pytest.mark.parametrize(
    ("query", "stream", "param"),
    [
        ("after=-1", True, "after"),
        ("after=x", True, "after"),
        ("before=1", True, "before"),
        ("after=1", False, "after"),
    ],
)
async def test_wrong_parameters_are_named(served: Served, query: str, stream: bool, param: str) -> None:
    await served.ask({**CHAT, "stream": stream})
    response = await served.http.get(f"{HERE}?{query}")
    assert response.status_code == 400 and response.json()["error"]["param"] == param


async def test_a_refused_request_is_not_kept(served: Served) -> None:
    served.loop.stop_admitting()
    response = await served.ask()
    assert response.status_code == 503 and "x-baton-stream" not in response.headers
    assert (await served.http.get(HERE)).status_code == 404


async def test_without_the_flag_there_is_no_such_route(http: httpx.AsyncClient) -> None:
    response = await http.get(HERE)
    assert response.status_code == 404 and "--handover" in response.text
    assert "x-baton-stream" not in (await http.post("/v1/chat/completions", json=CHAT)).headers


async def test_the_route_is_described(served: Served, http: httpx.AsyncClient) -> None:
    path = "/v1/baton/streams/{stream_id}"
    document = (await served.http.get("/openapi.json")).json()
    assert set(document["paths"][path]) == {"get", "head", "delete"}
    assert set(document["paths"][path]["get"]["responses"]) >= {"200", "400", "404", "503", "504"}
    assert path not in (await http.get("/openapi.json")).json()["paths"]
