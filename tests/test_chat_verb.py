"""`baton chat`: through pipes, on a terminal, with our server and with others' odd streams."""

from __future__ import annotations

import io
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from baton.chat.clean import clean, one_line
from baton.chat.conversation import SETTABLE, changed
from baton.chat.events import events
from baton.chat.lines import question
from baton.chat.remote import base_of, may_be_sent
from baton.chat.screen import Terminal as Screen
from baton.cli.main import main
from baton.core.errors import QueueFull, SettingError
from baton.core.query import SamplingParams
from baton.server.auth import Access
from server.listening import listening
from server.scripted import MODEL, ScriptedLoop, app_of
from tiny_checkpoint import save_tiny
from warm import run_warm

PATIENCE = 30


@dataclass(frozen=True)
class ForwardStats:
    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that it said on stderr."""
        (line,) = self.err.splitlines()
        assert line.startswith("baton: ") and line.isprintable()
        return line


Chat = Callable[..., ForwardStats]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Chat]:
    """Runs the verb in this process with `stdin` piped into it."""
    for name in [name for name in os.environ if name.startswith(("BATON_", "OPENAI_"))]:
        monkeypatch.delenv(name)
    handlers = list(logging.getLogger().handlers)

    def runs(*arguments: str, stdin: str = "hi\n", **environment: str) -> ForwardStats:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["baton", "chat", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ForwardStats(int(ended.value.code or 0), said.out, said.err)

    yield runs
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def loop() -> Iterator[ScriptedLoop]:
    loop = ScriptedLoop()
    yield loop
    loop.close()


@pytest.fixture
def url(loop: ScriptedLoop) -> Iterator[str]:
    with listening(app_of(loop)) as address:
        yield address


def told(loop: ScriptedLoop) -> list[str]:
    """The prompts as the scripted tokenizer wrote them, a letter a token."""
    return ["".join(map(chr, query.prompt)) for query in loop.queries]


# Through pipes, with our server


def test_each_line_is_answered_and_remembered(chat: Chat, url: str, loop: ScriptedLoop) -> None:
    ran = chat(url, stdin="a\n\n  b \n")
    assert ran == ForwardStats(0, "hello\nhello\n", "")
    assert told(loop) == ["<user>a", "<user>a<assistant>hello<user>b"]


def test_what_was_thought_is_dimmed_on_a_terminal_and_left_out_of_a_pipe(
    chat: Chat, url: str, loop: ScriptedLoop, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.tokenizer.template, loop.answer = "{{ messages }} </think>", "<think>hm</think>hello"
    assert chat(url, stdin="a\nb\n") == ForwardStats(0, "hello\nhello\n", "")
    assert told(loop)[1] == "<user>a<assistant>hello<user>b"
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen()
    for word in ("h", "m"):
        screen.thought(word)
    screen.said("hello")
    out = capsys.readouterr().out
    assert "\x1b[2mh" in out and out.endswith("\nhello")


def test_flags_reach_the_engine(chat: Chat, url: str, loop: ScriptedLoop) -> None:
    flags = ("--system", "be", "--temperature", "0.5", "--max-tokens", "3", "--sampling-seed", "4")
    assert chat(f"{url}/v1/", *flags, "--model-name", MODEL).out == "hel\n"
    (query,) = loop.queries
    assert told(loop) == ["<system>be<user>hi"]
    assert (query.params.temperature, query.params.max_tokens, query.params.seed) == (0.5, 3, 4)


def test_what_is_not_given_is_the_servers_choice(chat: Chat, url: str, loop: ScriptedLoop) -> None:
    chat(url)
    assert loop.queries[0].params == SamplingParams(max_tokens=None)


def test_commands(chat: Chat, url: str, loop: ScriptedLoop) -> None:
    lines = ["a", "/set temperature 0.25", "/retry", "/system be", "/set stop l\\nx", "/new", "b", "/set stop"]
    lines += ["/system", "/retry", "/set", "/stats", "/help", " /x", "/exit", "never"]
    ran = chat(url, stdin="\n".join(lines))
    assert ran.status == 0
    assert ran.out == "hello\n" * 5
    assert told(loop) == ["<user>a", "<user>a", "<system>be<user>b", "<user>b", "<user>b<assistant>hello<user>/x"]
    assert [query.params.temperature for query in loop.queries] == [1, 0.25, 0.25, 0.25, 0.25]
    assert [query.params.stop for query in loop.queries] == [(), (), ("l\nx",), (), ()]
    assert "temperature 0.25" in ran.err and "4, 20 tokens" in ran.err and "/retry" in ran.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/sing", "/sing"),
        ("/retry", "no question"),
        ("/set", None),
        ("/set n 2", "there is no n"),
        ("/set temperature warm", "not a number"),
        ("/set temperature nan", "temperature"),
        ("/set top_k 1.5", "top_k"),
        ("/set top_p 7", "top_p"),
    ],
)
def test_a_command_that_cannot_be_ends_a_pipe(command: str, words: str | None, chat: Chat, url: str) -> None:
    ran = chat(url, stdin=f"{command}\nhi\n")
    if words is None:
        assert ran.status == 0
    else:
        assert ran.status == 2 and ran.out == "" and words in ran.complaint


def test_lines_that_belong_together(chat: Chat, url: str, loop: ScriptedLoop) -> None:
    chat(url, stdin='a\\\nb\n/new\n"""\nc\n\nd\n"""\n/new\n"""e"""\n/new\nf\\')
    assert told(loop) == ["<user>a\nb", "<user>c\n\nd", "<user>e", "<user>f"]


# What cannot be


def test_a_server_that_is_not_there(chat: Chat, url: str) -> None:
    ran = chat("http://127.0.0.1:9")
    assert ran.status == 1 and "http://127.0.0.1:9/v1 cannot be reached" in ran.complaint


def test_a_key_is_needed_and_found_where_it_may_be(chat: Chat, loop: ScriptedLoop) -> None:
    with listening(app_of(loop, access=Access(keys=("sesame",)))) as url:
        ran = chat(url)
        assert ran.status == 1 and "401" in ran.complaint and "--api-key" in ran.complaint
        assert "401" in chat(url, "--api-key", "simsim").complaint
        assert chat(url, "--api-key", "sesame").out == "hello\n"
        assert chat(url, OPENAI_API_KEY="sesame").out == "hello\n"
        assert chat(url, OPENAI_API_KEY="wrong", BATON_API_KEY="sesame, other").out == "hello\n"


def test_a_key_for_another_never_goes_over_a_network_in_the_clear() -> None:
    for good in ("https://a.example", "http://127.0.0.1:1", "http://localhost", "http://[::1]:8000"):
        assert may_be_sent(good)
    for bad in ("http://a.example", "http://10.0.0.1", "http://127.0.0.1.example", "http://localhost.example"):
        assert not may_be_sent(bad)


def test_what_the_server_refuses_is_one_line_and_the_end(chat: Chat, url: str, loop: ScriptedLoop) -> None:
    loop.refuse = QueueFull("256 queries are waiting, the limit is 256 (--max-waiting)")
    ran = chat(url, stdin="a\nb\n")
    assert ran.status == 1 and ran.out == ""
    assert "429" in ran.complaint and "--max-waiting" in ran.complaint
    loop.refuse = None
    assert "there is no model" in chat(url, "--model-name", "other").complaint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:1", "--dtype", "bfloat16"], "--dtype is for a model in this process"),
        (["--api-key", "x"], "--api-key is for a server"),
        (["--model-name", "x"], "--model-name is for a server"),
        (["http://", "--temperature", "0"], "not an address"),
        (["http://[::1", "--temperature", "0"], "not an address"),
        (["http://127.0.0.1:1", "--temperature", "nan"], "temperature"),
        (["http://127.0.0.1:1", "--max-tokens", "0"], "max_tokens"),
    ],
)
def test_flags_that_cannot_be(arguments: list[str], words: str, chat: Chat) -> None:
    ran = chat(*arguments)
    assert ran.status == 2 and ran.out == "" and words in ran.complaint


# Other servers


@dataclass
class Other:
    """A server with prepared answers. `answers`: status, content type and body's pieces, for one call each."""

    url: str
    answers: list[tuple[int, str, list[bytes]]]
    models: bytes
    asked: list[dict[str, Any]]


@contextmanager
def other_server() -> Iterator[Other]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, "application/json", [recorded.models])

        def do_POST(self) -> None:
            recorded.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.reply(*recorded.answers.pop(0))

        def reply(self, status: int, kind: str, pieces: list[bytes]) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.end_headers()  # HTTP/1.0: the body ends with the connection
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    models = b'{"data": [{"id": "first"}, {"id": "second"}]}'
    recorded = Other(f"http://127.0.0.1:{server.server_port}", [], models, [])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield recorded
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def other() -> Iterator[Other]:
    with other_server() as started:
        yield started


def chunk(text: str | None = None, reason: str | None = None, **more: object) -> str:
    delta = {} if text is None else {"content": text}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}], **more}, ensure_ascii=False)


def stream(*data: str, end: str = "\n\n") -> bytes:
    return "".join(f"data: {one}{end}" for one in data).encode()


SAID, DONE = [chunk("Grü"), chunk("ße 🦊")], [chunk(reason="stop"), "[DONE]"]


@pytest.mark.parametrize(
    "body",
    [
        stream(*SAID, *DONE),
        stream(*SAID, *DONE, end="\r\n\r\n"),
        b": waiting\n\n" + stream(SAID[0]) + b": ping\n" + stream(SAID[1], *DONE),
        b"id: 1\nretry: 5\nevent: message\n" + stream(*SAID, *DONE),
        stream('{"choices": []}', chunk(), SAID[0], '{"choices": null}', SAID[1], '{"usage": {}}', *DONE),
        stream('{"choices": [{"delta": {"role": "assistant", "content": null}}]}', *SAID, *DONE),
        stream('{"choices": [{"delta": null}]}', *SAID, *DONE),
        stream(*SAID, DONE[0]),
        stream(*SAID, *DONE).rstrip(b"\n"),
        stream(*SAID, *DONE).replace(b"data: ", b"data:"),
        stream(SAID[0]).replace(b', "finish', b',\ndata: "finish') + stream(SAID[1], *DONE),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_streams_of_every_shape(size: int, body: bytes, chat: Chat, other: Other) -> None:
    other.answers = [(200, "text/event-stream", [body[at : at + size] for at in range(0, len(body), size)])]
    assert chat(other.url) == ForwardStats(0, "Grüße 🦊\n", "")
    assert other.asked[0]["model"] == "first" and other.asked[0]["stream_options"] == {"include_usage": True}


def test_what_python_takes_for_line_ends_is_text_in_a_stream(chat: Chat, other: Other) -> None:
    text = "a\u2028b\u0085c\x0bd"
    raw = chunk("TEXT").replace("TEXT", "a\u2028b\u0085c\\u000bd")
    assert json.loads(raw)["choices"][0]["delta"]["content"] == text
    other.answers = [(200, "text/event-stream; charset=utf-8", [stream(raw, *DONE)])]
    assert chat(other.url).out == "a\u2028b\ufffdc\u240bd\n"


def test_a_plain_answer_where_a_stream_was_asked_for(chat: Chat, other: Other) -> None:
    body = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}], "usage": None}
    other.answers = [(200, "application/json", [json.dumps(body).encode()])]
    assert chat(other.url).out == "whole\n"


def test_a_server_that_knows_no_stream_options_is_asked_without(chat: Chat, other: Other) -> None:
    refused = (400, "application/json", [b'{"error": "unknown field: stream_options"}'])
    good = (200, "text/event-stream", [stream(*SAID, *DONE)])
    other.answers = [refused, good, good]
    assert chat(other.url, stdin="a\nb\n").out == "Grüße 🦊\n" * 2
    assert ["stream_options" in asked for asked in other.asked] == [True, False, False]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, "text/event-stream", [stream(SAID[0])]), "ended in the middle"),
        ((200, "text/event-stream", [stream('{"error": {"message": "out of luck"}}')]), "out of luck"),
        ((200, "text/event-stream", [b'event: error\ndata: {"message": "out of luck"}\n\n']), "out of luck"),
        ((200, "text/event-stream", [stream("<html>")]), "<html>"),
        ((200, "text/event-stream", [stream("[1, 2]")]), "[1, 2]"),
        ((200, "application/json", [b"{"]), "not OpenAI's API"),
        ((500, "text/plain", [b"a long\n\tstory \x1b[2J" * 90]), "500: a long story"),
        ((422, "application/json", [b'{"detail": [{"loc": ["body"]}]}']), '"loc"'),
        ((302, "text/html", [b""]), "302"),
    ],
)
def test_streams_that_are_none(answer: Any, words: str, chat: Chat, other: Other) -> None:
    other.answers = [answer]
    ran = chat(other.url)
    assert ran.status == 1 and words in ran.complaint and len(ran.complaint) < 500


def test_an_error_in_the_middle_is_told_behind_what_came(chat: Chat, other: Other) -> None:
    other.answers = [(200, "text/event-stream", [stream(*SAID, '{"error": {"message": "NaN"}}')])]
    ran = chat(other.url, stdin="a\nb\n")
    assert ran.status == 1 and ran.out == "Grüße 🦊\n" and "the server failed: NaN" in ran.complaint


def test_a_model_is_named_where_none_is_listed(chat: Chat, other: Other) -> None:
    other.models = b'{"data": []}'
    assert "--model-name" in chat(other.url).complaint
    other.answers = [(200, "text/event-stream", [stream(*SAID, *DONE)])]
    assert chat(other.url, "--model-name", "mine").out == "Grüße 🦊\n"
    assert other.asked[0]["model"] == "mine"


def test_control_characters_never_reach_the_terminal(chat: Chat, other: Other) -> None:
    bad = "\x1b]0;title\x07\x1b[2J\x9b31m\x00\x7f\r\u202eabc"
    other.answers = [(200, "text/event-stream", [stream(json.dumps(json.loads(chunk(bad))), *DONE)])]
    assert chat(other.url).out == "␛]0;title␇␛[2J�31m␀␡abc\n"
    other.answers = [(400, "application/json", [json.dumps({"error": {"message": bad}}).encode()])]
    assert "␛]0;title␇" in chat(other.url).complaint
    other.models = json.dumps({"data": [{"id": bad}]}).encode()
    other.answers = [(200, "text/event-stream", [stream(*SAID, *DONE)])]
    assert "\x1b" not in chat(other.url, stdin="/stats\n").err


# By hand


def test_an_address_becomes_that_of_the_api() -> None:
    local = "http://127.0.0.1:8000/v1"
    for given in ("http://127.0.0.1:8000", "http://127.0.0.1:8000/", local, f"{local}/", f"{local}/chat/completions"):
        assert base_of(given) == local
    assert base_of("https://a.example/api/v1") == "https://a.example/api/v1"
    assert base_of("https://a.example/v1beta/openai/?x=1#y") == "https://a.example/v1beta/openai"


def test_lines_without_an_end_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.chat.events._MOST_BYTES", 100)
    assert list(events([b"data: ", b"x" * 90, b"\n\n"])) == [("", "x" * 90)]
    with pytest.raises(Exception, match="without an end"):
        list(events([b"x" * 60, b"x" * 60]))


def test_half_characters_of_a_terminal_can_be_sent() -> None:
    assert question(lambda prompt: "a\udcff") == "a?"


def test_clean_text_stays_as_it_is() -> None:
    text = "".join(chr(code) for code in range(0x20, 0x7F)) + "\n\täöüß中文🦊👩‍👩‍👧\u200e"
    assert clean(text) == text
    assert one_line("a\nb\x1b") == "a b␛" and len(one_line("x" * 999)) == 300


def test_all_that_can_be_set_is_a_field_of_sampling() -> None:
    for name in SETTABLE:
        assert changed({}, name, "1")[name] in (1, "1")
        assert changed({name: 1}, name, "") == {}
    with pytest.raises(SettingError, match="there is"):
        changed({}, "logprobs", "1")


def test_the_built_in_model_through_a_pipe() -> None:
    lines = 'What is 4821 + 377?\n/set max_tokens 3\nSpell "lantern".\n'
    ran = run_warm(["-m", "baton", "chat", "--threads", "1"], given=lines)
    assert ran.returncode == 0, ran.stderr
    assert "5198" in ran.stdout and ran.stdout.endswith("\n")
    assert ran.stderr == "max_tokens 3\n"


def test_a_model_without_a_chat_template_is_refused_at_the_start(chat: Chat, tmp_path: Path) -> None:
    ran = chat(str(save_tiny(tmp_path, chat_template=None)), "--threads", "1", stdin="")
    assert ran.status == 1 and ran.out == "" and "no chat template" in ran.complaint


# On a terminal


class Terminal:
    """The verb on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        # If the tests were started in the background, interrupts are ignored, also in child processes.
        login = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.login_tty(int(sys.argv[1])); "
            "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        command = [sys.executable, "-c", login, str(theirs), "-m", "baton", "chat", *arguments]
        self._process = subprocess.Popen(command, pass_fds=[theirs], env={**os.environ, "TERM": "xterm"})
        os.close(theirs)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, words: str) -> str:
        """What was shown since the last time, up to these words."""
        deadline = time.monotonic() + PATIENCE
        while words not in self.seen:
            assert self._read(deadline - time.monotonic()), self.seen
        before, _, self.seen = self.seen.partition(words)
        return before + words

    def interrupt_until(self, words: str) -> str:
        """Ctrl-C, and again: Python misses one that comes just before it begins to wait for the terminal."""
        for _ in range(PATIENCE):
            self.type("\x03")
            while words not in self.seen and self._read(1):
                pass
            if words in self.seen:
                break
        return self.until(words)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        self.seen += os.read(self._ours, 4096).decode(errors="replace")
        return True

    def end(self) -> int:
        status = self._process.wait(PATIENCE)
        os.close(self._ours)
        return status


def test_a_terminal_shows_the_pace_and_control_c_ends_the_answer_alone(url: str, loop: ScriptedLoop) -> None:
    terminal = Terminal(url)
    assert MODEL in terminal.until("Ctrl-D ends")
    terminal.until("> ")
    terminal.type("a\n")
    shown = terminal.until("25.0% idle")
    assert "hello" in shown and "5 tokens" in shown and "first after" in shown
    terminal.until("> ")
    loop.held, loop.opening = True, "half"
    terminal.type("b\n")
    terminal.until("half")
    assert "25.0% idle" not in terminal.interrupt_until("stopped")
    assert loop.cancels.wait(PATIENCE) and loop.cancelled == [loop.queries[-1].id]
    terminal.until("> ")
    terminal.type("c")
    terminal.interrupt_until("Ctrl-D ends")
    terminal.until("> ")
    terminal.type("/sing\n")
    terminal.until("there is no command /sing")
    loop.held, loop.opening = False, ""
    terminal.until("> ")
    terminal.type("d\n")
    terminal.until("idle")
    assert told(loop)[-1] == "<user>a<assistant>hello<user>b<assistant>half<user>d"
    terminal.until("> ")
    terminal.type("\x04")
    assert terminal.end() == 0
