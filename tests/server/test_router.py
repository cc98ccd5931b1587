"""Several models behind one address: which answers, which is loaded and unloaded, and how requests wait."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from baton.core.errors import LoadError
from baton.core.limits import Limits
from baton.server.auth import Access
from baton.server.router import proxy
from baton.server.router.app import create_router, merged
from baton.server.router.models import RETRY_SECONDS, Models, State
from server.listening import listening
from server.scripted import ScriptedLoop, app_of, client_of

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


class Fake:
    """A model's process: a scripted server on a port."""

    headers: dict[str, str] = {}
    takes_all_memory = False
    memory_bytes = 100

    def __init__(self, name: str, loop: ScriptedLoop) -> None:
        self.loop = loop
        self.alive = True
        self.card = {"max_model_len": 64, "sampling_defaults": {}}
        self._serving = ExitStack()
        client = client_of(loop)
        client.model_name = name
        self.address = self._serving.enter_context(listening(app_of(loop, client=client)))

    async def stop(self) -> None:
        await asyncio.to_thread(self.end)

    def end(self) -> None:
        self.alive = False
        self._serving.close()


class Several:
    """A router over fakes named a, b and c, on a port. A name in `shut` waits to load; one in `trouble` cannot be."""

    def __init__(
        self, *, free: int = 10**6, unload_after: float = 0.0, access: Access | None = None, **limits: Any
    ) -> None:
        self.free, self.now = free, 0.0
        self.loops = {name: ScriptedLoop(f"I am {name}") for name in "abc"}
        self.shut: dict[str, threading.Event] = {}
        self.trouble: dict[str, Exception] = {}
        self.started: list[str] = []
        self.fakes: dict[str, Fake] = {}
        self.models = Models(
            dict.fromkeys("abc", 100),
            self._start,  # type: ignore[arg-type]
            free_bytes=lambda: self.free - 100 * len([one for one in self.fakes.values() if one.alive]),
            unload_after=unload_after,
            clock=lambda: self.now,
        )
        held = Limits(**limits)
        self.app = create_router(self.models, limits=held, version="1", access=access or Access())
        self._serving = ExitStack()
        self._threads = self._serving.enter_context(ThreadPoolExecutor(8))
        self.url = self._serving.enter_context(listening(self.app, held))
        self.http = self._serving.enter_context(httpx.Client(base_url=self.url, timeout=20))

    async def _start(self, name: str) -> Fake:
        self.loop = asyncio.get_running_loop()
        self.started.append(name)
        if name in self.shut:
            await asyncio.to_thread(self.shut[name].wait, 20)
        if name in self.trouble:
            raise self.trouble[name]
        self.fakes[name] = Fake(name, self.loops[name])
        return self.fakes[name]

    def state(self, name: str) -> State:
        return self.models.named(name).state

    def ask(self, name: str | None, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
        named = {} if name is None else {"model": name}
        return self.http.post(path, json={**CHAT, **named, **more})

    def asking(self, name: str) -> Future[httpx.Response]:
        """Asks on another thread."""
        return self._threads.submit(self.ask, name)

    def close(self) -> None:
        for event in self.shut.values():
            event.set()
        for loop in self.loops.values():
            loop.release()
        self._serving.close()
        for fake in self.fakes.values():
            fake.end()
        for loop in self.loops.values():
            loop.close()


@pytest.fixture
def several() -> Iterator[Callable[..., Several]]:
    made: list[Several] = []

    def make(**given: Any) -> Several:
        made.append(Several(**given))
        return made[-1]

    yield make
    for one in made:
        one.close()


def until(holds: Callable[[], object]) -> None:
    for _ in range(2000):
        if holds():
            return
        threading.Event().wait(0.005)
    raise AssertionError("it never came to that")


def said(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"])


def test_each_request_goes_to_the_model_that_it_names(several: Callable[..., Several]) -> None:
    server = several()
    assert [said(server.ask(name)) for name in ("b", "a", None)] == ["I am b", "I am a", "I am a"]
    assert server.started == ["b", "a"]
    refused = server.ask("d")
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
    assert "'a', 'b', 'c'" in refused.json()["error"]["message"]


def test_what_the_model_says_comes_as_it_is(several: Callable[..., Several]) -> None:
    server = several()
    response = server.http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    for name in ("x-content-type-options", "x-request-id", "content-type", "content-length", "date"):
        assert len(response.headers.get_list(name)) == 1, name
    refused = server.ask("a", temperature=-1)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "temperature"
    streamed = server.ask("a", stream=True)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert server.ask("b", "/v1/messages", max_tokens=9).json()["content"][0]["text"] == "I am b"
    assert server.http.post("/tokenize", json={"model": "b", "prompt": "xyz"}).json()["count"] == 3


@pytest.mark.parametrize("body", ["{", '{"model": "a", "model": "b"}', "[]"])
def test_what_is_no_object_is_refused(several: Callable[..., Several], body: str) -> None:
    refused = several().http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "invalid_json"


def test_a_model_is_loaded_once_for_all_who_wait(several: Callable[..., Several]) -> None:
    server = several()
    server.shut["a"] = threading.Event()
    answers = [server.asking("a") for _ in range(5)]
    until(lambda: server.started == ["a"])
    assert server.state("a") is State.LOADING
    server.shut["a"].set()
    assert [said(answer.result(20)) for answer in answers] == ["I am a"] * 5 and server.started == ["a"]


def test_models_load_one_at_a_time(several: Callable[..., Several]) -> None:
    server = several()
    server.shut["a"] = threading.Event()
    answers = [server.asking("a")]
    until(lambda: server.started == ["a"])
    answers.append(server.asking("b"))
    until(lambda: server.models.named("b").loading)
    assert server.started == ["a"]
    server.shut["a"].set()
    assert [said(answer.result(20)) for answer in answers] == ["I am a", "I am b"]


def test_an_idle_model_leaves_for_another_that_needs_its_memory(several: Callable[..., Several]) -> None:
    server = several(free=200)
    for now, name in enumerate("aba"):
        server.now = now
        server.ask(name)
        until(lambda: not any(model.busy for model in server.models))
    assert said(server.ask("c")) == "I am c"
    assert [server.state(name) for name in "abc"] == [State.LOADED, State.UNLOADED, State.LOADED]
    assert said(server.ask("b")) == "I am b" and server.models.named("b").loads == 2


def test_a_busy_model_answers_to_the_end_before_it_leaves(several: Callable[..., Several]) -> None:
    server = several(free=100)
    server.loops["a"].held, server.loops["a"].opening = True, "so "
    answers = [server.asking("a")]
    assert server.loops["a"].came.wait(20)
    answers.append(server.asking("b"))
    until(lambda: server.state("a") is State.UNLOADING)
    answers.append(server.asking("a"))  # it waits until the model is back
    until(lambda: server.models.named("a").loading)
    assert not any(answer.done() for answer in answers) and server.started == ["a"]
    server.loops["a"].held = False
    server.loops["a"].release()
    assert [said(answer.result(20)) for answer in answers] == ["so I am a", "I am b", "so I am a"]
    assert server.started == ["a", "b", "a"]


def test_a_model_that_takes_all_memory_has_no_other_beside_it(
    several: Callable[..., Several], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "takes_all_memory", True)
    server = several()
    server.ask("a")
    server.ask("b")
    assert [server.state(name) for name in "ab"] == [State.UNLOADED, State.LOADED]


async def test_what_nobody_asks_for_is_unloaded_and_what_runs_is_not(several: Callable[..., Several]) -> None:
    server = several(unload_after=0.2)
    models = server.models
    for name in "ab":
        await models.enter(models.named(name))
    models.leave(models.named("a"))
    watching = asyncio.create_task(models.watch())
    server.now = 1.0
    while server.state("a") is not State.UNLOADED:
        await asyncio.sleep(0.01)
    assert server.state("b") is State.LOADED
    watching.cancel()
    for fake in server.fakes.values():
        fake.end()


def test_a_model_that_cannot_be_loaded_is_not_tried_at_each_request(several: Callable[..., Several]) -> None:
    server = several()
    server.trouble["a"] = LoadError("its weights are missing")
    for _ in range(2):
        refused = server.ask("a")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_not_loaded"
        assert "a could not be loaded" in refused.json()["error"]["message"] and int(refused.headers["retry-after"]) > 1
    assert server.started == ["a"] and said(server.ask("b")) == "I am b"
    del server.trouble["a"]
    server.now = RETRY_SECONDS
    assert said(server.ask("a")) == "I am a"


ERRORS = {
    "/v1/chat/completions": lambda event: event["error"]["code"] == "model_not_loaded",
    "/v1/completions": lambda event: event["error"]["code"] == "model_not_loaded",
    "/v1/messages": lambda event: event["type"] == "error" and event["error"]["type"] == "overloaded_error",
    "/v1/responses": lambda event: event["type"] == "error" and event["code"] == "model_not_loaded",
}


@pytest.mark.parametrize("path", ERRORS)
def test_streams_that_wait_are_told_so_and_hear_of_failures_in_their_form(
    several: Callable[..., Several], path: str
) -> None:
    server = several(stream_comment=0.1)
    server.shut["a"], server.trouble["a"] = threading.Event(), LoadError("no")
    body = {"model": "a", "stream": True, "max_tokens": 9, "messages": CHAT["messages"], "prompt": "x", "input": "x"}
    with server.http.stream("POST", path, json=body) as response:
        lines = response.iter_lines()
        assert response.status_code == 200 and next(lines) == ": waiting"
        server.shut["a"].set()
        data = [line for line in lines if line.startswith("data: ")]
    assert ERRORS[path](json.loads(data[-1][6:]))


def test_a_stream_that_waited_goes_on_with_the_answer_or_its_refusal(several: Callable[..., Several]) -> None:
    for more in ({}, {"temperature": -1}):
        server = several(stream_comment=0.1)
        server.shut["a"] = threading.Event()
        with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True, **more}) as response:
            lines = response.iter_lines()
            assert next(lines) == ": waiting"
            server.shut["a"].set()
            data = [line[6:] for line in lines if line.startswith("data: ")]
        if more:
            assert len(data) == 1 and json.loads(data[0])["error"]["param"] == "temperature"
        else:
            assert data[-1] == "[DONE]"


def test_who_waits_too_long_or_with_too_many_is_told(several: Callable[..., Several]) -> None:
    server = several(query_timeout=0.5, stream_comment=0.1, max_waiting=1)
    server.shut["a"] = threading.Event()
    first = server.asking("a")
    until(lambda: server.started)
    assert server.ask("a").status_code == 429
    assert first.result(20).status_code == 504 and "a was not loaded within 0.5 s" in first.result().text


def test_a_process_that_ends_in_the_middle_fails_its_requests_alone(several: Callable[..., Several]) -> None:
    server = several()
    server.ask("b")
    server.loops["a"].held, server.loops["a"].opening = True, "so"
    with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        lines = response.iter_lines()
        assert "so" in next(line for line in lines if '"content":"so"' in line)
        server.fakes["a"].end()
        data = [line[6:] for line in lines if line.startswith("data: ")]
    assert json.loads(data[-1])["error"]["code"] == "engine_unhealthy"
    assert said(server.ask("b")) == "I am b"
    server.loops["a"].held = False
    assert said(server.ask("a")) == "soI am a" and server.models.named("a").loads == 2


def test_a_client_that_leaves_frees_its_row(several: Callable[..., Several]) -> None:
    server = several()
    server.loops["a"].held, server.loops["a"].opening = True, "so"
    with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        next(response.iter_lines())
    assert server.loops["a"].cancels.wait(20)
    until(lambda: not server.models.named("a").inside)


def test_a_client_that_leaves_while_its_model_loads_asks_nothing(several: Callable[..., Several]) -> None:
    server = several(stream_comment=0.1)
    server.shut["a"] = threading.Event()
    with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        next(response.iter_lines())
    until(lambda: not server.app.state.forwarder.waiting)
    server.shut["a"].set()
    until(lambda: server.state("a") is State.LOADED)
    assert server.loops["a"].queries == []


def test_what_is_told_of_all_models(several: Callable[..., Several]) -> None:
    server = several()
    assert server.http.get("/load").json()["rows"] == 0
    for path in ("/live/data", "/tokenizer_info"):
        assert server.http.get(path).json()["error"]["code"] == "model_not_loaded"
    for name in "ab":
        server.ask(name)
    cards = server.http.get("/v1/models").json()["data"]
    assert [(card["id"], card["state"], card.get("max_model_len")) for card in cards] == [
        ("a", "loaded", 64),
        ("b", "loaded", 64),
        ("c", "unloaded", None),
    ]
    assert server.http.get("/v1/models/c").json() == cards[2] and server.http.get("/v1/models/d").status_code == 404
    assert server.http.get("/load").json()["rows"] == 16
    assert server.http.get("/tokenizer_info", params={"model": "b"}).status_code == 200
    assert server.http.get("/tokenizer_info", params={"model": "c"}).status_code == 503
    assert server.http.get("/openapi.json").json()["info"]["title"] == "baton"
    assert server.http.get("/").status_code == 200 and server.http.get("/ready").status_code == 200


def test_a_server_that_ends_takes_nothing_new(several: Callable[..., Several]) -> None:
    server = several()
    server.app.state.draining = True
    assert server.ask("a").json()["error"]["code"] == "shutting_down" and server.http.get("/ready").status_code == 503


def test_a_load_that_fails_by_a_fault_is_not_tried_for_ever_and_names_no_folder(
    several: Callable[..., Several],
) -> None:
    server = several()
    server.trouble["a"] = OSError(24, "too many open files: /home/me/models")
    for _ in range(2):
        refused = server.ask("a")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "model_not_loaded"
        assert "/home" not in refused.text and "a could not be loaded" in refused.text
    assert server.started == ["a"]


def test_a_server_that_ends_tells_who_waits_for_a_model(several: Callable[..., Several]) -> None:
    server = several()
    server.shut["a"] = threading.Event()
    waiting = server.asking("a")
    until(lambda: server.started == ["a"])
    until(lambda: server.models.named("a").loading and server.models.named("a").loading.waiters)
    loop = server.loop
    closing = asyncio.run_coroutine_threadsafe(server.models.close(), loop)
    response = waiting.result(20)
    assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
    server.shut["a"].set()
    closing.result(20)


def test_requests_for_a_loaded_model_pass_those_that_wait_for_another(several: Callable[..., Several]) -> None:
    server = several(max_waiting=1)
    server.ask("b")
    server.shut["a"] = threading.Event()
    waiting = server.asking("a")
    until(lambda: server.app.state.forwarder.waiting)
    assert said(server.ask("b")) == "I am b" and server.ask("c").status_code == 429
    server.shut["a"].set()
    assert said(waiting.result(20)) == "I am a"


def test_a_process_that_does_not_answer_keeps_no_figures_back(
    several: Callable[..., Several], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "_FIGURES_SECONDS", 0.2)
    monkeypatch.setattr(proxy, "_SILENCE_SECONDS", 0.2)
    server = several(query_timeout=0.2)
    for name in "ab":
        server.ask(name)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server.fakes["a"].address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert server.http.get("/load").json()["rows"] == 8
        page = server.http.get("/metrics").text
        assert 'baton_model_loaded{model_name="b"} 1' in page
        refused = server.ask("a")
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "engine_unhealthy"
    assert said(server.ask("b")) == "I am b"


def test_nobody_leaves_for_a_model_that_would_not_fit_even_alone(several: Callable[..., Several]) -> None:
    server = several(free=300)
    for name in "ab":
        server.ask(name)
    server.models.named("c").needed_bytes = 301
    assert server.ask("c").json()["error"]["code"] == "model_not_loaded"
    assert [server.state(name) for name in "abc"] == [State.LOADED, State.LOADED, State.FAILED]


async def test_processes_are_watched_while_a_model_loads(several: Callable[..., Several]) -> None:
    server = several(unload_after=0.2)
    models = server.models
    await models.enter(models.named("b"))
    models.leave(models.named("b"))
    server.shut["a"] = threading.Event()
    loading = asyncio.ensure_future(models.enter(models.named("a")))
    watching = asyncio.create_task(models.watch())
    server.now = 1.0  # b is to be unloaded, but not while a loads
    await asyncio.sleep(0.3)
    assert models.named("b").state is State.LOADED
    server.fakes["b"].alive = False
    while models.named("b").state is not State.UNLOADED:
        await asyncio.sleep(0.01)
    assert models.named("a").state is State.LOADING
    server.shut["a"].set()
    await loading
    watching.cancel()
    for fake in server.fakes.values():
        fake.end()


def test_a_body_is_let_go_while_its_answer_comes(several: Callable[..., Several]) -> None:
    server = several()
    server.loops["a"].held, server.loops["a"].opening = True, "so"
    with server.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        next(response.iter_lines())
        assert server.app.state.forwarder.held.bytes == 0


def test_an_idle_model_leaves_before_a_busy_one(several: Callable[..., Several]) -> None:
    server = several(free=200)
    server.loops["a"].held, server.loops["a"].opening = True, "so "
    busy = server.asking("a")
    assert server.loops["a"].came.wait(20)
    server.now = 1.0
    server.ask("b")
    until(lambda: not server.models.named("b").busy)
    assert said(server.ask("c")) == "I am c"
    assert [server.state(name) for name in "abc"] == [State.LOADED, State.UNLOADED, State.LOADED]
    server.loops["a"].release()
    assert said(busy.result(20)) == "so I am a"


def test_keys_are_asked_for_and_handed_on(several: Callable[..., Several]) -> None:
    server = several(access=Access(keys=("secret",)))
    assert server.ask("a").status_code == 401 and server.started == []
    body = {**CHAT, "model": "a", "max_tokens": 9}
    answer = server.http.post("/v1/messages", json=body, headers={"x-api-key": "secret"})
    assert answer.json()["content"][0]["text"] == "I am a"


def test_pages_of_metrics_become_one() -> None:
    one = (
        '# HELP x_total A.\n# TYPE x_total counter\nx_total{model_name="a"} 1.0\n'
        '# HELP y B.\n# TYPE y gauge\ny{model_name="a"} 2.0\n'
    )
    page = merged([one, one.replace('"a"', '"b"')])
    families = {
        family.name: {sample.labels["model_name"]: sample.value for sample in family.samples}
        for family in text_string_to_metric_families(page)
    }
    assert families == {"x": {"a": 1.0, "b": 1.0}, "y": {"a": 2.0, "b": 2.0}}
    assert page.count("# HELP") == page.count("# TYPE") == 2
