"""The official client against a real port: what it reads, what it raises, and what its going away does."""

from __future__ import annotations

import socket
import time
from typing import Any

import openai
import pytest

from baton.core.errors import QueueFull, ShuttingDown
from server.scripted import CONTEXT, MODEL, ScriptedLoop

PATIENCE = 20


@pytest.fixture
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def hi(client: openai.OpenAI, **more: object) -> Any:
    return client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}], **more)  # type: ignore


def test_chat_plain(client: openai.OpenAI, loop: ScriptedLoop) -> None:
    answer = hi(client, n=2, stop=["x"], seed=3, extra_body={"baton_usage": True, "top_k": 5})
    assert [choice.message.content for choice in answer.choices] == ["hello", "hello"]
    assert answer.usage.completion_tokens == 10
    assert answer.usage.model_extra["baton"]["useful_slots"] == 60
    assert loop.queries[0].params.stop == ("x",) and loop.queries[0].params.top_k == 5


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(hi(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "hello"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == 13


def test_chat_stream_by_the_clients_own_accumulator(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": "hi"}]) as stream:
        assert stream.get_final_completion().choices[0].message.content == "hello"


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "b"], echo=True)
    assert [choice.text for choice in answer.choices] == ["ahello", "bhello"]
    chunks = list(client.completions.create(model=MODEL, prompt="a", stream=True, max_tokens=2))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "he"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).model_extra["max_model_len"] == CONTEXT


def test_error_classes(client: openai.OpenAI, loop: ScriptedLoop) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        hi(client, modalities=["audio"])
    assert (bad.value.code, bad.value.param) == ("unsupported_parameter", "modalities")
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    loop.refuse = QueueFull("256 are waiting")
    for stream in (False, True):
        with pytest.raises(openai.RateLimitError) as full:
            hi(client, stream=stream)
        assert full.value.response.headers["retry-after"] == "1"
    loop.refuse = ShuttingDown("the server is shutting down")
    with pytest.raises(openai.InternalServerError) as down:
        hi(client)
    assert down.value.status_code == 503


def test_failure_in_a_stream_that_has_begun(client: openai.OpenAI, loop: ScriptedLoop) -> None:
    loop.held, loop.opening = True, "he"
    stream = iter(hi(client, stream=True))
    assert next(stream).choices[0].delta.role == "assistant"
    loop.fail_after = 1
    loop.release()
    with pytest.raises(openai.APIError, match="NaN"):
        list(stream)


def test_closing_a_stream_aborts(client: openai.OpenAI, loop: ScriptedLoop) -> None:
    loop.held, loop.opening = True, "he"
    stream = hi(client, stream=True, n=2)
    next(iter(stream))
    stream.close()
    # Both at once in one process; behind a front, maybe one after the other.
    patience = time.monotonic() + PATIENCE
    while sorted(loop.cancelled) != sorted(query.id for query in loop.queries):
        assert time.monotonic() < patience, loop.cancelled
        time.sleep(0.01)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_closing_the_connection_before_any_answer_aborts(base_url: str, loop: ScriptedLoop, stream: str) -> None:
    loop.held = True
    body = f'{{"prompt": "a", "stream": {stream}}}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    host, port = base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        assert loop.came.wait(PATIENCE)
        assert not loop.cancels.is_set()
    assert loop.cancels.wait(PATIENCE)
    assert loop.cancelled == [loop.queries[0].id]


def test_reader_that_stops_reading_and_goes_aborts(base_url: str, loop: ScriptedLoop) -> None:
    """The server is stuck in a write, with its buffers full, when the connection closes."""
    loop.held = True
    body = '{"prompt": "a", "stream": true}'
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    host, port = base_url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(f"{head}\r\n\r\n{body}".encode())
        assert loop.came.wait(PATIENCE)
        for _ in range(5):  # less than --max-unread-bytes
            loop.say("x" * 2**20)
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert not loop.cancels.is_set()
    assert loop.cancels.wait(PATIENCE)
