"""The client: queries made of prompts, streams that cancel when closed, and any number of prompts from a script."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pytest

from baton.core.clock import monotonic
from baton.core.errors import ContextLengthExceeded, InvalidValue, QueueFull, ShuttingDown, Unsupported
from baton.core.events import Update
from baton.core.query import Query, RequestOptions, SamplingParams
from baton.engine.client import Client
from baton.engine.loop import EngineLoop
from baton.policy.baton import Baton
from baton.testing.clock import ManualClock
from random_batch import RandomBatch
from toy import COLUMNS, VOCABULARY, Say, hashed, prompt_of, toy_alone, toy_batch, toy_settings

GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


class NoWords:
    """A tokenizer that only knows how many tokens there are."""

    vocabulary = VOCABULARY
    kind, roles, special = "NoWords", dict[str, Any](), dict[str, Any]()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return [3]

    def chat(self, messages: Sequence[Any]) -> list[int]:
        return [3]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return ""

    def piece(self, token_id: int) -> bytes:
        return b""


class Opened:
    """A client on a toy engine of its own."""

    def __init__(self, say: Say = hashed, **settings: Any) -> None:
        self.batch: RandomBatch = toy_batch(Baton(), say=say, clock=monotonic, **settings)
        self.loop = EngineLoop(self.batch.engine, monotonic)
        self.client = client_of(self.loop, **settings)


def client_of(loop: Any, clock: Any = monotonic, honours: Collection[str] = (), **settings: Any) -> Client:
    return Client(
        model_name="toy",
        settings=toy_settings(**settings),
        tokenizer=NoWords(),  # type: ignore[arg-type]
        loop=loop,
        clock=clock,
        honours=honours,
    )


@pytest.fixture
def open_client() -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def opens(**kwargs: Any) -> Opened:
        opened.append(Opened(**kwargs))
        return opened[-1]

    yield opens
    for one in opened:
        one.loop.close()


# Queries of prompts


def queries_of(params: SamplingParams, prompt: Sequence[int] = (3, 4), **settings: Any) -> list[Query]:
    return client_of(None, **settings).queries(prompt, params)


def test_choices_have_seeds_and_names_of_their_own() -> None:
    queries = queries_of(SamplingParams(n=4))
    assert len({query.seed for query in queries}) == len({query.id for query in queries}) == 4
    assert {query.prompt for query in queries} == {(3, 4)}


def test_choices_of_a_given_seed_are_the_same_each_time_and_differ_among_themselves() -> None:
    first = [query.seed for query in queries_of(SamplingParams(n=3, seed=7))]
    assert [query.seed for query in queries_of(SamplingParams(n=3, seed=7))] == first
    assert first[0] == 7
    assert len(set(first)) == 3


def test_seeds_that_nobody_gave_come_from_the_settings_seed() -> None:
    def drawn(seed: int) -> list[int]:
        client = client_of(None, seed=seed)
        return [client.queries([3], SamplingParams())[0].seed for _ in range(3)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(set(drawn(1))) == 3


def test_two_clients_never_give_the_same_name() -> None:
    assert queries_of(SamplingParams())[0].id != queries_of(SamplingParams())[0].id


@pytest.mark.parametrize(("asked", "limit"), [(5, 5), (38, 38), (None, 38)])
def test_the_limit_is_what_was_asked_within_the_context(asked: int | None, limit: int) -> None:
    assert queries_of(SamplingParams(max_tokens=asked))[0].limit_tokens == limit


@pytest.mark.parametrize(
    ("tokens", "asked"), [(2, 39), (COLUMNS, 1), (COLUMNS, None), (COLUMNS + 5, None), (COLUMNS + 5, 1)]
)
def test_a_prompt_that_leaves_no_room_in_the_context_is_refused(tokens: int, asked: int | None) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        queries_of(SamplingParams(max_tokens=asked), prompt_of(tokens))
    assert caught.value.code == "context_length_exceeded"
    assert f"{tokens} tokens" in caught.value.message


@pytest.mark.parametrize("prompt", [[], [VOCABULARY], [-1], [3, 10**12], ["3"], [3.0], [None]])
def test_a_prompt_that_is_no_list_of_tokens_is_refused(prompt: list[Any]) -> None:
    with pytest.raises(InvalidValue) as caught:
        queries_of(SamplingParams(), prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"logit_bias": {VOCABULARY: 1.0}}, "logit_bias"),
        ({"stop_token_ids": (VOCABULARY,)}, "stop_token_ids"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids"),
    ],
)
def test_tokens_outside_the_vocabulary_are_refused_by_their_fields_name(params: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        queries_of(SamplingParams(**params))
    assert caught.value.param == param


def test_a_priority_that_the_policy_does_not_honour_is_refused() -> None:
    with pytest.raises(Unsupported) as caught:
        client_of(None).queries([3], SamplingParams(), RequestOptions(priority=1))
    assert caught.value.param == "priority"


def test_a_query_carries_the_terms_that_it_was_asked_on() -> None:
    client = client_of(None, honours={"priority"})
    for query in client.queries([3], SamplingParams(n=2), RequestOptions(priority=-7, user="me")):
        assert (query.priority, query.user, query.deadline) == (-7, "me", None)


def test_a_deadline_counts_from_now() -> None:
    client = client_of(None, clock=ManualClock(100.0))
    (query,) = client.queries([3], SamplingParams(), RequestOptions(deadline_ms=2500))
    assert (query.arrived, query.deadline) == (100.0, 102.5)
    assert client.queries([3], SamplingParams())[0].deadline is None


# Streams


def tokens_of(updates: Sequence[Update]) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    for update in updates:
        tokens.setdefault(update.query_id, []).extend(update.token_ids)
    return tokens


async def test_a_stream_ends_when_each_query_has_had_its_last_update(open_client: Callable[..., Opened]) -> None:
    client = open_client().client
    queries = [q for i in range(3) for q in client.queries(prompt_of(3, seed=i), GREEDY)]
    updates = [update async for update in client.stream(queries)]
    assert tokens_of(updates) == {query.id: toy_alone(query) for query in queries}
    assert sum(update.finish_reason is not None for update in updates) == 3


async def test_streams_side_by_side_hear_only_what_is_theirs(open_client: Callable[..., Opened]) -> None:
    client = open_client(max_rows=2).client

    async def ask(seed: int) -> bool:
        queries = client.queries(prompt_of(4, seed=seed), GREEDY)
        updates = [update async for update in client.stream(queries)]
        return tokens_of(updates) == {query.id: toy_alone(query) for query in queries}

    assert all(await asyncio.gather(*(ask(seed) for seed in range(12))))


async def test_closing_a_stream_cancels_what_is_left(open_client: Callable[..., Opened]) -> None:
    opened = open_client(say=slowly)
    queries = [q for i in range(2) for q in opened.client.queries(prompt_of(2, seed=i), endless())]
    stream = opened.client.stream(queries)
    await anext(stream)
    await stream.aclose()
    assert await asyncio.to_thread(opened.loop.drain, 20.0)
    outcomes = opened.client.stats().outcomes
    assert (outcomes["cancelled"], outcomes["finished"]) == (2, 0)
    assert opened.client.stats().kv_bytes_used == 0


async def test_a_task_that_is_cancelled_cancels_its_queries(open_client: Callable[..., Opened]) -> None:
    opened = open_client(say=slowly)
    begun = asyncio.Event()

    async def ask() -> None:
        async for _ in opened.client.stream(opened.client.queries([3], endless())):
            begun.set()

    task = asyncio.create_task(ask())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(opened.loop.drain, 20.0)
    assert opened.client.stats().outcomes["cancelled"] == 1


async def test_a_stream_that_was_read_to_its_end_cancels_nothing(open_client: Callable[..., Opened]) -> None:
    opened = open_client()
    cancelled: list[Sequence[str]] = []
    opened.loop.cancel = cancelled.append  # type: ignore[method-assign, assignment]
    async for _ in opened.client.stream(opened.client.queries([3], GREEDY)):
        pass
    assert cancelled == []


async def test_a_stream_of_more_than_may_wait_takes_none_of_them(open_client: Callable[..., Opened]) -> None:
    opened = open_client(max_rows=1, max_waiting=2)
    queries = [q for i in range(4) for q in opened.client.queries([3 + i], GREEDY)]
    with pytest.raises(QueueFull):
        await anext(opened.client.stream(queries))
    updates = [update async for update in opened.client.stream(queries[:3])]
    assert set(tokens_of(updates)) == {query.id for query in queries[:3]}


async def test_a_listener_whose_event_loop_is_gone_does_no_harm(open_client: Callable[..., Opened]) -> None:
    opened = open_client(say=slowly)

    def ask_and_leave() -> None:
        loop = asyncio.new_event_loop()
        stream = opened.client.stream(opened.client.queries([3], endless()))
        loop.run_until_complete(anext(stream))
        loop.close()

    thread = threading.Thread(target=ask_and_leave)
    thread.start()
    thread.join(20)
    (query,) = opened.client.queries([5, 6], GREEDY)
    updates = [update async for update in opened.client.stream([query])]
    assert tokens_of(updates)[query.id] == toy_alone(query)


def slowly(tokens: list[int]) -> int:
    """Leaves the other threads some time, so that an endless query is still there when it is cancelled."""
    threading.Event().wait(0.005)
    return hashed(tokens)


def endless() -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


# Scripts


def test_a_script_may_run_more_prompts_than_may_wait(open_client: Callable[..., Opened]) -> None:
    opened = open_client(max_rows=2, max_waiting=3)
    queries = [q for i in range(20) for q in opened.client.queries(prompt_of(1 + i % 4, seed=i), GREEDY)]
    updates = list(opened.client.run(queries))
    assert tokens_of(updates) == {query.id: toy_alone(query) for query in queries}
    assert sum(update.finish_reason == "length" for update in updates) == 20


def test_a_script_that_stops_reading_cancels_what_is_left(open_client: Callable[..., Opened]) -> None:
    opened = open_client(say=slowly, max_waiting=3)
    queries = [q for i in range(6) for q in opened.client.queries([3 + i], endless())]
    run = opened.client.run(queries)
    next(run)
    run.close()  # type: ignore[attr-defined]
    assert opened.loop.drain(20.0)
    outcomes = opened.client.stats().outcomes
    assert (outcomes["cancelled"], outcomes["finished"]) == (3, 0)


def test_a_script_without_prompts_has_nothing_to_wait_for(open_client: Callable[..., Opened]) -> None:
    assert list(open_client().client.run([])) == []


def test_a_closed_engine_takes_nothing(open_client: Callable[..., Opened]) -> None:
    opened = open_client()
    opened.client.close()
    opened.client.close()
    with pytest.raises(ShuttingDown):
        next(opened.client.run(opened.client.queries([3], GREEDY)))
    assert opened.client.not_ready() is not None
