"""What all parsers of tool calls share: text around calls, and calls that begin as soon as they are certain.

What might be the beginning of a call is held back; if it is none, it stays text, to the letter. A call is certain when
the name of an offered tool and the beginning of its arguments were read; from there on its arguments are passed on as
they come.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from typing import Any

from baton.parsing.blanks import TrailingBlanks
from baton.parsing.deltas import CallArguments, CallStart, Delta, call_id
from baton.parsing.scanner import Scanner, Steps

Offered = Mapping[str, Mapping[str, Any]]
"""The JSON Schemas of tools' parameters by the tools' names."""
Reading = Generator[None, None, bool]
"""Reads one call; returns whether it was one."""


class CallParser(ABC):
    """A parser of one answer; see `deltas.Parser`.

    `forced`: the answer is nothing but calls, so text that is cut before a name is dropped. `only`: the tool that must
    be called, if there is but one.
    """

    reasoning = False
    reasons = False

    def __init__(self, tools: Offered, *, forced: bool = False, only: str | None = None) -> None:
        self.tools = tools
        self.calls = 0
        self.called = ""  # the tool of the last call
        self._forced = forced
        self._only = only
        self._blanks = TrailingBlanks()
        self.scanner = Scanner()
        self.scanner.begin(self._all())

    @property
    def held(self) -> int:
        return self.scanner.held + self._blanks.size

    def push(self, text: str) -> list[Delta]:
        return self.scanner.push(text)

    def finish(self) -> list[Delta]:
        return self.scanner.finish()

    @abstractmethod
    def read(self) -> Steps:
        """Reads the answer."""

    def say(self, text: str) -> None:
        """Emits text. Blanks at its end are held back, because blanks before a call are dropped."""
        self.scanner.say(self._blanks.add(text))

    def start(self, name: str) -> bool:
        """Begins a call if such a tool is offered."""
        if name not in self.tools:
            return False
        self.scanner.forget()
        self._blanks.take()
        self.called = name
        self.scanner.out.append(CallStart(self.calls, call_id(), name))
        self.calls += 1
        return True

    def argue(self, text: str) -> None:
        """Emits the next piece of the call's arguments."""
        if text:
            self.scanner.out.append(CallArguments(self.calls - 1, text))

    def try_call(self, reading: Reading, before: str, closing: str = "") -> Steps:
        """Reads a call after its opening tag `before`, up to its closing tag. If it is not a call, it becomes text."""
        self.scanner.keep()
        began = self.calls
        yield from reading
        if self.calls == began:
            rest: list[str] = []
            tag = (yield from self.scanner.until((closing,), rest.append)) if closing else ""
            inside = self.scanner.kept()
            if self.scanner.ended and not tag and self._forced:
                self._give_up()
                return
            self.say(before + inside)
        elif closing:
            pieces: list[str] = []
            yield from self.scanner.until((closing,), pieces.append)
            stray = "".join(pieces)
            # An extra brace is the model's slip; words are text of the answer.
            if stray.strip("]} \r\n\t"):
                self.say(stray)

    def _give_up(self) -> None:
        if self._only is not None and not self.calls:
            self.start(self._only)

    def _all(self) -> Steps:
        yield from self.read()
        blanks = self._blanks.take()
        self.scanner.say("" if self.calls else blanks)


class Enclosed(CallParser):
    """Calls between an opening and a closing tag, text around them."""

    opening: str
    closing: str

    def read(self) -> Steps:
        while True:
            tag = yield from self.scanner.until((self.opening,), self.say)
            if not tag:
                return
            yield from self.try_call(self.inside(), tag, self.closing)

    @abstractmethod
    def inside(self) -> Reading:
        """Reads what follows the opening tag."""


ParserOf = Callable[..., CallParser]
