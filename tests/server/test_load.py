"""`baton load`: counts a server's tokens, whatever else it cannot report, and prints what failed and why."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from baton.bench.compare import differences, verdicts
from baton.bench.drive import Mode
from baton.bench.over_http import LoadError, Target, drive_over_http, find_target, slots_of, vocabulary_of
from baton.bench.workload import Workload, make_workload
from baton.cli.main import cli
from baton.core.clock import monotonic
from baton.core.errors import BatonError, QueueFull, SettingError
from server.listening import listening
from server.scripted import MODEL, ScriptedLoop, usage_body

SMALL = ["--queries", "4", "--prompt", "6", "--answer", "5"]


def run(url: str, *arguments: str) -> Any:
    return CliRunner().invoke(cli, ["load", url, *SMALL, *arguments])


def figures_of(path: Path) -> dict[str, Any]:
    (figures,) = json.loads(path.read_text())["contenders"]["load"]["runs"]
    return dict(figures)


@pytest.mark.parametrize(
    "mode",
    [[], ["--mode", "timed", "--arrivals", "poisson:200"], ["--mode", "closed", "--at-once", "2"], ["--text"]],
    ids=str,
)
def test_what_a_server_generates_is_counted(loop: ScriptedLoop, base_url: str, tmp_path: Path, mode: list[str]) -> None:
    loop.cached = [4, 0, 0, 0]
    done = run(base_url, *mode, "--json", str(tmp_path / "load.json"))
    assert done.exit_code == 0, done.exception
    figures = figures_of(tmp_path / "load.json")
    assert (figures["queries"], figures["failed"], figures["generated_tokens"], figures["cached_tokens"]) == (
        4,
        0,
        20,
        4,
    )
    assert 0 < figures["first_token"]["max"] <= figures["end_to_end"]["max"] <= figures["seconds"]
    assert len(loop.queries) == 4 and {query.limit_tokens for query in loop.queries} == {5}
    assert figures["prompt_tokens"] == sum(len(query.prompt) for query in loop.queries)
    assert MODEL in done.output and "event loop" in done.output
    if "--text" not in mode:
        assert figures["prompt_tokens"] == 24


def test_times_are_of_the_tokens(loop: ScriptedLoop, base_url: str) -> None:
    """The first token comes before the rest is released, which is no sooner than a while later."""
    loop.held, loop.opening = True, "h"
    target = find_target(base_url, None, None, {})

    def later() -> None:
        loop.came.wait()
        time.sleep(0.2)
        loop.release()

    async def both() -> Any:
        waiting = asyncio.to_thread(later)
        return (await asyncio.gather(asyncio.to_thread(measured, target), waiting))[0]

    (heard,) = asyncio.run(both())
    assert heard.first < heard.whole and heard.whole >= 0.2 and heard.count == 5
    assert heard.first + sum(heard.gaps) == pytest.approx(heard.whole)


def measured(target: Target, workload: Workload | None = None) -> list[Any]:
    asked = workload or make_workload(1, prompt="4", answer="5")
    prompts = asked.prompts(200)
    return drive_over_http(target, asked, prompts, monotonic, mode=Mode.OFFLINE, at_once=1).run.responses


def test_refused_queries_are_failed_ones_with_their_reason(loop: ScriptedLoop, base_url: str) -> None:
    loop.refuse = QueueFull("256 queries are waiting, no more are taken")
    done = run(base_url)
    assert isinstance(done.exception, LoadError) and done.exception.exit_status == 1
    assert "4 queries failed" in done.output and "429" in done.output and "256 queries are waiting" in done.output


def test_an_answer_that_breaks_off_is_a_failed_one(loop: ScriptedLoop, base_url: str, tmp_path: Path) -> None:
    loop.fail_after = 2
    done = run(base_url, "--json", str(tmp_path / "load.json"))
    assert isinstance(done.exception, LoadError) and "NaN" in done.output
    assert figures_of(tmp_path / "load.json")["failed"] == 4


def test_a_turn_continues_what_was_said(loop: ScriptedLoop, base_url: str) -> None:
    done = run(base_url, "--turns", "3", "--text", "--queries", "1", "--prompt", "2")
    assert done.exit_code == 0, done.exception
    said = ["".join(map(chr, query.prompt)) for query in loop.queries]
    assert len(said) == 3
    assert said[1].startswith(said[0] + "hello ") and said[2].startswith(said[1] + "hello ")
    assert isinstance(run(base_url, "--turns", "2").exception, SettingError)


def test_runs_are_repeated_and_added_to_each_with_prompts_of_its_own(
    loop: ScriptedLoop, base_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "load.json"
    several = ["--json", str(path), "--append"]
    assert run(base_url, *several, "--repeat", "2").exit_code == 0
    assert run(base_url, *several).exit_code == 0
    report = json.loads(path.read_text())
    assert [one["prompts"] for one in report["contenders"]["load"]["runs"]] == [0, 1, 2]
    assert report["client_cpu_seconds"] > 0
    prompts = [tuple(query.prompt) for query in loop.queries]
    assert len(prompts) == len(set(prompts)) == 12
    assert run(base_url, "--json", str(tmp_path / "again.json"), "--repeat", "3").exit_code == 0
    repeated = [tuple(query.prompt) for query in loop.queries[12:]]
    assert sorted(repeated) == sorted(prompts), "the same for whoever is compared"
    again = json.loads((tmp_path / "again.json").read_text())
    assert differences(report, again) == [] and {one.word for one in verdicts(report, again)} == {"too few runs"}
    assert isinstance(run(base_url, *several, "--prompt", "3").exception, SettingError), "other work"
    assert isinstance(run(base_url, "--append").exception, SettingError)


@pytest.mark.parametrize(
    "arguments",
    [["--field", "n={"], ["--prompt", "x"], ["--workload", "/nowhere"], ["--factor", "2"]],
    ids=str,
)
def test_what_cannot_be_asked_is_refused(base_url: str, arguments: list[str]) -> None:
    assert isinstance(run(base_url, *arguments).exception, SettingError)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense", "http://[::"])
def test_where_nobody_is_says_so_in_one_line(url: str) -> None:
    done = run(url)
    assert isinstance(done.exception, BatonError) and url[:10] in str(done.exception)


# ---- other servers


@pytest.fixture
def other() -> Iterator[Callable[..., Any]]:
    """A server of nothing but completions, which says these lines; and what it was asked."""
    with_app: list[Any] = []

    def started(*lines: str | int | dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        app, asked = FastAPI(), list[dict[str, Any]]()

        @app.post("/v1/completions")
        async def completions(request: Request) -> Any:
            asked.append(await request.json())
            if lines == (429,):
                return JSONResponse({"error": "no"}, status_code=429)
            return StreamingResponse(said(lines), media_type="text/event-stream")

        with_app.append(listening(app))
        return with_app[-1].__enter__(), asked

    yield started
    for one in with_app:
        one.__exit__(None, None, None)


async def said(lines: Sequence[Any]) -> Any:
    for line in lines:
        yield f"{line if isinstance(line, str) else 'data: ' + json.dumps(line)}\n\n"
        await asyncio.sleep(0.01)


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


def test_a_server_that_is_no_baton(other: Callable[..., Any], tmp_path: Path) -> None:
    """No list of models, no size of the vocabulary, no metrics, no usage."""
    url, asked = other(piece("a"), ": a comment", piece("b", "stop"), "data: [DONE]")
    target = Target(url, "m", None, {})
    assert slots_of(target) == {} and vocabulary_of(target) == 1000
    assert isinstance(run(url).exception, LoadError), "it has no list of models"
    done = run(url, "--model-name", "m", "--field", "ignore_eos=null", "--json", str(tmp_path / "load.json"))
    assert done.exit_code == 0, done.exception
    assert figures_of(tmp_path / "load.json")["generated_tokens"] == 8
    assert "4 answers came without usage" in done.output and "idle" not in done.output
    assert asked[0]["ignore_eos"] is None and asked[0]["model"] == "m" and len(asked[0]["prompt"]) == 6


def test_several_tokens_in_a_piece(other: Callable[..., Any], tmp_path: Path) -> None:
    url, _ = other(piece("abc"), piece("def"), piece("", "length"), {"choices": [], "usage": usage_body(6, 6, 2)})
    done = run(url, "--model-name", "m", "--json", str(tmp_path / "load.json"))
    figures = figures_of(tmp_path / "load.json")
    assert (figures["generated_tokens"], len(figures["gaps"]), figures["prompt_tokens"]) == (24, 4, 24)
    assert "24 tokens came in 8 pieces" in done.output
    mean_gap, per_token = figures["inter_token"]["mean"], figures["per_token"]["mean"]
    assert per_token == pytest.approx(mean_gap / 5)


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ((), "no token"),
        ((piece("", "stop"),), "no token"),
        (("data: {half",), "JSONDecodeError"),
        (('data: "text"',), "AttributeError"),
        (("data: [1]",), "AttributeError"),
        (({"error": {"message": "out of memory"}},), "out of memory"),
    ],
    ids=str,
)
def test_odd_answers_are_failed_ones(other: Callable[..., Any], lines: Any, why: str) -> None:
    url, _ = other(*lines)
    (heard,) = measured(Target(url, "m", None, {}))
    assert heard.error is not None and why in heard.error
