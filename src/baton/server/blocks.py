"""Answers as a row of blocks, each of which begins, grows and ends: what Responses and Messages have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from baton.core.errors import BatonError
from baton.core.events import Update, Usage
from baton.core.query import Query
from baton.parsing.deltas import CallArguments, CallStart, Delta, Reasoning, Text
from baton.server.answers import UsageBody
from baton.server.choices import Choice, Piece


class Kind(StrEnum):
    """What a block has."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


@dataclass(slots=True)
class Block:
    """`number`: which of the answer's blocks it is. `id` and `name`: of a call. `logprobs`: of its tokens, for text."""

    kind: Kind
    number: int
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    cut: bool = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class BlockWriter(ABC):
    """Writes the answer of one choice, see `stream.Events`: as events, or as the body that they add up to."""

    def __init__(self, query: Query, model: str, usage_of: Callable[[Sequence[Usage]], UsageBody]) -> None:
        """`usage_of` makes the body of a chat's usage, of which each form's is made."""
        self.query = query
        self.model = model
        self.usage = usage_of
        self.blocks: list[Block] = []
        self.reason = ""
        self.stopped_by: str | None = None
        self._open: Block | None = None
        # Log-probabilities of tokens that had no text yet.
        self._untold: list[Any] = []

    def opening(self, index: int) -> str:
        return "".join(self.began())

    def count(self, choice: Choice, update: Update) -> None:
        """Nothing of the usage is told before the end."""
        return

    def piece(self, index: int, piece: Piece) -> str:
        self._untold += (piece.logprobs or {}).get("content", [])
        if piece.deltas and not any(isinstance(delta, Text) for delta in piece.deltas):
            # Only those of the text have a place.
            self._untold = []
        return "".join(event for delta in piece.deltas for event in self._written(delta))

    def finish(self, index: int, reason: str, stopped_by: str | None) -> str:
        self.reason, self.stopped_by = reason, stopped_by
        # An answer of no tokens is an empty text.
        events = [] if self.blocks else [*self._begin(Block(Kind.TEXT, 0))]
        if self._open is not None:
            self._open.cut = reason == "length"
            if self._open.kind is Kind.TEXT:
                self._open.logprobs += self._untold
        return "".join([*events, *self._end()])

    def ending(self, usages: Sequence[Usage]) -> str:
        return "".join(self.ended(self.usage(usages)))

    def whole(self, choice: Choice, updates: Sequence[Update]) -> dict[str, Any]:
        """The plain answer that all updates come to."""
        usages = []
        for update in updates:
            for piece in choice.take(update):
                self.piece(0, piece)
            if (reason := choice.finish_reason(update)) is not None:
                self.finish(0, reason, update.stopped_by)
            usages += [] if update.usage is None else [update.usage]
        return self.body(self.usage(usages))

    @abstractmethod
    def body(self, usage: UsageBody) -> dict[str, Any]:
        """The plain answer, once it has finished."""

    @abstractmethod
    def began(self) -> Iterator[str]:
        """Events before the first block."""

    @abstractmethod
    def block_began(self, block: Block) -> Iterator[str]: ...

    @abstractmethod
    def block_grew(self, block: Block, text: str, logprobs: list[Any]) -> Iterator[str]: ...

    @abstractmethod
    def block_ended(self, block: Block) -> Iterator[str]: ...

    @abstractmethod
    def ended(self, usage: UsageBody) -> Iterator[str]: ...

    @abstractmethod
    def error(self, error: BatonError) -> str: ...

    def _written(self, delta: Delta) -> Iterator[str]:
        if isinstance(delta, CallStart):
            yield from self._end()
            yield from self._begin(Block(Kind.CALL, len(self.blocks), delta.id, delta.name))
            return
        if not isinstance(delta, CallArguments):
            kind = Kind.REASONING if isinstance(delta, Reasoning) else Kind.TEXT
            if self._open is None or self._open.kind is not kind:
                yield from self._end()
                yield from self._begin(Block(kind, len(self.blocks)))
        block = self._open
        assert block is not None
        block.pieces.append(delta.text)
        told: list[Any] = []
        if block.kind is Kind.TEXT:
            told, self._untold = self._untold, told
            block.logprobs += told
        yield from self.block_grew(block, delta.text, told)

    def _begin(self, block: Block) -> Iterator[str]:
        self.blocks.append(block)
        self._open = block
        yield from self.block_began(block)

    def _end(self) -> Iterator[str]:
        if self._open is not None:
            block, self._open = self._open, None
            yield from self.block_ended(block)
