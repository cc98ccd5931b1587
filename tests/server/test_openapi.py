"""The API's description says what holds: statuses, limits in force, what is honoured.

schemathesis proves it at length (tests/clients/schemathesis.sh); here are its bounds, tried at their edges.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from baton.core.limits import Limits
from baton.jobs.folder import Folder
from baton.server.auth import Access
from baton.server.openapi import described
from server.scripted import CONTEXT, MODEL, Letters, ScriptedLoop, app_of, client_of

EVERY = {"200", "400", "408", "431", "500"}
STATUSES = {
    ("post", "/v1/completions"): EVERY | {"404", "413", "415", "429", "503", "504"},
    ("post", "/v1/chat/completions"): EVERY | {"404", "413", "415", "429", "503", "504"},
    ("post", "/v1/responses"): EVERY | {"404", "413", "415", "429", "503", "504"},
    ("post", "/v1/messages"): EVERY | {"404", "413", "415", "429", "503", "504"},
    ("post", "/v1/messages/count_tokens"): EVERY | {"404", "413", "415", "429", "503"},
    ("post", "/tokenize"): EVERY | {"404", "413", "415", "429", "503"},
    ("post", "/detokenize"): EVERY | {"404", "413", "415", "429", "503"},
    ("get", "/v1/models/{model}"): EVERY | {"404"},
    ("get", "/ready"): EVERY | {"503"},
} | {("get", path): EVERY for path in ("/v1/models", "/tokenizer_info", "/health", "/version", "/load", "/metrics")}
OF_BATCHES = {
    ("post", "/v1/files"): EVERY | {"413", "415", "507"},
    ("get", "/v1/files"): EVERY | {"404"},
    ("get", "/v1/files/{file_id}"): EVERY | {"404"},
    ("delete", "/v1/files/{file_id}"): EVERY | {"404"},
    ("get", "/v1/files/{file_id}/content"): EVERY | {"404"},
    ("post", "/v1/batches"): EVERY | {"404", "413", "415", "503", "507"},
    ("get", "/v1/batches"): EVERY | {"404"},
    ("get", "/v1/batches/{batch_id}"): EVERY | {"404"},
    ("post", "/v1/batches/{batch_id}/cancel"): EVERY | {"404", "507"},
}


def with_heads(statuses: dict[tuple[str, str], set[str]]) -> dict[tuple[str, str], set[str]]:
    return statuses | {("head", path): codes for (method, path), codes in statuses.items() if method == "get"}


def document_of(
    limits: Limits | None = None, access: Access | None = None, batches: Folder | None = None
) -> dict[str, Any]:
    loop = ScriptedLoop()
    document = app_of(loop, limits, access=access or Access(), batches=batches).openapi()
    loop.close()
    return dict(document)


@pytest.mark.parametrize("kept", [False, True])
def test_every_route_lists_what_it_can_answer(kept: bool, tmp_path: Path) -> None:
    with contextlib.closing(Folder(tmp_path, Limits())) as folder:
        document = document_of(batches=folder if kept else None)
    statuses = {(m, path): set(op["responses"]) for path, item in document["paths"].items() for m, op in item.items()}
    assert statuses == with_heads(STATUSES | (OF_BATCHES if kept else {}))
    for path, item in document["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items():
                assert response["headers"]["x-request-id"]["required"], (path, status)
                assert ("retry-after" in response["headers"]) == (status in ("429", "503"))
                if status != "200" and method != "head":
                    schema = response["content"]["application/json"]["schema"]
                    name = "AnthropicError" if path.startswith("/v1/messages") else "ErrorAnswer"
                    assert schema == {"$ref": f"#/components/schemas/{name}"}
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(names) == len(set(names))


def test_keys_are_declared_where_there_are_some() -> None:
    guarded, open_ = document_of(access=Access(keys=("k",))), document_of()
    assert guarded["components"]["securitySchemes"]["key"]["scheme"] == "bearer" and guarded["security"]
    for path, item in guarded["paths"].items():
        for operation in item.values():
            assert ("401" in operation["responses"]) == (path != "/health")
            assert (operation.get("security") == []) == (path == "/health")
    assert "security" not in open_ and "401" not in json.dumps(open_["paths"])


def test_all_references_lead_somewhere() -> None:
    document = document_of()
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


def bounds(limits: Limits, model: str) -> dict[str, dict[str, Any]]:
    """The bounds of each field's first kind."""
    properties = document_of(limits)["components"]["schemas"][model]["properties"]
    return {name: told.get("anyOf", [told])[0] for name, told in properties.items()}


def test_limits_in_force_are_told() -> None:
    limits = Limits(max_n=3, max_temperature=1.5, max_stop_strings=2, max_stop_characters=5, max_logprobs=7, max_bias=9)
    told = bounds(limits, "CompletionRequest")
    assert (told["n"]["minimum"], told["n"]["maximum"]) == (1, 3)
    assert told["temperature"]["maximum"] == 1.5 and told["logprobs"]["maximum"] == 7
    assert told["max_tokens"]["maximum"] == CONTEXT - 1 and told["max_tokens"]["minimum"] == 0
    assert told["stop"]["anyOf"][1]["maxItems"] == 2 and told["stop"]["anyOf"][0]["maxLength"] == 5
    assert told["stop_token_ids"]["items"]["maximum"] == Letters.vocabulary - 1
    assert told["logit_bias"]["additionalProperties"]["maximum"] == 9
    assert bounds(limits, "ChatRequest")["max_tokens"]["minimum"] == 1
    assert bounds(limits, "ChatRequest")["logprobs"]["type"] == "boolean"


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_numbers_are_taken_up_to_their_bounds_and_not_beyond(http: httpx.AsyncClient, path: str) -> None:
    chat = path != "/v1/completions"
    base = {"messages": [{"role": "user", "content": ""}], "logprobs": True} if chat else {"prompt": "a", "echo": True}
    told = bounds(Limits(), "ChatRequest" if chat else "CompletionRequest")
    tried = 0
    for name, bound in told.items():
        for key, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0)):
            if key not in bound:
                continue
            error = (await http.post(path, json={**base, name: bound[key] + step})).json()["error"]
            assert error["param"] == name or error["code"] == "context_length_exceeded", (name, key)
            tried += 1
            if step and name not in ("max_tokens", "max_completion_tokens", "min_tokens"):
                within = await http.post(path, json={**base, name: bound[key]})
                assert within.status_code == 200, (name, key, within.text)
    assert tried >= 24


async def test_null_and_neutral_values_are_taken_as_told(http: httpx.AsyncClient) -> None:
    properties = document_of()["components"]["schemas"]["CompletionRequest"]["properties"]
    for name, told in properties.items():
        if name != "prompt":
            anything = set(told) == {"description"}
            assert anything or {"type": "null"} in told.get("anyOf", []) or None in told["enum"], name
            for value in (None, *told.get("enum", ())):
                response = await http.post("/v1/completions", json={"prompt": "a", name: value})
                assert response.status_code == 200, (name, value, response.text)


async def test_whole_numbers_are_whole_however_they_are_written(http: httpx.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    response = await http.post("/v1/completions", content=b'{"prompt": [97.0], "n": 2.0, "seed": 1e2}', headers=headers)
    assert response.status_code == 200 and len(response.json()["choices"]) == 2
    response = await http.post("/v1/completions", content=b'{"prompt": [97], "n": 1.5}', headers=headers)
    assert response.status_code == 400 and response.json()["error"]["param"] == "n"


async def test_token_ids_of_logit_bias_are_those_of_the_pattern(http: httpx.AsyncClient) -> None:
    for key, taken in (
        ("0", True),
        ("255", True),
        ("99", True),
        ("256", False),
        ("007", False),
        ("-1", False),
        ("", False),
    ):
        response = await http.post("/v1/completions", json={"prompt": "a", "logit_bias": {key: 1}})
        assert (response.status_code == 200) is taken, key


def test_streams_are_told() -> None:
    document = document_of()
    for path, chunk in (
        ("/v1/completions", "CompletionChunk"),
        ("/v1/chat/completions", "ChatChunk"),
        ("/v1/responses", "ResponseEvent"),
        ("/v1/messages", "MessageEvent"),
    ):
        events = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
        assert chunk in json.dumps(events) and ("[DONE]" in json.dumps(events)) == ("Chunk" in chunk)
        assert chunk in document["components"]["schemas"]


async def test_the_document_is_made_once(loop: ScriptedLoop) -> None:
    app = app_of(loop)
    assert app.openapi() is app.openapi()
    assert described(app, client_of(loop), Access(), ()) == app.openapi() | {
        "components": described(app, client_of(loop), Access(), ())["components"]
    }


async def test_tokenizer_info(http: httpx.AsyncClient) -> None:
    assert (await http.get("/tokenizer_info")).json() == {
        "tokenizer_class": "Letters",
        "vocab_size": 256,
        "max_model_len": CONTEXT,
        "bos_token": None,
        "eos_token": "<end>",
        "pad_token": None,
        "unk_token": None,
        "special_tokens": {"<end>": 0},
        "chat_template": Letters().chat_template(tools=False),
    }
    assert (await http.get("/v1/models")).json()["data"][0]["id"] == MODEL
