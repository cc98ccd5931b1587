"""The output of answers: a terminal, or plain text for a pipe."""

from __future__ import annotations

import sys
from typing import Protocol

from rich.console import Console
from rich.status import Status

from baton.chat.clean import clean
from baton.core.errors import BatonError


class Screen(Protocol):
    """The output of a conversation."""

    interactive: bool

    def asked(self) -> None:
        """A question is on its way."""

    def said(self, text: str) -> None:
        """A part of the answer, as it came."""

    def thought(self, text: str) -> None:
        """A part of the reasoning, as it came."""

    def ended(self, facts: str) -> None:
        """The answer has ended; its cost, in one line."""

    def note(self, text: str) -> None:
        """The output of a command."""

    def failed(self, error: BatonError) -> None:
        """A question could not be answered."""


class Terminal:
    """Answers as they come, and their cost dimmed below."""

    interactive = True

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._waiting: Status | None = None
        self._at_line_start = True
        self._thinking = False

    def asked(self) -> None:
        self._thinking = False
        self._waiting = self._console.status("", spinner="dots")
        self._waiting.start()
        self._at_line_start = True

    def thought(self, text: str) -> None:
        if text := clean(text):
            self._stop_waiting()
            self._thinking, self._at_line_start = True, text.endswith("\n")
            self._console.print(text, style="dim", end="")

    def said(self, text: str) -> None:
        if text := clean(text):
            self._stop_waiting()
            if self._thinking:
                self._new_line()
                self._thinking = False
            self._at_line_start = text.endswith("\n")
            sys.stdout.write(text)
            sys.stdout.flush()

    def ended(self, facts: str) -> None:
        self._stop_waiting()
        self.note(facts)

    def note(self, text: str) -> None:
        self._new_line()
        self._console.print(clean(text), style="dim")

    def failed(self, error: BatonError) -> None:
        self._stop_waiting()
        self._new_line()
        self._console.print(clean(error.message), style="red")

    def _new_line(self) -> None:
        if not self._at_line_start:
            print(flush=True)
        self._at_line_start = True

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None


class Plain:
    """Only answers on stdout, commands' output on stderr; ends at the first failure."""

    interactive = False

    def asked(self) -> None:
        pass

    def thought(self, text: str) -> None:
        pass

    def said(self, text: str) -> None:
        sys.stdout.write(clean(text))
        sys.stdout.flush()

    def ended(self, facts: str) -> None:
        print(flush=True)

    def note(self, text: str) -> None:
        print(clean(text), file=sys.stderr)

    def failed(self, error: BatonError) -> None:
        raise error
