"""Subscribers of an engine: told of silence, not kept by an engine that hangs, and dropped if they do not read."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import baton.engine.client as client_module
import baton.engine.loop as loop_module
from baton.core.errors import DeadlinePassed, ShuttingDown, SlowReader
from baton.core.events import Update
from baton.core.query import Query, RequestOptions, SamplingParams
from baton.llm import LLM
from engine.test_client import Opened
from engine.test_loop import Gate, until
from toy import hashed, prompt_of, toy_alone


@pytest.fixture
def open_client() -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def opens(**kw: Any) -> Opened:
        opened.append(Opened(**kw))
        return opened[-1]

    yield opens
    for one in opened:
        one.client.close()


def greedy(tokens: int = 6) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)


async def test_silence_is_told_until_there_is_news(open_client: Callable[..., Opened]) -> None:
    gate = Gate()
    client = open_client(say=gate).client
    (query,) = client.queries(prompt_of(3), greedy())
    batches = client.batches([query], silence_seconds=0.02)
    assert [await anext(batches) for _ in range(3)] == [[], [], []]
    gate.open.set()
    tokens = [token async for updates in batches for update in updates for token in update.token_ids]
    assert tokens == toy_alone(query)


async def test_an_engine_that_hangs_keeps_nobody_beyond_its_time(
    open_client: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_GRACE_SECONDS", 0.05)
    gate = Gate()
    client = open_client(say=gate).client
    (query,) = client.queries(prompt_of(3), greedy(), RequestOptions(total_seconds=0.1))
    heard: list[Update] = []

    async def listen() -> None:
        async for updates in client.batches([query], silence_seconds=0.02):
            heard.extend(updates)

    with pytest.raises(DeadlinePassed, match="--query-timeout"):
        await listen()
    assert heard == []
    gate.open.set()
    until(lambda: client.stats().outcomes["expired"] + client.stats().outcomes["cancelled"] == 1)


async def test_a_listener_that_does_not_take_what_is_there_loses_its_query_and_nothing_else(
    open_client: Callable[..., Opened],
) -> None:
    def slowly(tokens: list[int]) -> int:
        threading.Event().wait(0.001)
        return hashed(tokens)

    client = open_client(say=slowly, max_model_len=2000).client
    bad, good = (client.queries(prompt_of(3, seed=i), greedy(1500 if i else 40))[0] for i in (1, 0))
    batches = client.batches([bad], most_bytes=20_000)
    assert await anext(batches)
    heard = [token async for update in client.stream([good]) for token in update.token_ids]
    assert heard == toy_alone(good)

    def is_over() -> bool:
        stats = client.stats()
        return stats.outcomes["cancelled"] == 1 and stats.kv_bytes_used == 0

    await asyncio.to_thread(until, is_over)
    assert client.stats().generated_tokens < 1500
    with pytest.raises(SlowReader):
        await anext(batches)


async def test_whoever_listens_to_an_engine_that_hangs_hears_of_the_shutdown(
    open_client: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "_CUT_SECONDS", 0.05)
    gate = Gate()
    client = open_client(say=gate).client
    (query,) = client.queries(prompt_of(3), greedy())
    asking = asyncio.create_task(anext(client.batches([query])))
    assert await asyncio.to_thread(gate.reached.wait, 20)
    assert not await asyncio.to_thread(client.drain, 0.0)
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(asking, 20)
    assert not client._post._subscribed
    gate.open.set()


# Scripts wait as long as it takes


def test_prompts_of_a_script_never_expire_by_the_servers_limits() -> None:
    seen: list[Query] = []
    with LLM(max_batch_size=2, max_waiting=2, queue_timeout=0.01, query_timeout=0.02) as llm:
        right = llm.client._loop.submit

        def submit(queries: Any, deliver: Any) -> None:
            seen.extend(queries)
            right(queries, deliver)

        llm.client._loop.submit = submit  # type: ignore[method-assign, assignment]
        outs = llm.generate(["a b c"] * 12, SamplingParams(temperature=0, max_tokens=24, ignore_eos=True))
        assert len({out.outputs[0].text for out in outs}) == 1
        assert llm.stats()["queries"]["finished"] == 12
    assert len(seen) >= 12 and all(query.start_by is query.end_by is None for query in seen)
