"""Compiling beside everything else: within a time, few at once, each form once."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from baton.core.constraint import JSON, Constraint, OutputFormat
from baton.core.errors import InvalidValue, QueueFull, Unsupported
from baton.core.limits import LimitExceeded, Limits
from baton.grammar import compiler
from baton.grammar.compiler import Grammars
from baton.grammar.matcher import Vocabulary
from bytewise import END, Words

PATIENCE = 20


class Slow:
    """A compiler that waits for a test, and counts."""

    def __init__(self) -> None:
        self.go, self.count = threading.Event(), 0

    def __call__(self, form: OutputFormat, vocabulary: Vocabulary) -> Constraint:
        self.count += 1
        assert self.go.wait(PATIENCE)
        if form.text == "bad":
            raise InvalidValue("bad", param=form.param)
        return Nothing()


class Nothing:
    def start(self) -> Any: ...


@pytest.fixture
def slow() -> Iterator[Slow]:
    compiler = Slow()
    yield compiler
    compiler.go.set()


def form(text: str) -> OutputFormat:
    return OutputFormat(JSON, text, "response_format")


def grammars(slow: Slow, **limits: Any) -> Grammars:
    return Grammars(Words(), [END], Limits(**limits), slow)


def asked(some: Grammars, *texts: str) -> list[threading.Thread]:
    """Others that wait for these."""
    threads = [threading.Thread(target=lambda text=text: some.compile(form(text)), daemon=True) for text in texts]
    for thread in threads:
        thread.start()
    return threads


def wait_for(what: Any) -> None:
    until = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < until
        time.sleep(0.001)


def test_what_takes_too_long_is_refused_and_there_later(slow: Slow) -> None:
    some = grammars(slow, grammar_timeout=0.02)
    with pytest.raises(LimitExceeded, match=r"0\.02 s.*--grammar-timeout") as late:
        some.compile(form("a"))
    assert (late.value.param, late.value.code, late.value.status) == ("response_format", "invalid_value", 400)
    slow.go.set()
    wait_for(lambda: some._compiled[form("a")].done())
    assert some.compile(form("a")) is some.compile(form("a"))
    assert slow.count == 1


def test_only_so_many_pile_up_and_whose_fault_it_is(slow: Slow) -> None:
    some = grammars(slow, grammar_timeout=0.05, max_compiling=3)
    for text in "ab":
        with pytest.raises(LimitExceeded):
            some.compile(form(text))
    with pytest.raises(QueueFull, match="others"):
        some.compile(form("c"))
    with pytest.raises(QueueFull, match="--max-compiling"):
        some.compile(form("d"))
    slow.go.set()
    assert some.compile(form("c")), "those that were given up are done all the same"
    assert some.compile(form("d")) and slow.count == 4


def test_many_who_ask_for_the_same_wait_for_one(slow: Slow) -> None:
    some = grammars(slow, max_compiling=1)
    threads = asked(some, *"aaaaaa")
    wait_for(lambda: slow.count)
    slow.go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert slow.count == 1


def test_what_was_refused_is_refused_again_without_a_look(slow: Slow) -> None:
    some = grammars(slow)
    slow.go.set()
    for _ in range(2):
        with pytest.raises(InvalidValue, match="bad"):
            some.compile(form("bad"))
    assert slow.count == 1


def test_what_was_not_asked_for_lately_is_forgotten(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_KEPT", 2)
    some = grammars(slow)
    slow.go.set()
    for text in "abacab":
        some.compile(form(text))
    assert slow.count == 4, "b was forgotten for c, a was not"


def heavy(factors: int, places: int) -> OutputFormat:
    """A schema of a few kilobytes whose alternatives multiply."""
    of = [
        {"anyOf": [{"type": "object", "properties": {f"p{i}_{j}": {"type": "integer"}}} for j in range(8)]}
        for i in range(factors)
    ]
    return form(json.dumps({"type": "object", "properties": {f"k{at}": {"allOf": of} for at in range(places)}}))


async def test_the_event_loop_goes_on_while_a_nasty_schema_is_compiled() -> None:
    some = Grammars(Words(), [END], Limits(grammar_timeout=0.05))
    turns, nasty = 0, asyncio.create_task(asyncio.to_thread(some.compile, heavy(4, 1)))
    while not nasty.done():
        await asyncio.sleep(0.001)
        turns += 1
    with pytest.raises(LimitExceeded, match="grammar-timeout"):
        await nasty
    assert turns > 5
    await asyncio.to_thread(wait_for, some._compiled[heavy(4, 1)].done)


def test_llguidance_bounds_what_it_compiles() -> None:
    with pytest.raises(InvalidValue, match="too large"):
        Grammars(Words(), [END], Limits(grammar_timeout=PATIENCE)).compile(heavy(5, 1))


def test_without_llguidance_forms_are_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "available", lambda: False)
    with pytest.raises(Unsupported, match="pip install llguidance"):
        Grammars(Words(), [END], Limits()).compile(form("{}"))
