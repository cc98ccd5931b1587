"""The new parts of an answer, independent of any API: each API writes the same deltas as its own chunks or events.

A parser takes the answer's text piece by piece and returns deltas in order:

- `Text`: text of the answer, never empty.
- `Reasoning`: what the model thinks before it answers, never empty, without its tags.
- `CallStart`: a tool call begins. Its number counts from 0; its name is an offered tool's.
- `CallArguments`: the next piece of that call's arguments, never empty. A call's pieces joined are a JSON object,
  unless the model wrote none or was cut off.

A call ends when another delta than its own arguments comes, or when the answer ends. So a writer of events that need an
explicit end closes what is open whenever the kind (or the call's number) changes, and at the finish. `Message` sums
deltas up to a plain answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class Text(NamedTuple):
    """A part of the answer."""

    text: str


class Reasoning(NamedTuple):
    """A part of what the model thought."""

    text: str


class CallStart(NamedTuple):
    """`number`: the call's position in the answer, from 0 on."""

    number: int
    id: str
    name: str


class CallArguments(NamedTuple):
    """A part of the arguments of a call, as JSON text."""

    number: int
    text: str


Delta = Text | Reasoning | CallStart | CallArguments


class Parser(Protocol):
    """Reads one answer. Its work is linear in the answer's length, whatever the model says."""

    @property
    def calls(self) -> int:
        """How many calls have begun."""

    @property
    def reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as known."""

    @property
    def reasons(self) -> bool:
        """Whether it separates reasoning."""

    @property
    def held(self) -> int:
        """Characters that are held back."""

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of text."""

    def finish(self) -> list[Delta]:
        """No more text comes. Returns what was held back."""


@dataclass(slots=True)
class Call:
    """A call of a plain answer. `arguments`: JSON as text."""

    id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


class Message(NamedTuple):
    """A whole answer, in its parts."""

    text: str
    reasoning: str
    calls: Sequence[Call]


def message_of(deltas: Iterable[Delta]) -> Message:
    """All of an answer's deltas as one message."""
    text, reasoning, calls = [], [], []
    for delta in deltas:
        if isinstance(delta, Text):
            text.append(delta.text)
        elif isinstance(delta, Reasoning):
            reasoning.append(delta.text)
        elif isinstance(delta, CallStart):
            calls.append(Call(delta.id, delta.name))
        else:
            calls[delta.number].pieces.append(delta.text)
    return Message("".join(text), "".join(reasoning), calls)


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same deltas with neighbours of one kind joined."""
    deltas_merged: list[Delta] = []
    for delta in deltas:
        last = deltas_merged[-1] if deltas_merged else None
        if isinstance(delta, Text) and isinstance(last, Text):
            deltas_merged[-1] = Text(last.text + delta.text)
        elif isinstance(delta, Reasoning) and isinstance(last, Reasoning):
            deltas_merged[-1] = Reasoning(last.text + delta.text)
        elif isinstance(delta, CallArguments) and isinstance(last, CallArguments) and last.number == delta.number:
            deltas_merged[-1] = CallArguments(last.number, last.text + delta.text)
        else:
            deltas_merged.append(delta)
    return deltas_merged


def call_id() -> str:
    """A new id for a call."""
    return f"call_{secrets.token_hex(12)}"
