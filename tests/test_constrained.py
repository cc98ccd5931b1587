"""Answers with a form: a model of random weights gives what fits it, alone and in any batch the same."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from baton import LLM, AsyncLLM
from baton.core.constraint import Constraint
from baton.core.errors import Infeasible, InvalidValue, QueryFailed
from baton.core.limits import Limits
from baton.core.query import Query, SamplingParams, State
from baton.grammar.compiler import Grammars
from baton.policy.baton import Baton
from baton.policy.table import POLICIES
from bytewise import END, Words, bytes_of, save_speaking, speaking_model, tokens_of
from families import CONTEXT
from random_batch import RandomBatch, Shaken, random_batch
from random_batch import alone as stock_alone

GRAMMARS = Grammars(Words(), [END], Limits(grammar_timeout=60))
SHORT = {"type": "string", "maxLength": 6}

SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "string": (SHORT, lambda v: isinstance(v, str) and len(v) <= 6),
    "integer": ({"type": "integer", "minimum": -5, "maximum": 1234}, lambda v: type(v) is int and -5 <= v <= 1234),
    "number": ({"type": "number", "minimum": 0, "exclusiveMaximum": 2}, lambda v: 0 <= v < 2),
    "enum": ({"enum": ["red", "green", None, 3]}, lambda v: v in ("red", "green", None, 3)),
    "array": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        lambda v: 1 <= len(v) <= 3 and all(type(x) is bool for x in v),
    ),
    "object": (
        {
            "type": "object",
            "properties": {"a": SHORT, "b": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        lambda v: list(v) == ["a", "b"] and len(v["a"]) <= 6 and v["b"] in (None, True, False),
    ),
    "optional": (
        {"type": "object", "properties": {"x": {"const": 1}, "y": {"const": 2}}, "additionalProperties": False},
        lambda v: v in ({}, {"x": 1}, {"y": 2}, {"x": 1, "y": 2}),
    ),
    "recursive": (
        {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {
                    "type": "object",
                    "properties": {"v": {"const": 0}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                    "required": ["v", "next"],
                    "additionalProperties": False,
                }
            },
        },
        lambda v: v["v"] == 0 and set(v) == {"v", "next"},
    ),
    "pattern": ({"type": "string", "pattern": "^[ab]{2}-[0-9]$"}, lambda v: len(v) == 4 and v[2] == "-"),
    "date": ({"type": "string", "format": "date"}, lambda v: len(v) == 10 and v[4] == v[7] == "-"),
}

WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 1.5, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.6, "repetition_penalty": 1.2},
    {"temperature": 0.8, "min_p": 0.1, "presence_penalty": 0.5, "logprobs": 2},
    {"temperature": 0, "frequency_penalty": 0.9, "logit_bias": {END: 100.0, 70: 100.0}},
)


def constrained(name: str, schema: str, seed: int, way: dict[str, Any], *, limit: int = 120) -> Query:
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[schema][0]}}
    params = SamplingParams(max_tokens=limit, response_format=asked, **way)
    assert params.form is not None
    prompt = tuple(random.Random(seed).randrange(3, 250) for _ in range(5 + seed % 40))
    return Query(name, prompt, params, seed, limit, 0.0, constraint=GRAMMARS.compile(params.form))


def free(name: str, seed: int) -> Query:
    prompt = tuple(random.Random(seed).randrange(3, 250) for _ in range(1 + seed % 30))
    return Query(name, prompt, SamplingParams(temperature=0, max_tokens=15, ignore_eos=True), seed, 15, 0.0)


@functools.cache
def lonely() -> RandomBatch:
    return random_batch(speaking_model(), Baton(), rows=1, chunk=None, end_ids=[END])


def by_itself(query: Query) -> tuple[list[int], str | None]:
    batch = lonely()
    batch.updates.clear()
    batch.run([replace(query, sibling_of="")])
    return batch.tokens(query.id), batch.reason(query.id)


def battery() -> list[Query]:
    return [
        constrained(f"{schema}-{at}", schema, 10 * at + number, way)
        for at, way in enumerate(WAYS)
        for number, schema in enumerate(SCHEMAS)
    ]


def check(batch: RandomBatch, queries: Sequence[Query]) -> int:
    """All that ended by itself is what was asked for; how much did."""
    whole = 0
    for query in queries:
        said = bytes_of([token for token in batch.tokens(query.id) if token != END])
        assert batch.reason(query.id) in ("stop", "length")
        if batch.reason(query.id) == "stop":
            whole += 1
            assert SCHEMAS[query.id.split("-")[0]][1](json.loads(said.decode())), (query.id, said)
    return whole


def test_whatever_is_drawn_fits_and_is_the_same_in_any_batch() -> None:
    """With all ways of sampling, among free queries that are not disturbed, in rows that move."""
    constrained_ones, free_ones = battery(), [free(f"free{at}", 500 + at) for at in range(8)]
    dice = random.Random(3)
    policy = Shaken(POLICIES["priority"](), dice)
    batch = random_batch(speaking_model(), policy, rows=6, end_ids=[END], prefix_cache=True)
    batch.run([*constrained_ones, *free_ones], dice, most=20_000)
    assert policy.moves["detach"] > 20 and policy.moves["forget"] > 10, "rows were moved, some computed anew"
    assert check(batch, constrained_ones) > 0.8 * len(constrained_ones)
    model = speaking_model()
    for query in free_ones:
        assert batch.tokens(query.id) == stock_alone(model, query)[0]
    for query in constrained_ones[::3]:
        assert (batch.tokens(query.id), batch.reason(query.id)) == by_itself(query)
    told = [one for query in constrained_ones for update in batch.updates[query.id] for one in update.logprobs]
    assert any(one.rank > 3 for one in told), "log-probabilities are of what the model thinks, form or not"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_gives_what_each_gives_alone(policy: str) -> None:
    queries = [constrained(f"object-{at}", "object", 70 + at, WAYS[at % 3]) for at in range(5)]
    dice = random.Random(5)
    batch = random_batch(speaking_model(), POLICIES[policy](), rows=3, end_ids=[END])
    batch.run(queries, dice)
    check(batch, queries)
    for query in queries:
        assert (batch.tokens(query.id), batch.reason(query.id)) == by_itself(query)


def test_choices_of_one_prompt_share_a_form() -> None:
    first = constrained("object-0", "object", 7, {"temperature": 1.3, "n": 3})
    choices = [replace(first, id=f"object-{at}", seed=7 + at, sibling_of="object-0") for at in range(3)]
    batch = random_batch(speaking_model(), Baton(), rows=3, end_ids=[END], prefix_cache=True)
    batch.run(choices)
    check(batch, choices)
    assert len({tuple(batch.tokens(choice.id)) for choice in choices}) > 1
    for choice in choices:
        assert (batch.tokens(choice.id), batch.reason(choice.id)) == by_itself(choice)


def test_the_form_binds() -> None:
    """The control: without it the model says something else at once."""
    query = constrained("string-0", "string", 3, {"temperature": 0})
    said, _ = by_itself(query)
    assert stock_alone(speaking_model(), replace(query, limit_tokens=1))[0] != said[:1] == tokens_of('"')


class Broken:
    """A constraint that is fine for two tokens, and then is not."""

    def __init__(self, trouble: Callable[[], bytes]) -> None:
        self.trouble = trouble

    def start(self) -> Broken:
        return self

    def allowed(self, generated: Sequence[int]) -> bytes:
        return b"\xff" * 38 if len(generated) < 2 else self.trouble()


def fails() -> bytes:
    raise QueryFailed("the form is too much")


def asks_too_much() -> bytes:
    raise Infeasible("the form is asked too much")


def breaks() -> bytes:
    raise ZeroDivisionError


def beyond() -> bytes:
    """Only tokens that the model does not have."""
    return b"\0" * 38 + b"\xff"


@pytest.mark.parametrize(
    ("trouble", "why", "infeasible"),
    [
        (fails, "too much", False),
        (asks_too_much, "too much", True),
        (breaks, "ZeroDivision", False),
        (lambda: b"\0" * 38, "no token", True),
        (beyond, "no token", True),
    ],
)
def test_a_form_that_fails_ends_its_query_alone(trouble: Callable[[], bytes], why: str, infeasible: bool) -> None:
    broken: Constraint = Broken(trouble)
    bad = replace(constrained("string-0", "string", 1, WAYS[0]), constraint=broken)
    good = [constrained("object-1", "object", 2, WAYS[1]), free("free", 501)]
    batch = random_batch(speaking_model(), Baton(), rows=3, end_ids=[END])
    batch.run([bad, *good])
    last = batch.updates[bad.id][-1]
    assert (last.finish_reason, len(batch.tokens(bad.id))) == ("error", 2)
    assert why in (last.error or "") and last.infeasible is infeasible
    ended = batch.engine.lifecycle.ended
    assert (ended[State.FAILED], ended[State.CANCELLED]) == ((0, 1) if infeasible else (1, 0))
    assert (batch.tokens("object-1"), batch.reason("object-1")) == by_itself(good[0])
    assert batch.tokens("free") == stock_alone(speaking_model(), good[1])[0]
    assert not batch.engine.busy and not batch.engine.batch.lens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_speaking(tmp_path_factory.mktemp("speaking"))


COLOR = {"type": "json_schema", "json_schema": {"name": "color", "schema": {"enum": ["red", "green"]}}}


def test_in_python(folder: Path) -> None:
    with LLM(str(folder)) as llm:
        one = SamplingParams(response_format=COLOR, temperature=0)
        two = SamplingParams(structured_outputs={"choice": ["yes", "no"]}, n=3)
        first, second = llm.generate(["a", "b"], [one, two])
        assert first.outputs[0].text in ('"red"', '"green"') and first.outputs[0].finish_reason == "stop"
        assert {output.text for output in second.outputs} <= {"yes", "no"}
        with pytest.raises(InvalidValue, match="response_format"):
            SamplingParams(response_format={"type": "xml"})
        with pytest.raises(InvalidValue, match="not honoured"):
            llm.generate("a", SamplingParams(structured_outputs={"json": {"not": {}}}))


async def test_in_asyncio(folder: Path) -> None:
    llm = AsyncLLM(str(folder))
    try:
        async for output in llm.generate("a", SamplingParams(response_format=COLOR)):
            last = output
        assert last.outputs[0].text in ('"red"', '"green"')
    finally:
        llm.close()


def test_an_answer_that_is_cut_says_so() -> None:
    query = constrained("object-0", "object", 4, WAYS[0], limit=6)
    said, reason = by_itself(query)
    assert (len(said), reason) == (6, "length")
    assert CONTEXT > 6
