"""Answers as a row of blocks, each of which begins, grows and ends. Responses and Messages share this."""

from __future__ import annotations

import time
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
    """What a block contains."""

    TEXT = "text"
    REASONING = "reasoning"
    CALL = "call"


@dataclass(slots=True)
class Block:
    """`number`: the block's position in the answer. `id` and `name`: of a call. `logprobs`: of its tokens, for text."""

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
        """`usage_of` makes the body of a chat's usage, from which each API's usage is made."""
        self.query = query
        self.model = model
        self.created = int(time.time())
        self.usage = usage_of
        self.blocks: list[Block] = []
        self.reason = ""
        self.stopped_by: str | None = None
        self._open: Block | None = None
        # Log-probabilities of tokens that had no text yet.
        self._pending_logprobs: list[Any] = []

    def opening(self, index: int) -> str:
        return "".join(self.began())

    def count(self, choice: Choice, update: Update) -> None:
        """The usage is only sent at the end."""
        return

    def piece(self, index: int, piece: Piece) -> str:
        self._pending_logprobs += (piece.logprobs or {}).get("content", [])
        if piece.deltas and not any(isinstance(delta, Text) for delta in piece.deltas):
            # Only log-probabilities of text have a field.
            self._pending_logprobs = []
        return "".join(event for delta in piece.deltas for event in self._written(delta))

    def finish(self, index: int, reason: str, stopped_by: str | None) -> str:
        self.reason, self.stopped_by = reason, stopped_by
        # An answer of no tokens is an empty text.
        events = [] if self.blocks else [*self._begin(Block(Kind.TEXT, 0))]
        if self._open is not None:
            self._open.cut = reason == "length"
            if self._open.kind is Kind.TEXT:
                self._open.logprobs += self._pending_logprobs
        return "".join([*events, *self._end()])

    def ending(self, usages: Sequence[Usage]) -> str:
        return "".join(self.ended(self.usage(usages)))

    def whole(self, choice: Choice, updates: Sequence[Update]) -> dict[str, Any]:
        """The plain answer that all updates add up to."""
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
        """Returns the events before the first block."""

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
        logprobs: list[Any] = []
        if block.kind is Kind.TEXT:
            logprobs, self._pending_logprobs = self._pending_logprobs, logprobs
            block.logprobs += logprobs
        yield from self.block_grew(block, delta.text, logprobs)

    def _begin(self, block: Block) -> Iterator[str]:
        self.blocks.append(block)
        self._open = block
        yield from self.block_began(block)

    def _end(self) -> Iterator[str]:
        if self._open is not None:
            block, self._open = self._open, None
            yield from self.block_ended(block)
