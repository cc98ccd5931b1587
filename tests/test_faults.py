"""Every fault that can be injected: what becomes of the queries, of their neighbours, and of the server after it."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from baton import LLM, SamplingParams
from baton.cli.generate import run_generate
from baton.compose import open_engine
from baton.core.config import make_config
from baton.core.errors import QueryFailed, SettingError
from baton.observe.trace import read_trace
from baton.testing.faults import Faults, InjectedFault, from_environment
from service_level import Served, Streams, a_query, serving, until
from warm import WarmProcess

BAD_SEED = 666


@pytest.fixture(scope="module")
def texts() -> dict[int, str]:
    """What each of the queries gives alone."""
    served = Served()
    answers = {number: served.alone(a_query(number)) for number in range(4)}
    served.close()
    assert len(set(answers.values())) == 4
    return answers


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    with serving() as run:
        yield run


# A query's own trouble is not noticed by its neighbours


@pytest.mark.parametrize("fault", ["nan", "draw_fails", "text_fails"])
async def test_one_query_with_trouble_of_its_own_ends_alone(
    fault: str, serve: Callable[..., Served], texts: dict[int, str]
) -> None:
    served = serve()
    # So late that its first text is sent before it, however busy the machine is.
    served.faults.add(f"{fault}@{BAD_SEED}:400")
    doomed = a_query(3, tokens=500, seed=BAD_SEED)
    async with Streams(served.url) as streams:
        bad, *good = await streams.begin(doomed, *(a_query(number) for number in range(3)))
        answer = await bad
        assert answer.status == 200 and answer.error is not None and not answer.done
        assert (answer.error["type"], answer.error["code"]) == ("server_error", "internal_error")
        assert answer.text.startswith(texts[3]), "what came before it is right"
        neighbours = [await task for task in good]
        plain = await streams.http.post("/v1/completions", json=doomed)
    assert all(one.right for one in neighbours)
    assert [one.text for one in neighbours] == [texts[number] for number in range(3)]
    assert plain.status_code == 500 and plain.json()["error"]["code"] == "internal_error"
    assert set(served.faults.done) == {fault}
    assert served.client.stats().outcomes["failed"] == 2
    served.check_promises()


# If memory runs out, no query is lost


@pytest.mark.parametrize(
    "faults", ["step_memory@1", "step_memory@1,step_memory@2", "prefill_memory@1", "insert_memory@1"]
)
async def test_out_of_memory_costs_no_query(faults: str, serve: Callable[..., Served], texts: dict[int, str]) -> None:
    served = serve()
    async with Streams(served.url) as streams:
        if faults.startswith("step"):
            tasks = await streams.begin(*(a_query(number) for number in range(4)))
            served.faults.add(faults)
        else:
            served.faults.add(faults)
            tasks = await streams.begin(*(a_query(number) for number in range(4)))
        answers = [await task for task in tasks]
    assert [one.text for one in answers] == [texts[number] for number in range(4)]
    assert all(one.right for one in answers)
    assert len(served.faults.done) == faults.count("@")
    served.check_promises()


async def test_a_batch_that_cannot_be_resized_keeps_its_rows(
    serve: Callable[..., Served], texts: dict[int, str]
) -> None:
    served = serve()
    served.faults.add("resize_memory@1")
    async with Streams(served.url) as streams:
        one = await streams.ask(a_query(0))
        answers = [await task for task in await streams.begin(*(a_query(number) for number in range(4)))]
    assert [answer.text for answer in (one, *answers)] == [texts[0], *(texts[number] for number in range(4))]
    assert served.faults.done == ["resize_memory"]
    served.check_promises()


# If all are affected, all fail and the server goes on


@pytest.mark.parametrize("fault", ["iteration_fails", "step_fails"])
async def test_what_fails_for_all_that_run_is_told_to_all_and_is_over_then(
    fault: str, serve: Callable[..., Served], texts: dict[int, str]
) -> None:
    served = serve()
    async with Streams(served.url) as streams:
        tasks = await streams.begin(*(a_query(number, tokens=1500) for number in range(4)))
        served.faults.add(f"{fault}@1")
        answers = [await task for task in tasks]
        assert served.faults.done == [fault]
        for number, answer in enumerate(answers):
            assert answer.error is not None and answer.error["code"] == "internal_error" and not answer.done
            assert answer.text.startswith(texts[number]) or texts[number].startswith(answer.text)
            assert "/" not in answer.error["message"], "no path goes out"
        again = [await task for task in await streams.begin(*(a_query(number) for number in range(4)))]
    assert [one.text for one in again] == [texts[number] for number in range(4)]
    served.check_promises()


@pytest.mark.parametrize("fault", ["prefill_fails", "insert_fails"])
async def test_a_query_that_cannot_begin_is_answered_and_the_next_one_begins(
    fault: str, serve: Callable[..., Served], texts: dict[int, str]
) -> None:
    served = serve()
    served.faults.add(f"{fault}@1")
    async with Streams(served.url) as streams:
        bad = await streams.ask(a_query(0))
        good = await streams.ask(a_query(0))
    assert bad.error is not None and bad.error["code"] == "internal_error"
    assert (good.right, good.text, served.faults.done) == (True, texts[0], [fault])
    served.check_promises()


async def test_one_prompt_of_several_whose_forward_failed_is_tried_by_itself(
    serve: Callable[..., Served], texts: dict[int, str]
) -> None:
    served = serve()
    served.faults.add("prefill_fails@1")
    assert served.several(4) == [texts[number] for number in range(4)], "of none of the four by itself it failed"
    assert served.faults.done == ["prefill_fails"]
    served.check_promises()


def test_a_resize_that_fails_is_told_to_all_and_is_over_then(
    serve: Callable[..., Served], texts: dict[int, str]
) -> None:
    served = serve()
    served.faults.add("resize_fails@1")
    with pytest.raises(AssertionError, match="internal_error"):
        served.several(4)
    assert served.faults.done == ["resize_fails"]
    assert served.several(4) == [texts[number] for number in range(4)]
    served.check_promises()


# Slow, hung, dead


async def test_a_slow_iteration_changes_no_text(serve: Callable[..., Served], texts: dict[int, str]) -> None:
    served = serve()
    async with Streams(served.url) as streams:
        tasks = await streams.begin(*(a_query(number) for number in range(4)))
        served.faults.add("iteration_slow@1:0.3")
        answers = [await task for task in tasks]
    assert [one.text for one in answers] == [texts[number] for number in range(4)]
    assert served.faults.done == ["iteration_slow"]
    served.check_promises()


async def test_a_hang_is_told_while_it_lasts_and_logged_once(
    serve: Callable[..., Served], texts: dict[int, str], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(hang_seconds=0.5)
    with caplog.at_level(logging.WARNING, "baton.engine"):
        async with Streams(served.url) as streams:
            (task,) = await streams.begin(a_query(0))
            served.faults.add("iteration_slow@1:1.5")
            while (ready := await streams.http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            assert "no iteration for" in ready.json()["error"]["message"]
            assert ready.json()["error"]["code"] == "engine_unhealthy" and "retry-after" in ready.headers
            assert (await streams.http.get("/health")).status_code == 200
            answer = await task
    assert (answer.right, answer.text) == (True, texts[0])
    served.check_promises()

    def told(part: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if part in record.getMessage()]

    until(lambda: told("goes on"))
    stacks = told("where all threads are")
    assert "faults.py" in stacks[0] and "service_level.py" in stacks[0], "of every thread"
    assert len(stacks) == len(told("goes on")), "once for one hang, however often it was looked at"


async def test_a_dead_engine_says_so_and_leaves_nobody_waiting(serve: Callable[..., Served]) -> None:
    served = serve()
    async with Streams(served.url) as streams:
        tasks = await streams.begin(*(a_query(number, tokens=1500) for number in range(4)))
        waiting = asyncio.create_task(streams.http.post("/v1/completions", json=a_query(5)))
        while served.client.stats().submitted < 6:
            await asyncio.sleep(0.001)
        served.faults.add("engine_dies@1")
        for answer in [await task for task in tasks]:
            assert answer.error is not None and answer.error["code"] == "internal_error" and not answer.done
        assert (await waiting).status_code == 500
        for path, body in (("/v1/completions", a_query()), ("/v1/chat/completions", {"messages": []})):
            refused = await streams.http.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unhealthy")
            assert "SystemExit" in refused.json()["error"]["message"] and "retry-after" in refused.headers
        ready = await streams.http.get("/ready")
    assert ready.json()["error"]["message"] == "the engine has stopped: SystemExit"
    served.check_promises(dead=True)


def test_a_server_whose_engine_died_answers_still_and_ends_cleanly() -> None:
    faults = {"BATON_TEST_MODE": "1", "BATON_FAULTS": "engine_dies@3", "HF_HUB_OFFLINE": "1"}
    process = WarmProcess(["-m", "baton", "serve", "--port", "0"], environment=faults)
    try:
        assert process.stderr is not None
        ready = next(line for line in process.stderr if line.startswith("ready"))
        url = ready.split()[4]
        assert httpx.post(f"{url}/v1/completions", json=a_query(), timeout=20).status_code == 500
        refused = httpx.post(f"{url}/v1/completions", json=a_query(), timeout=20)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unhealthy")
        assert httpx.get(f"{url}/health").status_code == 200
        assert "SystemExit" in httpx.get(f"{url}/ready").json()["error"]["message"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


# Asking for faults


def test_faults_are_refused_outside_test_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment({}) is None
    assert from_environment({"BATON_FAULTS": " "}) is None
    for mode in ({}, {"BATON_TEST_MODE": "0"}, {"BATON_TEST_MODE": "yes"}):
        with pytest.raises(SettingError, match="BATON_FAULTS is for tests"):
            from_environment({"BATON_FAULTS": "step_fails@1", **mode})
    monkeypatch.setenv("BATON_FAULTS", "step_fails@1")
    monkeypatch.delenv("BATON_TEST_MODE", raising=False)
    with pytest.raises(SettingError, match="BATON_FAULTS"):
        open_engine(make_config({}))


@pytest.mark.parametrize(
    "text",
    [
        "boom@1",
        "step_fails",
        "step_fails@",
        "step_fails@x",
        "step_fails@-1",
        "step_fails@1:2",
        "nan@1",
        "iteration_slow@1",
        "iteration_paced@1",
    ],
)
def test_a_fault_that_cannot_be_read_stops_the_start_by_name(text: str) -> None:
    with pytest.raises(SettingError, match="BATON_FAULTS") as error:
        from_environment({"BATON_FAULTS": f"step_memory@3, {text}", "BATON_TEST_MODE": "1"})
    assert repr(text) in error.value.message
    assert error.value.exit_status == 2


def test_paced_iterations_begin_so_long_after_each_other_and_idle_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    slept, now = list[float](), [100.0]

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        now[0] += seconds

    monkeypatch.setattr("baton.testing.faults.time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    faults = Faults("iteration_paced@2:0.01")
    for busy in (0.0, 0.004, 0.0, 0.5):
        faults.at("iteration")
        now[0] += busy
    faults.at("iteration")
    faults.at("step")
    assert slept == [0.0, 0.006, 0.01, 0.0]


def test_faults_count_from_when_they_are_added() -> None:
    faults = Faults("step_fails@2")
    faults.at("step")
    with pytest.raises(InjectedFault):
        faults.at("step")
    faults.add("step_fails@1 step_memory@2")
    faults.at("insert")
    with pytest.raises(InjectedFault):
        faults.at("step")
    with pytest.raises(MemoryError):
        faults.at("step")
    faults.at("step")
    assert faults.done == ["step_fails", "step_fails", "step_memory"]


def test_an_engine_without_faults_has_nothing_of_them() -> None:
    house = open_engine(make_config({"max_batch_size": "1"}))
    engine = house.client._loop._engine  # type: ignore[attr-defined]
    house.client.close()
    assert not {"iterate", "step", "insert", "resize", "advance"} & {*vars(engine), *vars(engine.batch)}
    assert type(engine.batch._rows.feeder.sampler).__name__ == "Sampler"


def test_a_disk_that_is_full_costs_the_trace_and_no_query(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    with LLM() as llm:
        right = llm.generate("Tell me about a fox.", params)[0].outputs[0].token_ids
    monkeypatch.setenv("BATON_TEST_MODE", "1")
    monkeypatch.setenv("BATON_FAULTS", "trace_full@1")
    with LLM(trace=str(tmp_path / "trace.jsonl")) as llm:
        assert llm.generate("Tell me about a fox.", params)[0].outputs[0].token_ids == right
        trace = llm._engine.trace if llm._engine else None
    assert trace is not None and trace.dropped > 0
    assert [record.levelname for record in caplog.records if "dropped" in record.message] == ["ERROR"]
    assert read_trace(tmp_path / "trace.jsonl").dropped == trace.dropped


def test_prompts_that_fail_are_told_one_by_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATON_TEST_MODE", "1")
    monkeypatch.setenv("BATON_FAULTS", f"text_fails@{BAD_SEED}:3")
    params = SamplingParams(temperature=0, max_tokens=8, seed=BAD_SEED, ignore_eos=True)
    with pytest.raises(QueryFailed, match="2 of 2 prompts"):
        run_generate(make_config({}), ["Hello", "Tell me"], params, chat=False, as_json=True, show_stats=False)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["finish_reason"], len(row["token_ids"])) for row in rows] == [("error", 3)] * 2
    assert all("InjectedFault" in row["error"] for row in rows)
