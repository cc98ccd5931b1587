"""The conversation: its turns, its sampling settings, its commands, and one question after the other."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from baton.chat.lines import from_pipe, from_terminal, question
from baton.chat.port import Answerer, Message, Piece
from baton.chat.screen import Plain, Screen, Terminal
from baton.core.clock import monotonic
from baton.core.errors import BatonError, RequestError, SettingError
from baton.core.sampling import SAMPLING_FIELDS, SamplingParams

HELP = """\
/new                   forget what was said
/system TEXT           what the model is told before all else; /system alone: nothing
/retry                 ask the last question again
/set NAME VALUE        such as /set temperature 0.3; /set NAME: as if never set; /set: all that is set
/stats                 what was said so far, in numbers
/help                  this
/exit                  ends, as Ctrl-D does
A line that ends in \\ goes on in the next, \"\"\" begins and ends a text of many lines, Ctrl-C stops an answer.
A question that begins with a slash: put a space before it."""

SETTABLE: Mapping[str, Callable[[str], Any]] = {
    **{known.name: known.read for known in SAMPLING_FIELDS if known.group},
    "stop": lambda text: text.replace("\\n", "\n"),
}


def converse(answerer: Answerer, *, system: str | None, sampling: Mapping[str, Any]) -> None:
    """Asks until there is no further question. Raises BatonError if there is no terminal to show it on."""
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no text is worth a traceback
    screen: Screen = Terminal() if terminal else Plain()
    conversation = Conversation(answerer, screen, system=system, sampling=sampling)
    if terminal:
        screen.note(f"{answerer.name} · /help tells the commands, Ctrl-D ends")
    while True:
        try:
            line = question(from_terminal if terminal else from_pipe)
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            print()
            screen.note("Ctrl-D ends")
            continue
        if not conversation.take(line):
            return


@dataclass(slots=True)
class Answer:
    """The answer to one question. Times are seconds on our clock."""

    asked: float
    text: str = ""
    pieces: int = 0
    first: float = 0.0
    last: float = 0.0
    reason: str | None = None
    stopped: bool = False
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    queue_seconds: float | None = None
    idle_ratio: float | None = None

    def take(self, piece: Piece) -> None:
        if piece.text or piece.reasoning:
            self.last = monotonic()
            self.first = self.first or self.last
            self.pieces += 1
            self.text += piece.text
        self.reason = piece.finish_reason or self.reason
        for name in ("prompt_tokens", "generated_tokens", "queue_seconds", "idle_ratio"):
            value = getattr(piece, name)
            if value is not None:
                setattr(self, name, value)

    @property
    def tokens(self) -> int:
        return self.pieces if self.generated_tokens is None else self.generated_tokens

    @property
    def seconds(self) -> float:
        """From the first token to the last."""
        return self.last - self.first

    def facts(self) -> str:
        about = "about " if self.generated_tokens is None else ""
        parts = [f"{about}{self.tokens} token{'' if self.tokens == 1 else 's'}"]
        if self.tokens > 1 and self.seconds > 0:
            parts.append(f"{(self.tokens - 1) / self.seconds:.0f} tokens/s")
        if self.pieces:
            parts.append(f"first after {1000 * (self.first - self.asked):.0f} ms")
        if self.queue_seconds is not None:
            parts.append(f"waited {1000 * self.queue_seconds:.0f} ms")
        if self.idle_ratio is not None:
            parts.append(f"{self.idle_ratio:.1%} idle")
        if self.reason == "length":
            parts.append("cut at the token limit")
        if self.stopped:
            parts.append("stopped")
        return " · ".join(parts)


class Conversation:
    """One conversation with one answerer. On a terminal a failure is shown and the conversation goes on."""

    def __init__(
        self,
        answerer: Answerer,
        screen: Screen,
        *,
        system: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self._answerer = answerer
        self._screen = screen
        self._system = system
        self._sampling = dict(sampling or {})
        self._turns: list[Message] = []
        self._question: str | None = None
        self._answers: list[Answer] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "new": self._new,
            "system": self._set_system,
            "retry": self._retry,
            "set": self._set,
            "stats": self._stats,
            "help": lambda rest: self._screen.note(HELP),
        }

    def take(self, line: str) -> bool:
        """Takes a question or a command. Returns whether the conversation goes on."""
        if not line.strip():
            return True
        if not line.startswith("/"):
            self._ask(line.strip())
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("exit", "quit"):
            return False
        try:
            if name not in self._commands:
                raise SettingError(f"there is no command /{name}: /help tells them")
            self._commands[name](rest.strip())
        except BatonError as error:
            self._screen.failed(error)
        return True

    def _ask(self, text: str) -> None:
        self._question = text
        turns = [*self._turns, {"role": "user", "content": text}]
        before = [{"role": "system", "content": self._system}] if self._system else []
        answer = Answer(monotonic())
        self._screen.asked()
        error: BatonError | None = None
        try:
            with closing(self._answerer.answer([*before, *turns], self._sampling)) as pieces:
                for piece in pieces:
                    answer.take(piece)
                    self._screen.thought(piece.reasoning)
                    self._screen.said(piece.text)
        except KeyboardInterrupt:
            if not self._screen.interactive:
                raise
            answer.stopped = True
        except BatonError as failure:
            error = failure
        # A question without an answer is left out of the model's next prompt.
        if answer.text:
            self._turns = [*turns, {"role": "assistant", "content": answer.text}]
        if answer.text or error is None:
            self._answers.append(answer)
            self._screen.ended(answer.facts())
        if error is not None:
            self._screen.failed(error)

    def _new(self, rest: str) -> None:
        self._turns, self._question = [], None
        self._screen.note("forgotten: this is a new conversation")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._screen.note(f"system: {self._system or 'nothing'}")

    def _retry(self, rest: str) -> None:
        if self._question is None:
            raise SettingError("there is no question yet")
        answered = self._turns and self._turns[-2]["content"] == self._question
        self._turns = self._turns[:-2] if answered else self._turns
        self._ask(self._question)

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name:
            self._screen.note(_listed(self._sampling) or "nothing is set: the model's server decides")
            return
        self._sampling = changed(self._sampling, name, value.strip())
        self._screen.note(f"{name} {self._sampling.get(name, 'is as if never set')}")

    def _stats(self, rest: str) -> None:
        answers = self._answers
        tokens, seconds = sum(one.tokens for one in answers), sum(one.seconds for one in answers)
        paced = sum(max(0, one.tokens - 1) for one in answers)
        lines = {
            "model": self._answerer.name,
            "answers": f"{len(answers)}, {tokens:,} tokens",
            "pace": f"{paced / seconds:.0f} tokens/s" if seconds > 0 else "-",
            "prompts": f"{sum(one.prompt_tokens or 0 for one in answers):,} tokens",
            "system": self._system or "nothing",
            "set": _listed(self._sampling) or "nothing",
        }
        self._screen.note("\n".join(f"{name:<9}{value}" for name, value in lines.items()))


def changed(sampling: Mapping[str, Any], name: str, value: str) -> dict[str, Any]:
    """These settings with one of them set, or unset by an empty value. Raises SettingError with its name."""
    if name not in SETTABLE:
        raise SettingError(f"there is no {name} to set: there is {', '.join(SETTABLE)}", param=name)
    rest = {known: kept for known, kept in sampling.items() if known != name}
    if not value:
        return rest
    try:
        new = SETTABLE[name](value)
    except ValueError:
        raise SettingError(f"{name} {value}: not a number", param=name) from None
    check(rest | {name: new})
    return rest | {name: new}


def check(sampling: Mapping[str, Any]) -> None:
    """Raises SettingError for a value without meaning."""
    try:
        SamplingParams(**{"max_tokens": None, **sampling})
    except RequestError as error:
        raise SettingError(error.message, param=error.param) from None


def _listed(sampling: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in sampling.items())
