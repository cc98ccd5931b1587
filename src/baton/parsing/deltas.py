"""What is new in an answer, in no API's spelling: each API writes the same deltas as its own chunks or events.

A parser takes the answer's text piece by piece and returns deltas in the order in which they were said:

- `Text`: text to be shown, never empty.
- `Reasoning`: what the model thinks before it answers, never empty, without its tags.
- `CallStart`: a tool call begins. Its number counts from 0; its name is an offered tool's.
- `CallArguments`: the next piece of that call's arguments, never empty. A call's pieces joined are a JSON object,
  unless the model wrote none or was cut off.

A call ends where another delta than its own arguments comes, or where the answer ends. So a writer of events that need
an explicit end closes what is open whenever the kind (or the call's number) changes, and at the finish.
`Message` adds deltas up: what a plain answer tells.
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
    """`number`: which of the answer's calls it is, from 0 on."""

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
        """Whether what comes next is reasoning, as far as is known."""

    @property
    def reasons(self) -> bool:
        """Whether it tells reasoning apart."""

    @property
    def held(self) -> int:
        """Characters that are held back."""

    def push(self, text: str) -> list[Delta]:
        """Takes the next piece of text."""

    def finish(self) -> list[Delta]:
        """No more text comes: returns what was held back."""


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
    """The same with neighbours of one kind as one."""
    found: list[Delta] = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + delta.text)
        elif isinstance(delta, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + delta.text)
        elif isinstance(delta, CallArguments) and isinstance(last, CallArguments) and last.number == delta.number:
            found[-1] = CallArguments(last.number, last.text + delta.text)
        else:
            found.append(delta)
    return found


def call_id() -> str:
    """A name for a call, which no other call has."""
    return f"call_{secrets.token_hex(12)}"
