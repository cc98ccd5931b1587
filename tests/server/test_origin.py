"""Of which trace a request is part reaches each of its queries."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from baton.core.origin import Origin
from server.scripted import ScriptedLoop

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SAID = [{"role": "user", "content": "a"}]
CHAT: tuple[str, dict[str, Any]] = ("/v1/chat/completions", {"messages": SAID, "max_tokens": 5})
ROUTES = [
    ("text_completion", "/v1/completions", {"prompt": ["a", "b"], "n": 2}),
    ("chat", "/v1/chat/completions", {"messages": SAID, "n": 3}),
    ("chat", "/v1/chat/completions", {"messages": SAID, "stream": True}),
    ("chat", "/v1/responses", {"input": "a", "max_output_tokens": 16}),
    ("chat", "/v1/messages", {"messages": SAID, "max_tokens": 5}),
]


@pytest.mark.parametrize(("operation", "path", "body"), ROUTES)
async def test_each_choice_knows_its_trace(
    http: httpx.AsyncClient, loop: ScriptedLoop, operation: str, path: str, body: dict[str, Any]
) -> None:
    sent = {"traceparent": PARENT, "tracestate": "a=1"}
    response = await http.post(path, json={"max_tokens": 5, **body} if "input" not in body else body, headers=sent)
    assert response.status_code == 200, response.text
    assert {query.origin for query in loop.queries} == {Origin(operation, PARENT, "a=1")}


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ([], Origin("chat")),
        ([("tracestate", "a=1")], Origin("chat")),
        ([("traceparent", "nonsense")], Origin("chat", "nonsense")),  # read where spans are made
        ([("traceparent", PARENT), ("traceparent", PARENT)], Origin("chat")),
        ([("traceparent", "0" * 513)], Origin("chat")),
        ([("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")], Origin("chat", PARENT, "a=1,b=2")),
        ([("traceparent", PARENT), ("tracestate", "a=" + "1" * 511)], Origin("chat", PARENT)),
    ],
)
async def test_headers_that_do_not_fit_are_left_out(
    http: httpx.AsyncClient, loop: ScriptedLoop, headers: list[tuple[str, str]], origin: Origin
) -> None:
    path, body = CHAT
    assert (await http.post(path, json=body, headers=headers)).status_code == 200
    assert [query.origin for query in loop.queries] == [origin]
