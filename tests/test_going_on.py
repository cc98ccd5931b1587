"""Answers of the built-in model that are cut at any token and go on in another engine, as their clients hear them.

`CUTS=200 pytest tests/test_going_on.py` cuts so many.
"""

from __future__ import annotations

import json
import os
import queue
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from baton.builtin.tasks import questions
from baton.compose import EngineHandle, open_engine
from baton.core.clock import monotonic
from baton.core.config import make_config
from baton.core.constraint import OutputFormat
from baton.core.events import Update
from baton.core.query import Query, SamplingParams
from baton.kv.parcel import Parcel, pack, resumed, unpack
from baton.kv.segment import KVSegment
from warm import run_warm

CUTS = int(os.environ.get("CUTS", "24"))
WAYS = ("keys", "tokens", "killed")
PATIENCE_SECONDS = 60.0

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}}, "required": ["a", "b"]}
KINDS: Sequence[dict[str, Any]] = (
    {"temperature": 0},
    {"temperature": 0, "logprobs": 2, "prompt_logprobs": 1},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.2, "seed": 4, "top_k": 20, "top_p": 0.9, "logprobs": 0},
    {"temperature": 0.8, "seed": 5, "n": 3, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 0.9, "seed": 6, "repetition_penalty": 1.2, "min_tokens": 12, "min_p": 0.02},
    {"temperature": 1.0, "seed": 7, "logit_bias": {40: 3, 41: -100}},
    {"temperature": 0.7, "seed": 8, "structured_outputs": {"json": SCHEMA}},
    {"temperature": 1.0, "seed": 9, "structured_outputs": {"regex": "(ab|c)+[0-9]{3,9}é+"}},
)


@dataclass
class Heard:
    """What one query's client was told, by whichever engine."""

    tokens: list[int] = field(default_factory=list)
    text: str = ""
    reason: str | None = None
    stopped_by: str | None = None
    generated: int = 0
    logprobs: list[Any] = field(default_factory=list)
    prompt_logprobs: list[Any] = field(default_factory=list)

    def take(self, update: Update) -> None:
        self.tokens += update.token_ids
        self.text += update.text
        self.logprobs += update.logprobs
        self.prompt_logprobs += update.prompt_logprobs
        if update.finish_reason not in (None, "moved"):
            self.reason, self.stopped_by = update.finish_reason, update.stopped_by
            self.generated = 0 if update.usage is None else update.usage.generated_tokens


@pytest.fixture(scope="module")
def engines() -> Iterator[list[EngineHandle]]:
    opened = [open_engine(make_config({"max_batch_size": "4"})) for _ in range(2)]
    yield opened
    for one in opened:
        one.close()


def compiled(engine: EngineHandle, form: OutputFormat) -> Any:
    compiler = engine.client._compiler
    assert compiler is not None
    return compiler.compile(form)


class Front:
    """Hears both engines, and moves a query once it was told so many tokens."""

    def __init__(self, engines: Sequence[EngineHandle], dice: random.Random) -> None:
        self.loops = [engine.client._loop for engine in engines]
        self.engines = engines
        self.dice = dice
        self.heard: dict[str, Heard] = {}
        self.at: dict[str, int] = {}
        self.news: queue.SimpleQueue[tuple[int, list[Update]]] = queue.SimpleQueue()

    def hear(self, engine: int) -> Any:
        return lambda updates: self.news.put((engine, updates))

    def answers(self, queries: Sequence[Query], cuts: dict[str, list[tuple[int, str]]]) -> dict[str, Heard]:
        self.heard, self.at = {query.id: Heard() for query in queries}, {query.id: 0 for query in queries}
        by_id = {query.id: query for query in queries}
        self.loops[0].submit(queries, self.hear(0))
        while any(one.reason is None for one in self.heard.values()):
            self.take(*self.news.get(timeout=PATIENCE_SECONDS))
            for name, due in cuts.items():
                if due and self.heard[name].reason is None and len(self.heard[name].tokens) >= due[0][0]:
                    self.move(by_id[name], due.pop(0)[1])
        return self.heard

    def move(self, query: Query, way: str) -> None:
        here = self.at[query.id]
        there = 1 - here
        if way == "killed":
            self.at[query.id] = there
            self.loops[here].cancel([query.id])
            segment = resumed(query, self.heard[query.id].tokens, self.engines[there].loaded.stamp)
        else:
            given = self.loops[here].give([query.id]).result(PATIENCE_SECONDS)
            while not self.news.empty():  # what it was told before it left
                self.take(*self.news.get())
            if not given:
                return  # it has ended meanwhile
            self.at[query.id] = there
            segment = self.travelled(given[0], there, keys=way == "keys")
        self.loops[there].resume([segment], self.hear(there))

    def take(self, engine: int, updates: list[Update]) -> None:
        for update in updates:
            if engine == self.at[update.query_id]:  # else it is of an engine that is gone, as far as its client knows
                self.heard[update.query_id].take(update)

    def travelled(self, segment: KVSegment, there: int, *, keys: bool) -> KVSegment:
        parcel = pack(segment, monotonic())
        arrived = Parcel(json.loads(json.dumps(parcel.header)), [part.copy() for part in parcel.parts])
        segment.release()
        parcel = arrived if keys else arrived.without_parts()
        return unpack(parcel, monotonic(), lambda form: compiled(self.engines[there], form))


def same(ours: Heard, right: Heard) -> bool:
    def near(a: Any, b: Any) -> bool:
        numbers = [(a.logprob, b.logprob), *((x, y) for (_, x), (_, y) in zip(a.best, b.best, strict=True))]
        return a.token_id == b.token_id and all(abs(x - y) < 1e-4 for x, y in numbers)

    lists = ((ours.logprobs, right.logprobs), (ours.prompt_logprobs, right.prompt_logprobs))
    plain = ("tokens", "text", "reason", "stopped_by", "generated")
    return all(getattr(ours, name) == getattr(right, name) for name in plain) and all(
        len(some) == len(others) and all(map(near, some, others)) for some, others in lists
    )


def drawn(engine: EngineHandle, dice: random.Random, kind: dict[str, Any], **more: Any) -> list[Query]:
    client = engine.client
    question = dice.choice(questions("chat" if dice.random() < 0.5 else "arithmetic", 50, seed=1)).text
    prompt = client.tokenizer.chat([{"role": "user", "content": question}])
    return client.queries(prompt, SamplingParams(**{"max_tokens": 40, **kind, **more}))


def test_answers_that_are_cut_go_on_as_if_they_were_not(engines: list[EngineHandle]) -> None:
    dice, left = random.Random(CUTS), CUTS
    while left > 0:
        queries = [query for at in range(4) for query in drawn(engines[0], dice, KINDS[(left + at) % len(KINDS)])]
        front = Front(engines, dice)
        right = front.answers(queries, {})
        # Stop strings that are part of what is said, so that a cut may split them.
        again = []
        for query in queries[:2]:
            said = right[query.id].text
            if len(said) > 8 and query.form is None:
                at = dice.randrange(2, len(said) - 3)
                again += drawn(engines[0], dice, {"stop": [said[at : at + 3]], "temperature": 0})
        queries += again
        right = front.answers(queries, {})
        cuts = {}
        for query in queries:
            length = len(right[query.id].tokens)
            some = sorted(dice.randrange(length + 1) for _ in range(dice.choice([1, 1, 2])))
            cuts[query.id] = [(at, dice.choice(WAYS)) for at in some]
        answers = front.answers(queries, cuts)
        for query in queries:
            assert same(answers[query.id], right[query.id]), (query, answers[query.id], right[query.id])
        left -= len(queries)


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_cut_at_every_length(engines: list[EngineHandle], way: str) -> None:
    dice = random.Random(way)
    (query,) = drawn(engines[0], dice, {"temperature": 1.0, "seed": 2, "max_tokens": 12, "stop": ["zzz", "qqq"]})
    right = Front(engines, dice).answers([query], {})[query.id]
    for length in range(len(right.tokens)):
        answer = Front(engines, dice).answers([query], {query.id: [(length, way)]})[query.id]
        assert same(answer, right), length


def half_a(engine: EngineHandle, what: str) -> dict[str, Any]:
    """How to ask for an answer of which parts are held back again and again: each cut splits something."""
    if what == "character":
        return {"temperature": 1.0, "seed": 4, "structured_outputs": {"regex": "(é|ü|日|😀){9}"}}
    asked = {"temperature": 1.0, "seed": 2, "max_tokens": 12}
    (query,) = drawn(engine, random.Random(1), asked)
    said = Front([engine], random.Random(1)).answers([query], {})[query.id].text
    # Places of the answer begin stop strings that almost come; or its last letters are one that does.
    if what == "stop string that does not come":
        return {**asked, "stop": [said[at : at + 3] + "\0" for at in range(0, len(said) - 3, 2)][:4]}
    return {**asked, "stop": [said[-4:]]}


@pytest.mark.parametrize("what", ["character", "stop string that does not come", "stop string that comes"])
def test_what_is_held_back_at_a_cut_is_said_behind_it(engines: list[EngineHandle], what: str) -> None:
    (query,) = drawn(engines[0], random.Random(1), half_a(engines[0], what))
    right = Front(engines, random.Random(1)).answers([query], {})[query.id]
    for length in range(len(right.tokens)):
        way = WAYS[length % len(WAYS)]
        answer = Front(engines, random.Random(1)).answers([query], {query.id: [(length, way)]})[query.id]
        assert same(answer, right), (length, answer.text, right.text)


def test_a_forced_call_goes_on(engines: list[EngineHandle]) -> None:
    client = engines[0].client
    prompt = client.tokenizer.chat([{"role": "user", "content": "Call it."}])
    regex = OutputFormat("regex", '\\{"name": "f", "arguments": \\{"a": [0-9]{1,20}\\}\\}', "tools")
    (query,) = client.queries(prompt, SamplingParams(temperature=1.0, seed=1, max_tokens=40), form=regex)
    assert query.form == regex and query.params.form is None
    right = Front(engines, random.Random(1)).answers([query], {})[query.id]
    for way in WAYS:
        answer = Front(engines, random.Random(1)).answers([query], {query.id: [(7, way), (14, way)]})[query.id]
        assert same(answer, right) and answer.text.startswith('{"name": "f"')


STAMP = "from baton.compose import open_model; from baton.core.config import make_config;"
STAMP += " print(open_model(make_config({})).stamp)"


def test_the_stamp_is_the_same_in_every_process(engines: list[EngineHandle]) -> None:
    ran = run_warm(["-c", STAMP])
    assert ran.stdout.strip() == engines[0].loaded.stamp == engines[1].loaded.stamp
