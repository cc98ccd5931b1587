"""The routes that report the state, and the pages."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

import baton.server
from server.scripted import CONTEXT, MODEL, Letters, ScriptedLoop


async def test_models(http: httpx.AsyncClient) -> None:
    listed = (await http.get("/v1/models")).json()
    assert listed["object"] == "list" and len(listed["data"]) == 1
    assert (await http.get(f"/v1/models/{MODEL}")).json() == listed["data"][0]
    assert listed["data"][0]["id"] == MODEL and listed["data"][0]["max_model_len"] == CONTEXT
    response = await http.get("/v1/models/other")
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"


async def test_tokenize_and_back(http: httpx.AsyncClient) -> None:
    answer = (await http.post("/tokenize", json={"prompt": "abc"})).json()
    assert answer == {"count": 3, "max_model_len": CONTEXT, "tokens": [97, 98, 99]}
    assert (await http.post("/detokenize", json={"tokens": [97, 98]})).json() == {"prompt": "ab"}
    chat = {"messages": [{"role": "user", "content": "a"}]}
    assert (await http.post("/tokenize", json=chat)).json()["count"] == len("<user>a")


async def test_tokenize_with_and_without_special_tokens(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Letters, "encode", lambda self, text, *, special=True: [0, 97] if special else [97])
    for asked, tokens in (
        ({}, [0, 97]),
        ({"add_special_tokens": None}, [0, 97]),
        ({"add_special_tokens": False}, [97]),
    ):
        assert (await http.post("/tokenize", json={"prompt": "a", **asked})).json()["tokens"] == tokens


async def test_tokenize_refuses(http: httpx.AsyncClient) -> None:
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 1}, "prompt"),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 0}, "add_special_tokens"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": ""}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("/detokenize", {"tokens": [256]}, "tokens"),
        ("/detokenize", {"tokens": ["a"] * 100}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ):
        response = await http.post(path, json=body)
        assert response.status_code == 400 and response.json()["error"]["param"] == param


async def test_health_ready_version(http: httpx.AsyncClient, loop: ScriptedLoop) -> None:
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/ready")).status_code == 200
    assert (await http.get("/version")).json() == {"version": "9.9"}
    loop.reason = "no iteration for 61 s"
    assert (await http.get("/health")).status_code == 200
    response = await http.get("/ready")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["message"]) == (503, "engine_unhealthy", loop.reason)
    assert "retry-after" in response.headers


async def test_load(http: httpx.AsyncClient) -> None:
    load = (await http.get("/load")).json()
    assert load["rows"] == 8 and load["waiting"] == 2 and load["generated_tokens"] == 13
    assert (load["useful_slots"], load["idle_slots"], load["server_load"]) == (30, 10, 3)


async def test_metrics_are_passed_through(http: httpx.AsyncClient) -> None:
    response = await http.get("/metrics")
    assert (response.content, response.headers["content-type"]) == (b"up 1\n", "text/plain")


async def test_openapi_names_every_field(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    reference = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    schema = document["components"]["schemas"][reference["$ref"].split("/")[-1]]
    assert {"messages", "max_completion_tokens", "baton_usage", "top_k"} <= set(schema["properties"])
    assert schema["additionalProperties"] == {"type": "null"}, "a null is taken whatever its name"
    assert "422" not in str(document)


async def test_pages_are_whole_and_use_nothing_from_outside(http: httpx.AsyncClient) -> None:
    for page in ("/", "/docs"):
        response = await http.get(page)
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        for reference in re.findall(r'(?:src|href)="([^"]+)"', response.text):
            assert reference.startswith("/"), reference
            assert (await http.get(reference)).status_code == 200, reference
        assert "style=" not in response.text and "<script>" not in response.text


def test_pages_insert_text_only() -> None:
    for script in (Path(baton.server.__file__).parent / "page").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text())
