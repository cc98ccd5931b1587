"""A segment as bytes and back: what travels is the same, and what is no parcel is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from baton.core.constraint import Constraint, OutputFormat
from baton.core.query import Query, SamplingParams
from baton.kv.parcel import VERSION, BadParcel, Parcel, pack, resumed, unpack
from baton.kv.segment import KVSegment

FORM = OutputFormat("json", '{"type": "object"}', "response_format")
PARAMS = SamplingParams(
    temperature=0.5,
    top_k=3,
    stop=("a", "b"),
    stop_token_ids=(7, 8),
    logit_bias={5: -1.5, 70000: 2},
    logprobs=2,
    response_format={"type": "json_object"},
    max_tokens=9,
)
QUERY = Query(
    id="q",
    prompt=(1, 2, 3),
    params=PARAMS,
    seed=2**62 + 1,
    limit_tokens=9,
    arrived=100.0,
    priority=-2,
    deadline=130.5,
    user="é",
    sibling_of="p",
    prefix_space=None,
    start_by=110.0,
    end_by=None,
    form=FORM,
    visible_special_tokens=frozenset({4, 5}),
)


class Compiled:
    """What a form became."""

    def __init__(self, form: OutputFormat) -> None:
        self.form = form

    def start(self) -> Any:
        raise NotImplementedError


def compiled(form: OutputFormat) -> Constraint:
    return Compiled(form)


def segment(parts: list[torch.Tensor]) -> KVSegment:
    return KVSegment(QUERY, [1, 2, 3, 9, 8], "stamp", cached=4 if parts else 0, computed=4, parts=parts)


def through_json(parcel: Parcel) -> Parcel:
    return Parcel(json.loads(json.dumps(parcel.header)), parcel.parts)


PARTS = [
    torch.randn(4, 2, 3),
    torch.randn(4, 2, 3).bfloat16(),
    torch.randn(1, 5).half(),
    torch.arange(6),
    torch.tensor([True, False]),
    torch.zeros(0, 3),
]


@pytest.mark.parametrize("parts", [[], PARTS], ids=["tokens alone", "all numbers"])
def test_what_arrives_is_what_was_sent(parts: list[torch.Tensor]) -> None:
    segment_back = unpack(through_json(pack(segment(parts), now=101.0)), 1101.0, compiled)
    assert (segment_back.tokens, segment_back.stamp, segment_back.cached, segment_back.computed) == (
        [1, 2, 3, 9, 8],
        "stamp",
        4 if parts else 0,
        4,
    )
    assert [part.dtype for part in segment_back.parts] == [part.dtype for part in parts]
    assert all(torch.equal(part, sent) for part, sent in zip(segment_back.parts, parts, strict=True))
    moved = {"arrived": 1100.0, "deadline": 1130.5, "start_by": 1110.0}
    assert segment_back.query == replace(QUERY, **moved)  # type: ignore[arg-type]
    assert isinstance(segment_back.query.constraint, Compiled) and segment_back.query.constraint.form == FORM


def test_every_field_of_a_query_travels() -> None:
    """A field that is added to queries is added to parcels, or this says so."""
    header = pack(segment([]), now=0.0).header["query"]
    known = {*header, *header["seconds"], "constraint"} - {"seconds"}
    assert known == set(Query.__dataclass_fields__)
    assert set(header["params"]) == set(SamplingParams.__dataclass_fields__)


def test_bytes_are_views_where_they_can_be_and_copies_where_their_memory_is_lent() -> None:
    part = torch.zeros(4, 2)
    parcel = pack(segment([part]), now=0.0)
    part += 1
    assert parcel.bytes == 32 and np.frombuffer(parcel.parts[0], np.float32).sum() == 8
    unpack(parcel, 0.0, compiled).parts[0].add_(1)
    assert part.sum() == 16
    lent = segment([part])
    lent.location = (object(), 1)
    parcel = pack(lent, now=0.0)
    part += 1
    assert np.frombuffer(parcel.parts[0], np.float32).sum() == 16


def test_a_part_of_a_row_travels_as_numbers_that_lie_together() -> None:
    part = torch.arange(24.0).view(2, 3, 4)[:, 1]
    segment_back = unpack(pack(segment([part]), now=0.0), 0.0, compiled)
    assert torch.equal(segment_back.parts[0], part)


def broken(change: dict[str, Any]) -> Parcel:
    parcel = through_json(pack(segment([torch.zeros(4, 2)]), now=0.0))
    return Parcel({**parcel.header, **change}, parcel.parts)


@pytest.mark.parametrize(
    "change",
    [
        {"query": {}},
        {"tokens": [1, 2]},
        {"tokens": [5, 2, 3, 9, 8]},
        {"tokens": "abc"},
        {"tokens": [1, 2, 3, *range(9)]},
        {"cached": 5},
        {"cached": -1},
        {"cached": 0},
        {"cached": None},
        {"parts": []},
        {"parts": [["float32", [9, 9]]]},
        {"parts": [["float1", [4, 2]]]},
    ],
    ids=str,
)
def test_what_is_no_parcel_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadParcel, match="no parcel"):
        unpack(broken(change), 0.0, compiled)


@pytest.mark.parametrize("version", [0, VERSION + 1, None])
def test_another_version_is_refused_by_its_number(version: Any) -> None:
    with pytest.raises(BadParcel, match=f"version {version}"):
        unpack(broken({"version": version}), 0.0, compiled)


def test_a_form_that_cannot_be_compiled_is_the_callers() -> None:
    def never(form: OutputFormat) -> Constraint:
        raise LookupError

    with pytest.raises(LookupError):
        unpack(pack(segment([]), now=0.0), 0.0, never)


@pytest.mark.parametrize(("told", "computed", "start_by"), [((), 0, 110.0), ((9, 8), 4, None)])
def test_a_query_whose_engine_is_gone(told: tuple[int, ...], computed: int, start_by: float | None) -> None:
    segment_back = resumed(QUERY, told, "stamp")
    assert (segment_back.tokens, segment_back.cached, segment_back.computed) == ([1, 2, 3, *told], 0, computed)
    assert segment_back.query == replace(QUERY, start_by=start_by)


ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
    ["bfloat16", [2]],
)


def damaged(value: Any, dice: random.Random) -> Any:
    """One place of it is another, gone or twice."""
    if isinstance(value, (dict, list)) and value and dice.random() < 0.9:
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        at = dice.choice(list(value)) if isinstance(value, dict) else dice.randrange(len(value))
        what = dice.random()
        if what < 0.7:
            copy[at] = damaged(value[at], dice)
        elif what < 0.85:
            del copy[at]
        elif isinstance(copy, list):
            copy.insert(at, value[at])
        else:
            copy[f"{at}x"] = value[at]
        return copy
    return dice.choice(ODD)


def test_what_is_damaged_anywhere_is_a_bad_parcel_or_a_whole_segment() -> None:
    """Nothing else is raised: a folder with one such file must not keep an engine from starting."""
    dice, refused = random.Random(5), 0
    good = pack(segment([torch.zeros(4, 2)]), now=1.0)
    for _ in range(3000):
        header = damaged(json.loads(json.dumps(good.header)), dice)
        parts = [part if dice.random() < 0.95 else part[: dice.randrange(part.size + 1)] for part in good.parts]
        try:
            read = unpack(Parcel(header, parts), 1.0, compiled)
        except BadParcel:
            refused += 1
            continue
        again = pack(read, now=1.0).header["query"]
        kinds = {name: type(value) for name, value in again.items() if value is not None}
        assert kinds.items() <= {name: type(value) for name, value in good.header["query"].items()}.items() | {
            ("prefix_space", str)
        }
    assert refused > 1000
