"""Everything that is refused, and the one body that all errors have."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from baton.core.errors import EngineUnhealthy, QueueFull, ShuttingDown
from baton.core.events import Update
from baton.core.limits import Limits
from baton.server.auth import Access
from baton.server.errors import failure
from server.scripted import MODEL, ScriptedLoop, app_of

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
MAX_BODY_BYTES = Limits().max_body_bytes
JSON = {"content-type": "application/json"}

UNHONOURED: dict[str, Any] = {
    "audio": {"voice": "a"},
    "best_of": 3,
    "functions": [{"name": "f"}],
    "modalities": ["audio"],
    "prompt_logprobs": 1,
    "reasoning_effort": "high",
    "suffix": "end",
    "web_search_options": {},
    "priority": 1,
    "guided_json": {},
    "nonsense": 1,
    "use_beam_search": True,
}


def check(
    response: httpx.Response, status: int, code: str | None, type: str = "invalid_request_error"
) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) <= 2048
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["code"], error["type"]) == (code, type)
    return error


ONLY_FOR_CHAT: dict[str, Any] = {
    "tool_choice": "required",
    "tools": [{"type": "function", "function": {"name": "f"}}],
}


@pytest.mark.parametrize("name", ONLY_FOR_CHAT)
async def test_tools_are_for_chat(http: httpx.AsyncClient, name: str) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", name: ONLY_FOR_CHAT[name]})
    assert check(response, 400, "unsupported_parameter")["param"] == name


@pytest.mark.parametrize("name", UNHONOURED)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_unhonoured_fields(http: httpx.AsyncClient, loop: ScriptedLoop, path: str, name: str) -> None:
    base = {"prompt": "a"} if path == "/v1/completions" else CHAT
    error = check(await http.post(path, json={**base, name: UNHONOURED[name]}), 400, "unsupported_parameter")
    assert error["param"] == name and name in error["message"]
    assert loop.queries == []


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 3, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", True, "temperature"),
        ("top_p", 0, "top_p"),
        ("max_tokens", 0, "max_tokens"),
        ("max_tokens", 1.5, "max_tokens"),
        ("n", 17, "n"),
        ("n", 0, "n"),
        ("stream", "yes", "stream"),
        ("stream_options", {"include_usage": True}, "stream_options"),
        ("stop", ["a"] * 5, "stop"),
        ("stop", [1], "stop"),
        ("stop", "", "stop"),
        ("stop_token_ids", [1] * 129, "stop_token_ids"),
        ("logit_bias", {"x": 1}, "logit_bias"),
        ("logit_bias", {"256": 1}, "logit_bias"),
        ("logit_bias", {"1": 101}, "logit_bias"),
        ("presence_penalty", -2.1, "presence_penalty"),
        ("prompt", [], "prompt"),
        ("prompt", "", "prompt"),
        ("prompt", ["a", 1], "prompt"),
        ("prompt", [["a"]], "prompt"),
        ("prompt", [[1], "a"], "prompt"),
        ("prompt", [1, True], "prompt"),
        ("prompt", [256], "prompt"),
        ("prompt", [-1], "prompt"),
        ("prompt", {"text": "a"}, "prompt"),
        ("prompt", ["a"] * 129, "prompt"),
    ],
)
async def test_bad_values(http: httpx.AsyncClient, loop: ScriptedLoop, field: str, value: object, param: str) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", field: value})
    assert check(response, 400, "invalid_value")["param"] == param
    assert loop.queries == []


async def test_too_many_choices(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": ["a"] * 65, "n": 2})
    assert check(response, 400, "invalid_value")["param"] == "n"


async def test_missing_prompt(http: httpx.AsyncClient) -> None:
    for body in ({}, {"prompt": None}):
        assert check(await http.post("/v1/completions", json=body), 400, None)["param"] == "prompt"


async def test_context_length(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a" * 60})
    assert "max-model-len" in check(response, 400, "context_length_exceeded")["message"]


async def test_unknown_model(http: httpx.AsyncClient) -> None:
    for path, body in (("/v1/completions", {"prompt": "a"}), ("/v1/chat/completions", CHAT)):
        response = await http.post(path, json={**body, "model": "gpt"})
        assert check(response, 404, "model_not_found")["param"] == "model"
        assert MODEL in response.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"a"',
        b"\xff",
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": ' + b"1" * 5000 + b"}",
        b'{"prompt": ' + b"[" * 80 + b"]" * 80 + b"}",
        b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"prompt": [' + b'"a",' * 10_000 + b'"a"]}',
        b'{"metadata": {' + b",".join(b'"%d":0' % n for n in range(6000)) + b"}}",
    ],
    ids=lambda body: body[:24].decode(errors="replace") + str(len(body)),
)
async def test_bodies_that_are_not_json(http: httpx.AsyncClient, body: bytes) -> None:
    check(await http.post("/v1/completions", content=body, headers=JSON), 400, "invalid_json")


async def test_infinity_by_overflow(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", content=b'{"prompt": "a", "top_p": 1e999}', headers=JSON)
    assert check(response, 400, "invalid_value")["param"] == "top_p"


async def test_many_token_ids_are_not_many_nodes(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", json={"prompt": [1] * 20_000})
    check(response, 400, "context_length_exceeded")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_media_type(http: httpx.AsyncClient, kind: str) -> None:
    response = await http.post("/v1/completions", content=b"{}", headers={"content-type": kind})
    check(response, 415, "unsupported_media_type")


async def test_body_too_large(http: httpx.AsyncClient) -> None:
    async def pieces() -> Any:
        for _ in range(5):
            yield b" " * 2**20

    check(
        await http.post("/v1/completions", content=b" " * (MAX_BODY_BYTES + 1), headers=JSON), 413, "payload_too_large"
    )
    announced = {**JSON, "content-length": str(MAX_BODY_BYTES + 1)}
    check(await http.post("/v1/completions", content=b"{}", headers=announced), 413, "payload_too_large")
    check(await http.post("/v1/completions", content=pieces(), headers=JSON), 413, "payload_too_large")


async def test_headers_too_large(http: httpx.AsyncClient) -> None:
    check(await http.get("/health", headers={"x-long": "a" * 33_000}), 431, "headers_too_large")


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/chat/completions", "it is under /v1, as /v1/chat/completions"),
        ("POST", "/v1/v1/chat/completions", "it is under /v1, as /v1/chat/completions"),
        ("POST", "/v1/v1/messages", "it is under /v1, as /v1/messages"),
        ("GET", "/models", "it is under /v1, as /v1/models"),
        ("GET", "/v1/health", "it is /health"),
        ("GET", "/v1/model", "did you mean /v1/models?"),
        ("POST", "/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("POST", "/v1/embeddings", "a server made for embeddings"),
        ("GET", "/props", "/v1/models"),
        ("POST", "/api/chat", "POST /v1/chat/completions"),
        ("GET", "/wp-admin/" + "x" * 500, "/docs lists all routes"),
    ],
)
async def test_a_path_without_a_route_is_told_of_the_one_that_was_meant(
    http: httpx.AsyncClient, method: str, path: str, hint: str
) -> None:
    error = check(await http.request(method, path, json={}), 404, "not_found")
    assert hint in error["message"]


async def test_a_browser_is_shown_a_page(http: httpx.AsyncClient) -> None:
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    response = await http.get("/chat/%3Cscript%3Ealert(1)%3C/script%3E", headers=browser)
    assert response.status_code == 404 and response.headers["content-type"].startswith("text/html")
    assert "<script>alert" not in response.text and "&lt;script&gt;" in response.text
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert 'href="/docs"' in response.text
    icon = await http.get("/favicon.ico")
    assert icon.status_code == 200 and icon.headers["content-type"] == "image/svg+xml"


async def test_unknown_path_and_method(http: httpx.AsyncClient) -> None:
    check(await http.get("/v1/nothing"), 404, "not_found")
    check(await http.get("/health/"), 404, "not_found")
    check(await http.get("/v1/models/"), 404, "model_not_found")
    response = await http.get("/v1/completions")
    check(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "type"),
    [
        (QueueFull("256 are waiting"), 429, "rate_limit_error"),
        (ShuttingDown("the server is shutting down"), 503, "server_error"),
        (EngineUnhealthy("the engine has stopped"), 503, "server_error"),
    ],
)
async def test_submission_refused(
    http: httpx.AsyncClient, loop: ScriptedLoop, error: Any, status: int, type: str, stream: bool
) -> None:
    loop.refuse = error
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    check(response, status, error.code, type)
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("stream", [False, True])
async def test_bug_of_ours(http: httpx.AsyncClient, loop: ScriptedLoop, stream: bool) -> None:
    loop.refuse = ZeroDivisionError("secret /path")
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    check(response, 500, "internal_error", "server_error")
    assert "secret" not in response.text


async def test_failed_query(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    loop.fail_after = 2
    response = await http.post("/v1/completions", json={"prompt": ["a", "b"]})
    assert "NaN" in check(response, 500, "internal_error", "server_error")["message"]


async def test_a_query_that_cannot_be_as_it_was_asked_is_its_askers_error(
    http: httpx.AsyncClient, loop: ScriptedLoop
) -> None:
    loop.fail_after, loop.infeasible = 2, True
    check(await http.post("/v1/completions", json={"prompt": ["a", "b"]}), 400, "invalid_value")
    stream = await http.post("/v1/completions", json={"prompt": "a", "stream": True})
    *_, last = [line for line in stream.text.splitlines() if line]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")


NUMERIC = (
    *("max_tokens", "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "seed", "min_tokens", "priority", "deadline_ms"),
)


def bodies_with(number: str) -> list[tuple[str, str, str]]:
    """Path, body and the wrong field, for each place of a number."""
    completion, chat = '"prompt": "a"', '"messages": [{"role": "user", "content": "hi"}]'
    both = [(name, number) for name in NUMERIC]
    both += [
        ("logit_bias", f'{{"5": {number}}}'),
        ("logit_bias", f'{{"{number}": 1}}'),
        ("stop_token_ids", f"[{number}]"),
    ]
    values = [("/v1/completions", completion, name, value) for name, value in [*both, ("logprobs", number)]]
    values += [("/v1/chat/completions", chat, name, value) for name, value in both]
    values += [("/v1/chat/completions", chat, "max_completion_tokens", number)]
    values += [("/v1/chat/completions", chat + ', "logprobs": true', "top_logprobs", number)]
    values += [("/v1/completions", '"echo": true', "prompt", value) for value in (f"[{number}]", f"[[{number}]]")]
    values += [("/detokenize", '"model": null', "tokens", f"[1, {number}]")]
    values += [("/tokenize", '"add_special_tokens": true', "prompt", number)]
    return [(path, f'{{{rest}, "{name}": {value}}}', name) for path, rest, name, value in values]


@pytest.mark.parametrize("digits", [309, 401, 4300, 4301, 30_000])
@pytest.mark.parametrize("sign", ["", "-"])
async def test_numbers_of_hundreds_of_digits_are_refused_by_their_fields_name(
    http: httpx.AsyncClient, loop: ScriptedLoop, digits: int, sign: str
) -> None:
    number = sign + "9" * digits
    for path, body, name in bodies_with(number):
        response = await http.post(path, content=body.encode(), headers=JSON)
        # Names of tokens are texts.
        read = digits <= 4300 or f'{number}": 1' in body
        error = check(response, 400, "invalid_value" if read else "invalid_json")
        assert name in f"{error['param']} {error['message']}", (path, body[:80])
    assert loop.queries == []


async def test_long_names_are_cut(http: httpx.AsyncClient) -> None:
    for name in ("x" * 5000, "\x00" * 5000, "\U0001f71a" * 5000):
        check(await http.post("/v1/completions", json={"prompt": "a", name: 1}), 400, "unsupported_parameter")


async def test_request_id(http: httpx.AsyncClient) -> None:
    for sent, kept in (("my id-7", True), ("a" * 128, True), ("a" * 129, False), ("é", False), ("", False)):
        response = await http.get("/health", headers={b"x-request-id": sent.encode()})
        assert (response.headers["x-request-id"] == sent) is kept
        assert response.headers["x-request-id"].isascii() and response.headers["x-request-id"]


async def test_key(loop: ScriptedLoop) -> None:
    transport = httpx.ASGITransport(app=app_of(loop, access=Access(keys=("other", "sésame"))))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for path in ("/health", "/", "/page.css", "/page.js", "/docs"):
            assert (await http.get(path)).status_code == 200
        for path in ("/ready", "/metrics", "/load", "/v1/models", "/openapi.json", "/version", "/nothing"):
            response = await http.get(path)
            check(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
        for wrong in ("Bearer sesame", "Basic sésame", "Bearer", "sésame"):
            headers = {b"authorization": wrong.encode()}
            check(await http.post("/v1/completions", json={"prompt": "a"}, headers=headers), 401, "invalid_api_key")
        headers = {b"authorization": "bearer sésame".encode()}
        assert (await http.post("/v1/completions", json={"prompt": "a"}, headers=headers)).status_code == 200
    assert len(loop.queries) == 1


async def test_reject_is_told_of_bad_requests_alone(loop: ScriptedLoop) -> None:
    reasons: list[str] = []
    transport = httpx.ASGITransport(app=app_of(loop, reject=reasons.append))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await http.post("/v1/completions", json={"prompt": "a", "tools": [1]})
        await http.post("/v1/completions", json={})
        await http.post("/tokenize", json={})
        await http.post("/v1/completions", json={"prompt": "a"})
        loop.refuse = QueueFull("the loop tells of this one itself")
        await http.post("/v1/completions", json={"prompt": "a"})
    assert reasons == ["unsupported_parameter", "invalid_request"]


# What is sent twice, or packed, or contradicts itself

REPEATED = {
    b'{"prompt": "a", "prompt": "b"}': "prompt",
    b'{"prompt": "a", "n": 1, "n": 1}': "n",
    b'{"prompt": "a", "pro\\u006dpt": "a"}': "prompt",
    b'{"prompt": "a", "logit_bias": {"1": 1, "1": 2}}': "1",
    b'{"prompt": "a", "metadata": {"x": [{"deep": 1, "deep": 1}]}}': "deep",
    b'{"prompt": "a", "": 1, "": 1}': "",
    b'{"prompt": "a", "\\ud800": 1, "\\ud800": 1}': "?",
}


@pytest.mark.parametrize("body", REPEATED)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
async def test_names_that_are_there_twice(http: httpx.AsyncClient, loop: ScriptedLoop, path: str, body: bytes) -> None:
    error = check(await http.post(path, content=body, headers=JSON), 400, "invalid_json")
    assert error["param"] == REPEATED[body] and "twice" in error["message"]
    assert loop.queries == []


async def test_a_schema_as_text_has_each_name_once(http: httpx.AsyncClient) -> None:
    outputs = {"json": '{"type": "object", "type": "string"}'}
    response = await http.post("/v1/completions", json={"prompt": "a", "structured_outputs": outputs})
    assert "twice" in check(response, 400, "invalid_value")["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP", "x"])
async def test_packed_bodies(http: httpx.AsyncClient, coding: str) -> None:
    for body in (b'{"prompt": "a"}', b""):
        response = await http.post("/v1/completions", content=body, headers={**JSON, "content-encoding": coding})
        assert "content-encoding" in check(response, 415, "unsupported_media_type")["message"]


@pytest.mark.parametrize("kind", ["utf-16", '"latin-1"', "", "utf-8; charset=utf-16"])
async def test_other_charsets(http: httpx.AsyncClient, kind: str) -> None:
    headers = {"content-type": f"application/json; charset={kind}"}
    response = await http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers)
    assert "UTF-8" in check(response, 415, "unsupported_media_type")["message"]


@pytest.mark.parametrize(
    "headers",
    [{"content-encoding": "identity"}, {"content-encoding": ""}, {"content-type": 'application/json; charset="UTF-8"'}],
)
async def test_what_says_that_nothing_is_packed_is_taken(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    response = await http.post("/v1/completions", content=b'{"prompt": "a"}', headers={**JSON, **headers})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_best_of_is_n(http: httpx.AsyncClient, path: str) -> None:
    base = {"prompt": "a"} if path == "/v1/completions" else CHAT
    for n, best in ((1, 1), (2, 2), (3, None)):
        response = await http.post(path, json={**base, "n": n, "best_of": best})
        assert response.status_code == 200 and len(response.json()["choices"]) == n
    for n, best in ((2, 1), (1, 2), (2, 3), (1, 0)):
        error = check(await http.post(path, json={**base, "n": n, "best_of": best}), 400, "unsupported_parameter")
        assert error["param"] == "best_of"


def test_no_client_is_told_that_its_query_moved() -> None:
    """Who stands between clients and engines goes on elsewhere; where nobody does, the answer is over."""
    error = failure(Update("q", (1,), "a", "moved"))
    assert error is not None and (error.status, error.code) == (503, "shutting_down")
