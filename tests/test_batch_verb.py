"""`baton batch`: stopped or killed and run again it goes on, by a model in this process and by a server."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from baton.cli import batch_server
from baton.cli.main import cli
from baton.core.errors import QueryFailed, QueueFull, SettingError
from baton.core.limits import Limits
from baton.jobs.runner import NoAnswer
from server.listening import listening
from server.scripted import MODEL, ScriptedLoop, app_of
from warm import WarmProcess

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
# Answers with what was asked and by which seed, and tells of each line on stdout.
PROGRAM = """
import asyncio, json, sys
from baton.cli.batch import begun, run_work
from baton.core.config import Config
from baton.jobs.lines import Answer

async def ask(url, body, owner):
    sent = json.loads(body)
    print(sent["prompt"], flush=True)
    await asyncio.sleep(0)
    return Answer(200, "req", json.dumps({"said": sent["prompt"], "seed": sent["seed"]}).encode())

with begun(Config(), sys.argv[1], sys.argv[2], "a test") as work:
    run_work(work, ask, 4)
"""


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(one) for one in path.read_text().splitlines()]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["batch", *map(str, arguments)], catch_exceptions=True)


def killed_after(lines: int, *command: object) -> int:
    """Starts it, and kills it when it has told of so many lines; returns the status with which it ended."""
    process = WarmProcess(list(map(str, command)), stdout=True, stderr=False)
    assert process.stdout is not None
    for _ in range(lines):
        if not process.stdout.readline():
            break
    else:
        process.kill()
    return process.wait()


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again_nothing_is_lost_and_nothing_is_twice(tmp_path: Path, seed: int) -> None:
    draw, out = random.Random(seed), tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", *(line(f"r{number}", prompt=str(number)) for number in range(200)))
    kills = 0
    while not out.exists():
        kills += killed_after(draw.randint(1, 90), "-c", PROGRAM, source, out) == -signal.SIGKILL
    assert kills >= 2
    told = read(out)
    assert [one["custom_id"] for one in told] == [f"r{number}" for number in range(200)]
    assert [one["response"]["body"]["said"] for one in told] == [str(number) for number in range(200)]
    whole = tmp_path / "whole.jsonl"
    assert killed_after(999, "-c", PROGRAM, source, whole) == 0
    assert [one["response"]["body"] for one in read(whole)] == [one["response"]["body"] for one in told]


def test_a_killed_batch_of_the_built_in_model_ends_as_one_that_was_not(tmp_path: Path) -> None:
    """Half of its lines draw at random, so that only the same seed gives the same text."""
    lines = [
        line(
            f"r{number}",
            CHAT,
            messages=[{"role": "user", "content": f"What is {number} + 30?"}],
            max_tokens=6,
            temperature=float(number % 2),
        )
        for number in range(200)
    ]
    source, out, whole = write(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    assert run(source, "-o", whole).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "whole.jsonl"]
    told = "import baton.jobs.store as s\nkeep = s.Store.answer\n"
    told += "s.Store.answer = lambda *a, **k: (keep(*a, **k), print(flush=True))[0]\n"
    program = f"{told}import sys\nsys.argv[0] = 'baton'\nfrom baton.cli.main import main\nmain()"
    assert killed_after(70, "-c", program, "batch", source, "-o", out) == -signal.SIGKILL
    assert not out.exists()
    done = run(source, "-o", out)
    assert done.exit_code == 0 and "200 lines are answered" in done.stderr

    def said(path: Path) -> list[tuple[str, str]]:
        return [(one["custom_id"], one["response"]["body"]["choices"][0]["message"]["content"]) for one in read(path)]

    assert said(out) == said(whole) and len({text for _, text in said(out)}) > 50


def test_lines_that_fail_are_told_and_stop_no_other(tmp_path: Path) -> None:
    lines = [line("a", prompt="Hi", max_tokens=2), "{", line("a", prompt="Hi"), line("b", "/v1/embeddings", input="a")]
    lines += [line("c", prompt="Hi", temperature=99), line("d", prompt="Hi", stream=True), line("e", CHAT)]
    lines += [line("f", prompt="Hi", priority=3), line("g", "/v1/responses", input="Hi", max_output_tokens=2)]
    done = run(write(tmp_path / "in.jsonl", *lines), "-o", tmp_path / "out.jsonl")
    assert isinstance(done.exception, QueryFailed) and "7 of 9 lines failed" in str(done.exception)
    told = read(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in told] == ["a", None, "a", "b", "c", "d", "e", "f", "g"]
    assert [one["error"] and one["error"]["code"] for one in told[:4]] == [
        None,
        "invalid_json_line",
        "duplicate_custom_id",
        "invalid_url",
    ]
    assert [one["response"]["status_code"] for one in told[4:]] == [400, 400, 400, 400, 200]
    params = [one["response"]["body"]["error"]["param"] for one in told[4:8]]
    assert params == ["temperature", "stream", "messages", "priority"]


@pytest.fixture
def served(loop: ScriptedLoop) -> Iterator[str]:
    with listening(app_of(loop)) as address:
        yield address


@pytest.fixture
def loop() -> Iterator[ScriptedLoop]:
    loop = ScriptedLoop()
    yield loop
    loop.close()


def test_a_server_answers_the_same_as_it_does_requests(tmp_path: Path, loop: ScriptedLoop, served: str) -> None:
    source = write(tmp_path / "in.jsonl", *(line(f"r{at}", model=MODEL, prompt="a") for at in range(50)))
    done = run(source, "-o", tmp_path / "out.jsonl", "--server", served, "--at-once", "4")
    assert done.exit_code == 0, done.exception
    told = read(tmp_path / "out.jsonl")
    assert [one["custom_id"] for one in told] == [f"r{at}" for at in range(50)]
    assert {one["response"]["body"]["choices"][0]["text"] for one in told} == {"hello"}
    assert len({one["response"]["request_id"] for one in told}) == 50
    assert len({query.seed for query in loop.queries}) == 50


def test_a_server_that_is_busy_is_asked_again(
    tmp_path: Path, loop: ScriptedLoop, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def check_room(count: int) -> None:
        refused.append(count)
        if len(refused) < 3:
            raise QueueFull("256 are waiting")

    monkeypatch.setattr(loop, "check_room", check_room)
    monkeypatch.setattr(batch_server, "_pause", lambda retry_after: 0.001 * int(retry_after))
    source = write(tmp_path / "in.jsonl", line("a", prompt="a"))
    assert run(source, "-o", tmp_path / "out.jsonl", "--server", served).exit_code == 0
    assert len(refused) == 3 and read(tmp_path / "out.jsonl")[0]["response"]["status_code"] == 200


def test_where_no_server_is_the_run_ends_and_the_next_goes_on(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_server, "FIRST_PAUSE_SECONDS", 0.001)
    source, out = write(tmp_path / "in.jsonl", "{", line("a", prompt="a")), tmp_path / "out.jsonl"
    gone = run(source, "-o", out, "--server", "http://127.0.0.1:1")
    assert isinstance(gone.exception, NoAnswer) and "1 of 2 lines are done" in gone.stderr
    assert isinstance(run(source, "-o", out, "--server", served).exception, QueryFailed)
    assert [one["custom_id"] for one in read(out)] == [None, "a"]


def test_what_was_begun_with_something_else_is_refused_and_so_is_an_output_that_is_there(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_server, "FIRST_PAUSE_SECONDS", 0.001)
    source, out = write(tmp_path / "in.jsonl", line("a", prompt="a")), tmp_path / "out.jsonl"
    gone = ("--server", "http://127.0.0.1:1")
    assert isinstance(run(source, "-o", out, *gone).exception, NoAnswer)
    other = write(tmp_path / "other.jsonl", line("b", prompt="a"))
    for arguments, said in (
        ((other, "-o", out, *gone), "another other.jsonl"),
        ((source, "-o", out, *gone, "--seed", 5), "--seed 0"),
        ((source, "-o", out), "with a server, not the built-in model"),
    ):
        refused = run(*arguments).exception
        assert isinstance(refused, SettingError) and said in refused.message
    assert run(source, "-o", out, "--server", served).exit_code == 0
    again = run(source, "-o", out, "--server", served).exception
    assert isinstance(again, SettingError) and "is there already" in again.message


def test_one_that_was_killed_behind_its_last_line_is_written_without_a_model(tmp_path: Path) -> None:
    source, out = write(tmp_path / "in.jsonl", "{"), tmp_path / "out.jsonl"
    assert isinstance(run(source, "-o", out).exception, QueryFailed)
    assert read(out)[0]["error"]["code"] == "invalid_json_line"


def test_a_key_is_sent_only_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_server, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setitem(os.environ, "OPENAI_API_KEY", "secret")
    sent: list[str | None] = []
    made = batch_server.ServerAsker.__init__

    def init(self: Any, url: str, api_key: str | None, at_once: int) -> None:
        sent.append(api_key)
        made(self, "http://127.0.0.1:1", api_key, at_once)

    monkeypatch.setattr(batch_server.ServerAsker, "__init__", init)
    source = write(tmp_path / "in.jsonl", line("a", prompt="a"))
    for at, url in enumerate(("https://example.org", "http://example.org", "http://127.0.0.1:1")):
        run(source, "-o", tmp_path / f"{at}.jsonl", "--server", url)
    assert sent == ["secret", None, "secret"]


async def test_a_server_that_stays_unavailable_is_told_of_once_and_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[httpx.Request] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        status = 429 if len(asked) == 2 else 503
        return httpx.Response(
            status, json={"error": {"message": "a could not be loaded"}}, headers={"retry-after": "0"}
        )

    monkeypatch.setattr(batch_server, "_pause", lambda retry_after: 0.001)
    monkeypatch.setattr(batch_server, "MOST_UNAVAILABLE_SECONDS", 0.0045)
    asker = batch_server.ServerAsker("http://127.0.0.1:1", None, 1)
    asker._http = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    with pytest.raises(NoAnswer, match=r"has answered 503 for .* s: a could not be loaded"):
        await asker.ask("/v1/completions", b"{}", "")
    assert len(asked) == 2 + 5  # one that is only busy begins anew
    assert [record.getMessage() for record in caplog.records if "503" in record.getMessage()] == [
        "http://127.0.0.1:1/v1 answers 503 and is asked again: a could not be loaded"
    ]


def test_a_body_that_is_larger_than_a_server_takes_is_refused_here_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = Limits().max_body_bytes
    source = write(tmp_path / "in.jsonl", line("a", prompt="x" * most), line("b", prompt="x" * 2 * most))
    assert isinstance(run(source, "-o", tmp_path / "out.jsonl").exception, QueryFailed)
    large, huge = read(tmp_path / "out.jsonl")
    assert large["response"]["status_code"] == 413 and huge["error"]["code"] == "line_too_long"
