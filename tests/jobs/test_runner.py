"""Lines are answered a few at a time, each once, in whatever way a run ends and another begins."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.core.errors import StorageFull
from baton.jobs.runner import NoAnswer, Runner
from baton.jobs.store import Batch, Status
from jobs.places import Echo, Listed, not_now

NAMES = [f"line{number}" for number in range(1, 21)]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Listed]:
    place = Listed(tmp_path / "store", NAMES)
    yield place
    place.store.close()


def said(place: Listed, batch_id: str) -> list[str]:
    return [output["response"]["body"]["said"] for output in place.finished[batch_id]]


async def until(condition: object) -> None:
    """Lets all others go on until this is so."""
    assert callable(condition)
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to be so")


async def test_all_are_answered_in_order_and_no_more_than_so_many_at_once(place: Listed) -> None:
    echo = Echo()
    place.add("batch_a")
    kept: list[bool] = []
    await Runner(place, echo, 3, lambda batch, good: kept.append(good)).run()
    assert said(place, "batch_a") == NAMES and echo.most == 3 and kept == [True] * 20
    batch = place.store.batches("")[0]
    assert (batch.status, batch.total, batch.completed, batch.failed) == (Status.COMPLETED, 20, 20, 0)
    assert [output["id"] for output in place.finished["batch_a"]][:2] == ["batch_req_a_1", "batch_req_a_2"]


async def test_the_next_batch_begins_while_the_last_lines_of_one_are_asked(place: Listed) -> None:
    echo = Echo()
    place.add("batch_a")
    place.add("batch_b")
    echo.gate.clear()
    run = asyncio.create_task(Runner(place, echo, 25).run())
    await until(lambda: echo.now == 25)
    assert echo.names == [*NAMES, *NAMES[:5]]
    echo.gate.set()
    await run
    assert said(place, "batch_a") == said(place, "batch_b") == NAMES


async def test_what_fails_is_told_and_stops_no_other(place: Listed) -> None:
    echo = Echo()
    echo.statuses = {"line3": 400, "line4": 500}
    place.add("batch_a")
    await Runner(place, echo, 4).run()
    batch = place.store.batches("")[0]
    assert (batch.completed, batch.failed) == (18, 2)
    assert [output["response"]["status_code"] for output in place.finished["batch_a"]][1:5] == [200, 400, 500, 200]


async def test_a_fault_of_ours_is_told_in_its_line(place: Listed, caplog: pytest.LogCaptureFixture) -> None:
    echo = Echo()
    echo.trouble = RuntimeError("secret")
    place.add("batch_a")
    await Runner(place, echo, 4).run()
    output = place.finished["batch_a"][0]
    assert output["error"]["code"] == "internal_error" and "secret" not in json.dumps(output)
    assert "line 1 of batch_a failed" in caplog.text


async def test_where_nobody_answers_lines_stay_and_the_next_run_goes_on(place: Listed) -> None:
    echo = Echo()
    place.add("batch_a")
    with pytest.raises(NoAnswer):
        await Runner(place, echo, 1, lambda batch, good: setattr(echo, "trouble", not_now())).run()
    assert place.store.batches("")[0].completed == 1
    echo.trouble = None
    await Runner(place, echo, 2).run()
    assert said(place, "batch_a") == NAMES
    assert echo.names == ["line1", "line2", *NAMES[1:]]


async def test_an_answer_for_which_there_is_no_room_fails_its_line(
    place: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo, keep = Echo(), place.store.answer

    def answer(batch_id: str, number: int, text: str, *, good: bool) -> bool:
        if number == 2 and good:
            raise StorageFull("the disk has no room: database or disk is full")
        return keep(batch_id, number, text, good=good)

    monkeypatch.setattr(place.store, "answer", answer)
    place.add("batch_a")
    await Runner(place, echo, 3).run()
    output = place.finished["batch_a"][1]
    assert output["error"]["code"] == "insufficient_storage" and "full" in output["error"]["message"]
    batch = place.store.batches("")[0]
    assert (batch.completed, batch.failed) == (19, 1)


async def test_where_there_is_no_room_at_all_lines_stay(place: Listed, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kw: object) -> bool:
        raise StorageFull("full")

    place.add("batch_a")
    with monkeypatch.context() as patched:
        patched.setattr(place.store, "answer", full)
        with pytest.raises(StorageFull):
            await Runner(place, Echo(), 3).run()
    await Runner(place, Echo(), 3).run()
    assert said(place, "batch_a") == NAMES


async def test_a_batch_that_is_cancelled_keeps_what_was_answered(place: Listed) -> None:
    echo = Echo()
    place.add("batch_a")
    place.add("batch_b")
    kept: list[str] = []

    def on_answer(batch: Batch, good: bool) -> None:
        kept.append(batch.id)
        if len(kept) == 5:
            echo.gate.clear()

    runner = Runner(place, echo, 4, on_answer)
    run = asyncio.create_task(runner.run())
    await until(lambda: not echo.gate.is_set() and echo.now == 4)
    batch = place.store.batch("batch_a", "")
    assert batch is not None and 0 < batch.completed < 20
    place.store.change(batch.at(Status.CANCELLING, 9), [Status.IN_PROGRESS])
    runner.wake()
    await until(lambda: "batch_a" in place.finished)
    echo.gate.set()
    await run
    assert place.store.batches("")[0].status is Status.CANCELLED
    assert said(place, "batch_a") == NAMES[: batch.completed] and said(place, "batch_b") == NAMES


async def test_a_line_that_changed_meanwhile_is_told_so(place: Listed) -> None:
    place.add("batch_a")
    place.validate(place.store.batches("")[0])
    place.names = [*NAMES[:4], "another", *NAMES[5:]]
    await Runner(place, Echo(), 4).run()
    assert [output["error"] and output["error"]["code"] for output in place.finished["batch_a"]] == [
        "input_changed" if number == 4 else None for number in range(20)
    ]


@pytest.mark.parametrize("seed", range(10))
async def test_however_often_it_is_stopped_nothing_is_lost_and_nothing_is_twice(place: Listed, seed: int) -> None:
    """Seeds of lines are the same in each run."""
    draw, seeds = random.Random(seed), dict[str, int]()
    place.add("batch_a")
    while "batch_a" not in place.finished:
        echo = Echo()
        run = asyncio.create_task(Runner(place, echo, draw.randint(1, 6)).run())
        for _ in range(draw.randint(1, 30)):
            await asyncio.sleep(0)
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
        for sent in echo.asked:
            assert seeds.setdefault(sent["messages"][0]["content"], sent["seed"]) == sent["seed"]
    assert said(place, "batch_a") == NAMES and len(set(seeds.values())) == 20


async def test_no_answer_is_raised(place: Listed) -> None:
    echo = Echo()
    echo.trouble = not_now()
    place.add("batch_a")
    with pytest.raises(NoAnswer):
        await Runner(place, echo, 3).run()
    assert echo.now == 0
