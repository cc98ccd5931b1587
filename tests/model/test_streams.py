"""Two streams without a device: whatever touches a row is in order with whatever touched it before.

Streams, events and what the host knows are clocks here: how far of each stream is surely done before something begins.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from baton.cuda import streams
from baton.cuda.decode_steps import Launched
from baton.cuda.prefill_stream import PrefillStreamStepper
from baton.cuda.streams import Streams
from baton.kv.rectangle import Rectangle
from baton.policy.baton import Baton
from families import model_of
from random_batch import RandomBatch, Shaken, alone, random_batch, some_queries

Clock = dict["Stream", int]


class Device:
    """What runs on which stream, all of it done at once; and what last touched each row, on which stream."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.host: Clock = {}
        self.current = Stream(self)
        self.touched: dict[int, list[tuple[Stream, int, str]]] = {}
        self.races: list[str] = []
        self.streams: set[Stream] = set()

    def touch(self, rows: set[int], what: str) -> Clock:
        """Work on the current stream. Returns when it is done."""
        stream = self.current
        self.streams.add(stream)
        merge(stream.done, self.host)
        stream.done[stream] = stream.done.get(stream, 0) + 1
        for row in rows:
            for other, at, before in self.touched.get(row, []):
                if stream.done.get(other, 0) < at:
                    self.races.append(f"{what} of row {row} while there may still be a {before}")
            self.touched.setdefault(row, []).append((stream, stream.done[stream], what))
        return dict(stream.done)


class Stream:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.done: Clock = {}

    def wait_stream(self, other: Stream) -> None:
        merge(self.done, other.done)

    def synchronize(self) -> None:
        merge(self.device.host, self.done)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.done: Clock = {}

    def record(self) -> None:
        self.done = dict(self.device.current.done)

    def query(self) -> bool:
        known = self.device.dice.random() < 0.3
        if known:
            merge(self.device.host, self.done)
        return known

    def synchronize(self) -> None:
        merge(self.device.host, self.done)

    def elapsed_time(self, other: Event) -> float:
        return 250.0


def merge(clock: Clock, other: Clock) -> None:
    for stream, at in other.items():
        clock[stream] = max(clock.get(stream, 0), at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device(random.Random(1))

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        before, device.current = device.current, stream
        try:
            yield
        finally:
            device.current = before

    monkeypatch.setattr(streams.torch.cuda, "Stream", lambda priority: Stream(device))
    monkeypatch.setattr(streams.torch.cuda, "Event", lambda enable_timing: Event(device))
    monkeypatch.setattr(streams.torch.cuda, "current_stream", lambda: device.current)
    monkeypatch.setattr(streams.torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    return device


def rows_of(monkeypatch: pytest.MonkeyPatch, device: Device, dice: random.Random) -> tuple[RandomBatch, Streams]:
    """A batch whose every touch of a row is reported to the device."""
    batch = random_batch(
        model_of("gemma3"), Shaken(Baton(), dice), ahead=True, side=Streams, prefix_cache=True, prefix_block=8
    )
    rows = batch.rows
    stepper = rows.stepper
    assert isinstance(stepper, PrefillStreamStepper)
    launched: dict[int, Any] = {}

    def listen(owner: object, name: str, rows_of: Callable[..., set[int]]) -> None:
        right = getattr(owner, name)

        def heard(*args: Any, **kwargs: Any) -> Any:
            result = right(*args, **kwargs)
            done = device.touch(rows_of(*args), name)
            launched[id(result)] = (done, result)
            return result

        monkeypatch.setattr(owner, name, heard)

    row_slots = rows.rectangle.row_slots
    listen(rows.rectangle, "claim", lambda row, *_: {row_slots[row]})
    listen(rows.rectangle, "clear", lambda row: {row_slots[row]})
    listen(stepper._steps, "launch", lambda slots: {slot.place for slot in slots})
    fill = rows.feeder.forward.fill

    def filling(rectangle: Any, spans: Sequence[Any], tokens: Sequence[int]) -> Any:
        logits, ran = fill(rectangle, spans, tokens)
        touched = {row_slots[span.row] for span in spans}
        device.touch(touched, "fill")
        right = ran.commit

        def commit() -> None:
            right()
            device.touch(touched, "commit")

        object.__setattr__(ran, "commit", commit)
        return logits, ran

    monkeypatch.setattr(rows.feeder.forward, "fill", filling)
    tokens, sampler = Launched.tokens, rows.feeder.sampler

    def waited(self: Launched) -> list[int]:
        merge(device.host, launched[id(self)][0])
        return tokens(self)

    def drawing(*args: Any) -> Any:
        # What is drawn is read, which waits for the stream that it is drawn on.
        device.current.synchronize()
        return sampler(*args)

    monkeypatch.setattr(Launched, "tokens", waited)
    monkeypatch.setattr(rows.feeder, "sampler", drawing)
    assert isinstance(stepper._side, Streams)
    return batch, stepper._side


def run(batch: RandomBatch, dice: random.Random) -> list[str]:
    """Runs twenty queries, some of which leave in the middle of their prompt. Returns those that did."""
    queries = some_queries(20, dice)
    left: list[str] = []
    rows = batch.rows
    stepper = rows.stepper
    assert isinstance(stepper, PrefillStreamStepper)
    for query in queries:
        batch.engine.accept(query, batch.hear)
    while batch.engine.busy:
        batch.engine.iterate()
        batch.engine.flush()
        if stepper._in_flight is not None and dice.random() < 0.1:
            left.append(rows._row_states[min(stepper._in_flight.rows)].query.id)
            batch.engine.cancel(left[-1])
    for query in queries:
        expected = alone("gemma3", query)[0]
        assert query.id in left or batch.tokens(query.id) == expected
    return left


@pytest.mark.parametrize("seed", range(3))
def test_no_row_is_touched_by_two_at_once(seed: int, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(seed)
    device.dice = random.Random(seed)
    batch, _ = rows_of(monkeypatch, device, dice)
    assert run(batch, dice)
    assert device.races == []
    assert len(device.streams) == 3


@pytest.mark.parametrize("broken", ["first", "begin", "back", "wait"])
def test_a_wait_that_is_left_out_is_noticed(broken: str, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(2)
    batch, side = rows_of(monkeypatch, device, dice)
    if broken == "wait":
        monkeypatch.setattr(streams.OnStream, "wait", lambda self: None)
    elif broken == "begin":
        begin = side.begin
        monkeypatch.setattr(side, "begin", lambda work, behind: begin(work, behind=False))
    else:
        right = getattr(side, broken)

        @contextmanager
        def without() -> Iterator[None]:
            before = Stream.wait_stream
            Stream.wait_stream = lambda self, other: None  # type: ignore[method-assign]
            with right():
                Stream.wait_stream = before  # type: ignore[method-assign]
                yield
                Stream.wait_stream = lambda self, other: None  # type: ignore[method-assign]
            Stream.wait_stream = before  # type: ignore[method-assign]

        monkeypatch.setattr(side, broken, without)
    run(batch, dice)
    assert device.races


def test_a_fill_that_cannot_be_launched_is_over_before_anyone_hears_of_it(device: Device) -> None:
    side = Streams(Rectangle([], capacity=1, columns=1, dtype=torch.float32, device=torch.device("cpu")))

    def work() -> Any:
        device.touch({1}, "fill")
        raise MemoryError

    with pytest.raises(MemoryError):
        side.begin(work, behind=False)
    device.touch({1}, "write")
    assert device.races == []
