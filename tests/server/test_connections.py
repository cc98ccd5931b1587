"""What raw sockets may do to the server: each gets a clear answer or a clean end, and costs others nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from unittest.mock import Mock

import httpx
import pytest

import baton.server.connection
from baton.core.limits import Limits
from baton.server.connection import LingeringTransport
from server.listening import listening
from server.scripted import ScriptedLoop, app_of
from server.wire import Wire, exchange, get, post

BODY = b'{"prompt": "a"}'
STREAM = b'{"prompt": "a", "stream": true}'


def serving(loop: ScriptedLoop, **limits: float) -> AbstractContextManager[str]:
    known = Limits(**limits)  # type: ignore[arg-type]
    return listening(app_of(loop, known), known)


@pytest.fixture(scope="module")
def standing() -> Iterator[tuple[str, ScriptedLoop]]:
    loop = ScriptedLoop()
    with serving(loop) as url:
        yield url, loop
    loop.close()


@pytest.fixture
def loop(standing: tuple[str, ScriptedLoop]) -> ScriptedLoop:
    loop = standing[1]
    served = loop.served
    loop.__init__()  # type: ignore[misc]
    loop.served = served
    return loop


@pytest.fixture
def url(standing: tuple[str, ScriptedLoop], loop: ScriptedLoop, caplog: pytest.LogCaptureFixture) -> Iterator[str]:
    """One server for all tests, which logs nothing and still answers after whatever a test did."""
    url, _ = standing
    with caplog.at_level(logging.INFO):
        yield url
        assert exchange(url, get("/health", "Connection: close")).status == 200
        assert [record.getMessage() for record in caplog.records if record.name not in ("httpx", "uvicorn.error")] == []
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def until(there: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.005)


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


CHUNKED = ("POST /v1/completions HTTP/1.1", "Host: a", "Content-Type: application/json", "Transfer-Encoding: chunked")
POST = ("POST /v1/completions HTTP/1.1", "Host: a", "Content-Type: application/json")

BROKEN = {
    "both lengths": head(*CHUNKED, "Content-Length: 15") + b"0\r\n\r\n",
    "two lengths": head(*POST, "Content-Length: 15", "Content-Length: 16") + BODY,
    "two lengths in one": head(*POST, "Content-Length: 15, 16") + BODY,
    "a length of words": head(*POST, "Content-Length: many"),
    "a length below zero": head(*POST, "Content-Length: -1"),
    "a length with a sign": head(*POST, "Content-Length: +15") + BODY,
    "a chunk's size of words": head(*CHUNKED) + b"zz\r\n",
    "a chunk's size below zero": head(*CHUNKED) + b"-1\r\n",
    "a chunk longer than it says": head(*CHUNKED) + b"1\r\nab\r\n0\r\n\r\n",
    "an unknown coding": head(*POST, "Transfer-Encoding: gzip, chunked"),
    "a coding twice": head(*CHUNKED, "Transfer-Encoding: chunked"),
    "chunks in HTTP/1.0": head("POST /v1/completions HTTP/1.0", *CHUNKED[1:]) + b"0\r\n\r\n",
    "a folded header": head("GET /health HTTP/1.1", "Host: a", "X-Long: a", " b"),
    "a folded first header": head("GET /health HTTP/1.1", " Host: a"),
    "NUL in a header": head("GET /health HTTP/1.1", "Host: a", "X-Nul: a\0b"),
    "NUL in a name": head("GET /health HTTP/1.1", "Host: a", "X\0Nul: a"),
    "a space before the colon": head("GET /health HTTP/1.1", "Host : a"),
    "a header without a colon": head("GET /health HTTP/1.1", "Host: a", "nonsense"),
    "no host": head("GET /health HTTP/1.1"),
    "two hosts": head("GET /health HTTP/1.1", "Host: a", "Host: b"),
    "two keys": head("GET /health HTTP/1.1", "Host: a", "Authorization: Bearer a", "authorization: Bearer b"),
    "two keys of messages": head("GET /health HTTP/1.1", "Host: a", "X-Api-Key: a", "x-api-key: b"),
    "two types": head(*POST, "Content-Type: text/plain", "Content-Length: 15") + BODY,
    "one type twice": head(*POST, "Content-Type: application/json", "Content-Length: 15") + BODY,
    "HTTP/0.9": head("GET /health"),
    "HTTP/3.0": head("GET /health HTTP/3.0", "Host: a"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "an address as target": head("GET http://localhost/health HTTP/1.1", "Host: a"),
    "a target that is no path": head("GET health HTTP/1.1", "Host: a"),
    "a target beyond ASCII": head("GET /h\xe9alth HTTP/1.1", "Host: a"),
    "a space in the target": head("GET /he alth HTTP/1.1", "Host: a"),
    "WebSocket": head("GET /health HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket"),
    "noise": b"\r\n\r\n\r\n",
    "more noise": bytes(range(33, 127)) * 8 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_requests(url: str, loop: ScriptedLoop, name: str) -> None:
    error = exchange(url, BROKEN[name]).error
    assert (error["type"], error["code"]) == ("invalid_request_error", None)
    assert loop.queries == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "DELETE", "OPTIONS", "FOO"])
def test_other_methods(url: str, method: str) -> None:
    target = "localhost:80" if method == "CONNECT" else "/health"
    answer = exchange(url, head(f"{method} {target} HTTP/1.1", "Host: a", "Connection: close"))
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


LARGE = {
    "a target": head(f"GET /{'a' * 40_000} HTTP/1.1", "Host: a"),
    "a header": head("GET /health HTTP/1.1", "Host: a", f"X-Long: {'a' * 40_000}"),
    "headers": head("GET /health HTTP/1.1", "Host: a", *(f"X-{n}: a" for n in range(6000))),
    "a header without an end": b"GET /health HTTP/1.1\r\nX-Long: " + b"a" * 300_000,
    "a target without an end": b"GET /" + b"a" * 300_000,
}


@pytest.mark.parametrize("name", LARGE)
def test_headers_that_are_too_large(url: str, name: str) -> None:
    answer = exchange(url, LARGE[name])
    assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
    assert "--max-header-bytes" in answer.error["message"] and "32768" in answer.error["message"]


def test_the_largest_headers_are_taken_in_one_piece_or_many(url: str) -> None:
    request = get("/health", "Connection: close", "X-Long: " + "a" * 32_000)
    assert exchange(url, request).status == 200
    with Wire(url) as wire:
        for at in range(0, len(request), 1000):
            wire.send(request[at : at + 1000])
        assert wire.answer().status == 200


def test_a_request_in_single_bytes(url: str) -> None:
    with Wire(url) as wire:
        for byte in post(BODY):
            wire.send(bytes([byte]))
        assert wire.answer().status == 200
        assert wire.send(get()).answer().status == 200


def test_head_answers_as_get_without_the_body(url: str) -> None:
    for path, status in (
        ("/health", 200),
        ("/v1/models", 200),
        ("/", 200),
        ("/nothing", 404),
        ("/v1/completions", 405),
    ):
        with Wire(url) as wire:
            answer = wire.send(get(path).replace(b"GET", b"HEAD")).answer("HEAD")
            assert answer.status == status and answer.body == b"" and int(answer.headers["content-length"]) > 0
            assert wire.send(get(path)).answer().status == status, "nothing was left behind"
    assert exchange(url, head("HEAD http://localhost/ HTTP/1.1", "Host: a")).status == 400


def test_requests_in_one_packet_are_answered_in_turn(url: str, loop: ScriptedLoop) -> None:
    with Wire(url) as wire:
        wire.send(post(BODY) + get("/version") + post(STREAM) + get())
        answers = [wire.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert b"9.9" in answers[1].body and answers[2].body.endswith(b"data: [DONE]\n\n")
    assert len(loop.queries) == 2


def test_a_broken_request_behind_a_whole_one(url: str) -> None:
    with Wire(url) as wire:
        wire.send(get() + b"nonsense\r\n\r\n")
        assert wire.answer().status == 200
        assert wire.answer().error["code"] is None
        assert wire.closed()


def test_the_request_id_is_kept_where_it_was_read(url: str) -> None:
    sent = head(*CHUNKED, "X-Request-ID: mine") + b"zz\r\n"
    assert exchange(url, sent).headers["x-request-id"] == "mine"
    with Wire(url) as wire:
        assert wire.send(get("/health", "X-Request-ID: mine")).answer().headers["x-request-id"] == "mine"
        assert wire.send(b"nonsense\r\n\r\n").answer().headers["x-request-id"] != "mine"


def test_an_offer_of_http2_is_answered_in_http1(url: str) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    with Wire(url) as wire:
        assert wire.send(post(BODY, *offer)).answer().status == 200
        assert wire.send(get("/health", *offer)).answer().status == 200
        assert wire.send(get()).answer().status == 200


# Bodies


def test_a_client_that_waits_for_the_servers_word_gets_it(url: str) -> None:
    whole = post(BODY, "Expect: 100-continue")
    with Wire(url) as wire:
        wire.send(whole.removesuffix(BODY))
        assert wire.socket.recv(2**10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert wire.send(BODY).answer().status == 200


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (post(b"", "Expect: 100-continue", length=5 * 2**20), 413),
        (post(b"", "Expect: 100-continue", length=15).replace(b"application/json", b"text/plain"), 415),
        (post(b"", "Expect: 100-continue", length=15, path="/nothing"), 404),
        (post(b"", "Expect: 100-continue", length=15, path="/health"), 405),
    ],
)
def test_who_waits_for_the_servers_word_is_refused_at_once(url: str, request_head: bytes, status: int) -> None:
    answer = exchange(url, request_head)
    assert answer.status == status and answer.headers["connection"] == "close" and answer.error


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_and_its_client_sees_why(url: str, chunked: bool) -> None:
    """The client sends all of it before it looks for an answer, as most do."""
    size = 24 * 2**20
    with Wire(url) as wire:
        wire.send(head(*CHUNKED) if chunked else post(b"", length=size))
        for _ in range(size // 2**20):
            wire.send((b"100000\r\n" if chunked else b"") + b" " * 2**20 + (b"\r\n" if chunked else b""))
        assert wire.answer().error["code"] == "payload_too_large"
        assert wire.closed()


def test_a_body_in_crumbs_is_refused(url: str, loop: ScriptedLoop) -> None:
    """Each chunk costs the event loop time, however small it is."""
    crumbs = [b"1\r\n%c\r\n" % byte for byte in b'{"prompt": "a"}' + b" " * 9_986]
    with Wire(url) as wire:
        for at, last in ((0, 9_999), (1, 10_001)):
            wire.send(head(*CHUNKED) + b"".join(crumbs[:last]) + (b"" if at else b"0\r\n\r\n"))
            answer = wire.answer()
            assert answer.status == (413 if at else 200)
        assert "--max-chunks" in answer.error["message"] and answer.error["code"] == "payload_too_large"
        assert wire.closed()


def test_a_refused_body_that_never_ends_is_cut_off(
    loop: ScriptedLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(baton.server.connection, "LINGER_SECONDS", 0.3)
    with serving(loop) as url, Wire(url) as wire:
        wire.send(post(b"", length=2**40))
        assert wire.answer().status == 413
        with pytest.raises(ConnectionError):  # noqa: PT012
            while True:
                wire.send(b" " * 2**16)
    assert not caplog.records


@pytest.mark.parametrize(
    "sent", [post(BODY, length=99), head(*CHUNKED) + b"5\r\n{", get()[:20], b"", post(b"", length=9)]
)
def test_a_truncated_request_ends_quietly(url: str, loop: ScriptedLoop, sent: bytes) -> None:
    with Wire(url) as wire:
        wire.send(sent)
    with Wire(url) as wire:
        wire.send(sent)
        time.sleep(0.05)
        wire.vanish()
    assert loop.queries == []


# Time


def test_headers_that_do_not_arrive(loop: ScriptedLoop) -> None:
    with serving(loop, header_timeout=0.2) as url:
        for sent in (b"", b"GET", get()[:-2]):
            answer = exchange(url, sent)
            assert (answer.status, answer.error["type"]) == (408, "timeout_error")
            assert answer.error["code"] == "request_timeout" and "--header-timeout" in answer.error["message"]


def test_headers_of_a_later_request_that_do_not_arrive(loop: ScriptedLoop) -> None:
    with serving(loop, header_timeout=0.3) as url, Wire(url) as wire:
        for _ in range(3):
            assert wire.send(get()).answer().status == 200
            time.sleep(0.4)  # between requests the time of headers does not run
        wire.send(get()[:9])
        assert wire.answer().status == 408 and wire.closed()
    with serving(loop, header_timeout=0.3) as url, Wire(url) as wire:
        wire.send(get() + get()[:9])
        assert [wire.answer().status, wire.answer().status] == [200, 408]


def test_headers_are_in_time_while_a_body_or_an_answer_takes_long(loop: ScriptedLoop) -> None:
    loop.held = True
    with serving(loop, header_timeout=0.2) as url, Wire(url) as wire:
        wire.send(post(BODY, length=len(BODY))[:-5])
        time.sleep(0.3)
        wire.send(BODY[-5:])
        until(lambda: bool(loop.live))
        time.sleep(0.3)
        loop.release()
        assert wire.answer().status == 200


def test_a_connection_without_a_request_is_closed(loop: ScriptedLoop) -> None:
    with serving(loop, keep_alive_timeout=0.2) as url, Wire(url) as wire:
        assert wire.send(get()).answer().status == 200
        assert wire.closed()


def test_a_body_that_does_not_arrive(loop: ScriptedLoop) -> None:
    with serving(loop, body_timeout=0.2) as url:
        answer = exchange(url, post(BODY, length=99))
        assert answer.status == 408 and "--body-timeout" in answer.error["message"]
    assert loop.queries == []


def test_a_client_that_does_not_read_is_left(loop: ScriptedLoop) -> None:
    loop.opening, loop.held = "x" * 10_000_000, True
    with serving(loop, send_timeout=0.3) as url, Wire(url) as wire:
        wire.send(post(STREAM))
        assert loop.cancels.wait(20)
    assert len(loop.cancelled) == 1


async def test_what_is_left_of_a_closed_connection_is_given_up() -> None:
    """An answer's end may stay unread though it fills no buffer."""
    done: list[str] = []
    transport = Mock(is_closing=lambda: False, close=lambda: done.append("close"), abort=lambda: done.append("abort"))
    LingeringTransport(transport, asyncio.get_running_loop(), 0.01, unread=lambda: False).close()
    read = LingeringTransport(transport, asyncio.get_running_loop(), 0.01, unread=lambda: False)
    read.close()
    read.lost()
    await asyncio.sleep(0.05)
    assert done == ["close", "close", "abort"]


# Clients that leave


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("more", [b"", get(), get() * 50, b"\r\n"], ids=["", "one more", "many more", "a line end"])
def test_a_client_that_leaves_is_noticed_whatever_it_sent_behind(
    url: str, loop: ScriptedLoop, stream: bool, more: bytes
) -> None:
    loop.held = True
    with Wire(url) as wire:
        wire.send(post(STREAM if stream else BODY) + more)
        until(lambda: bool(loop.live))
    assert loop.cancels.wait(20)
    until(lambda: not loop.live)


def test_a_client_that_offered_http2_and_leaves_is_noticed(url: str, loop: ScriptedLoop) -> None:
    loop.held = True
    with Wire(url) as wire:
        wire.send(post(BODY, "Connection: Upgrade", "Upgrade: h2c"))
        until(lambda: bool(loop.live))
    assert loop.cancels.wait(20)


def test_a_line_end_behind_a_last_request_is_no_second_one(url: str, loop: ScriptedLoop) -> None:
    loop.held = True
    with Wire(url) as wire:
        wire.send(post(BODY, "Connection: close"))
        until(lambda: bool(loop.live))
        wire.send(b"\r\n")
        time.sleep(0.05)
        loop.release()
        assert wire.answer().status == 200
    assert loop.cancelled == []


def test_an_ordinary_client_over_one_connection(url: str) -> None:
    with httpx.Client(base_url=url) as http:
        for _ in range(20):
            assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
            assert http.get("/nothing").status_code == 404
