"""Answers as blocks: which block has a token's log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from baton.core.errors import BatonError
from baton.core.query import Query, SamplingParams
from baton.parsing.deltas import CallArguments, CallStart, Reasoning, Text
from baton.server.answers import UsageBody
from baton.server.blocks import Block, BlockWriter
from baton.server.choices import Piece


class Told(BlockWriter):
    """Records what each growth of a block came with."""

    def __init__(self) -> None:
        query = Query(id="q", prompt=(1,), params=SamplingParams(), seed=0, limit_tokens=9, arrived=0.0)
        super().__init__(query, "m", lambda usages: None)  # type: ignore[arg-type, return-value]
        self.grown: list[tuple[str, list[Any]]] = []

    def body(self, usage: UsageBody) -> dict[str, Any]:
        return {}

    def began(self) -> Iterator[str]:
        yield ""

    def block_began(self, block: Block) -> Iterator[str]:
        yield ""

    def block_grew(self, block: Block, text: str, logprobs: list[Any]) -> Iterator[str]:
        self.grown.append((text, logprobs))
        yield ""

    def block_ended(self, block: Block) -> Iterator[str]:
        yield ""

    def ended(self, usage: UsageBody) -> Iterator[str]:
        yield ""

    def error(self, error: BatonError) -> str:
        return ""


def some(*numbers: int) -> dict[str, Any]:
    return {"content": list(numbers)}


def test_each_token_is_told_once_however_many_texts_came_with_it() -> None:
    told = Told()
    told.piece(0, Piece((Text("a"), CallStart(0, "c", "f"), CallArguments(0, "{}"), Text("b")), some(1, 2)))
    assert told.grown == [("a", [1, 2]), ("{}", []), ("b", [])]
    assert [block.logprobs for block in told.blocks] == [[1, 2], [], []]


def test_tokens_without_text_are_told_with_the_text_that_they_become() -> None:
    told = Told()
    told.piece(0, Piece((), some(1)))
    told.piece(0, Piece((Text("é"),), some(2)))
    told.piece(0, Piece((), some(3)))
    told.finish(0, "length", None)
    assert told.grown == [("é", [1, 2])]
    assert told.blocks[0].logprobs == [1, 2, 3]


def test_tokens_of_reasoning_are_not_the_texts() -> None:
    told = Told()
    told.piece(0, Piece((Reasoning("hm"),), some(1)))
    told.piece(0, Piece((Text("so"),), some(2)))
    assert told.grown == [("hm", []), ("so", [2])]
